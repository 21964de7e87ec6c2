"""The waiting tasks, in the order they are to be placed: higher priority first, then lower id.

Tasks of one shape (the same needs) stand in one line, so that a cycle that finds no node for the
first of them need not look at the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from controller.core.model import Task


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides where a task may go; tasks of one shape are interchangeable for placement."""

    memory_request_bytes: int
    cpus: float


@dataclass(slots=True)
class _Line:
    """The waiting tasks of one shape; entries whose task has left the queue are skipped."""

    entries: list[tuple[int, int]] = field(default_factory=list)  # (-priority, task id), a heap
    members: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)  # those that left, with an entry still here

    def add(self, task: Task) -> None:
        self.members.add(task.id)
        if task.id in self.skipped:  # it waits again: a second entry would give it out twice
            self.skipped.remove(task.id)
        else:
            heapq.heappush(self.entries, (-task.spec.priority, task.id))

    def remove(self, task_id: int) -> None:
        self.members.remove(task_id)
        self.skipped.add(task_id)
        if len(self.entries) > 64 and len(self.entries) > 2 * len(self.members):
            # Skipped entries must not outgrow the tasks that are there.
            self.entries = [entry for entry in self.entries if entry[1] in self.members]
            heapq.heapify(self.entries)
            self.skipped.clear()

    def head(self) -> tuple[int, int] | None:
        while self.entries and self.entries[0][1] in self.skipped:
            self.skipped.remove(heapq.heappop(self.entries)[1])
        return self.entries[0] if self.entries else None


def shape_of(task: Task) -> Shape:
    """Return the shape of a task."""
    return Shape(task.spec.memory_request_bytes, task.spec.cpus)


class PendingQueue:
    """All waiting tasks. Bounded by the number of open tasks."""

    def __init__(self) -> None:
        self._lines: dict[Shape, _Line] = {}
        self._shape_by_task: dict[int, Shape] = {}

    def __len__(self) -> int:
        return len(self._shape_by_task)

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._shape_by_task

    def add(self, task: Task) -> None:
        """Put a waiting task in its line. It must not be there yet."""
        assert task.id not in self._shape_by_task
        shape = shape_of(task)
        self._lines.setdefault(shape, _Line()).add(task)
        self._shape_by_task[task.id] = shape

    def remove(self, task_id: int) -> None:
        """Take a task out; one that is not there changes nothing."""
        shape = self._shape_by_task.pop(task_id, None)
        if shape is None:
            return
        line = self._lines[shape]
        line.remove(task_id)
        if not line.members:
            del self._lines[shape]

    def shape(self, task_id: int) -> Shape:
        """Return the shape of a task that is in the queue."""
        return self._shape_by_task[task_id]

    def in_order(self) -> OrderedTasks:
        """Return an iteration for one cycle; the queue must not change meanwhile."""
        return OrderedTasks(self._lines)


class OrderedTasks:
    """Waiting task ids in order of placement; `skip` leaves out the rest of a shape."""

    def __init__(self, lines: dict[Shape, _Line]) -> None:
        self._heads: list[tuple[int, int, int]] = []
        self._shapes = list(lines)
        self._walks: list[Iterator[tuple[int, int]]] = []
        for index, shape in enumerate(self._shapes):
            line = lines[shape]
            head = line.head()
            assert head is not None
            self._walks.append(_sorted_entries(line))
            self._heads.append((*head, index))
        heapq.heapify(self._heads)
        self._last: int | None = None

    def next(self) -> tuple[int, Shape] | None:
        """Return the next task id and its shape, or None at the end."""
        if self._last is not None:
            entry = next(self._walks[self._last], None)
            if entry is not None:
                heapq.heappush(self._heads, (*entry, self._last))
            self._last = None
        if not self._heads:
            return None
        _, task_id, index = heapq.heappop(self._heads)
        self._last = index
        return task_id, self._shapes[index]

    def skip_shape(self) -> None:
        """Leave out all further tasks of the shape that `next` returned last."""
        self._last = None


def _sorted_entries(line: _Line) -> Iterator[tuple[int, int]]:
    """Yield the line's entries after its head in order, without disturbing the heap.

    A best-first walk over the heap's own tree: cost grows with what is taken, not with the line.
    """
    entries = line.entries
    frontier = [(entries[0], 0)]
    first = True
    while frontier:
        entry, position = heapq.heappop(frontier)
        for child in (2 * position + 1, 2 * position + 2):
            if child < len(entries):
                heapq.heappush(frontier, (entries[child], child))
        if first:
            first = False
            continue
        if entry[1] in line.members:
            yield entry
