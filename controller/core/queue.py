"""The waiting tasks, in the order they are to be placed: higher priority first; of equal priority
the user who takes less memory; then the lower id.

Tasks with the same needs and the same owner stand in one line, so that a cycle that finds no node
for the first of them need not look at the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from controller.core.model import Preference, Task

_Entry = tuple[int, int]  # (-priority, task id)


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides where a task may go; tasks of one shape are interchangeable for placement."""

    memory_request_bytes: int
    cpus: float
    gpus: int = 0
    constraint: str = ""
    pack: bool = False
    time_limit_ns: int = 0  # 0: none; a short task may run where a node is kept free for another


@dataclass(frozen=True, slots=True)
class Line:
    """What decides where and when: a shape, whose tasks they are, and the array that bounds how
    many of its elements are placed at once (0 for none)."""

    shape: Shape
    user: str = ""
    array_id: int = 0
    array_running_max: int = 0


@dataclass(slots=True)
class _Members:
    """The waiting tasks of one line; entries whose task has left the queue are skipped."""

    entries: list[_Entry] = field(default_factory=list)  # a heap
    members: dict[int, int] = field(default_factory=dict)  # task id -> -priority
    skipped: set[_Entry] = field(default_factory=set)  # of those that left, still in the heap

    def add(self, task: Task) -> None:
        entry = (-task.priority, task.id)
        self.members[task.id] = -task.priority
        if entry in self.skipped:  # it waits again: a second entry would give it out twice
            self.skipped.remove(entry)
        else:
            heapq.heappush(self.entries, entry)

    def remove(self, task_id: int) -> None:
        self.skipped.add((self.members.pop(task_id), task_id))
        if len(self.entries) > 64 and len(self.entries) > 2 * len(self.members):
            # Skipped entries must not outgrow the tasks that are there.
            self.entries = [entry for entry in self.entries if self.has(entry)]
            heapq.heapify(self.entries)
            self.skipped.clear()

    def has(self, entry: _Entry) -> bool:
        return self.members.get(entry[1]) == entry[0]

    def head(self) -> _Entry | None:
        while self.entries and self.entries[0] in self.skipped:
            self.skipped.remove(heapq.heappop(self.entries))
        return self.entries[0] if self.entries else None


def shape_of(task: Task) -> Shape:
    """Return the shape of a task."""
    spec = task.spec
    return Shape(
        spec.memory_request_bytes,
        spec.cpus,
        spec.gpus,
        spec.constraint,
        spec.preference is Preference.PACK,
        spec.time_limit_ns or 0,
    )


def line_of(task: Task) -> Line:
    """Return the line that a task waits in."""
    running_max = task.spec.array_running_max
    return Line(shape_of(task), task.user, task.array_id if running_max else 0, running_max)


class PendingQueue:
    """All waiting tasks. Bounded by the number of open tasks."""

    def __init__(self) -> None:
        self._lines: dict[Line, _Members] = {}
        self._line_by_task: dict[int, Line] = {}

    def __len__(self) -> int:
        return len(self._line_by_task)

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._line_by_task

    def add(self, task: Task) -> None:
        """Put a waiting task in its line. It must not be there yet."""
        assert task.id not in self._line_by_task
        line = line_of(task)
        self._lines.setdefault(line, _Members()).add(task)
        self._line_by_task[task.id] = line

    def remove(self, task_id: int) -> None:
        """Take a task out; one that is not there changes nothing."""
        line = self._line_by_task.pop(task_id, None)
        if line is None:
            return
        members = self._lines[line]
        members.remove(task_id)
        if not members.members:
            del self._lines[line]

    def shape(self, task_id: int) -> Shape:
        """Return the shape of a task that is in the queue."""
        return self._line_by_task[task_id].shape

    def in_order(self, shares: Mapping[str, int] | None = None) -> OrderedTasks:
        """Return an iteration for one cycle; the queue must not change meanwhile.

        `shares` are the bytes each user takes already; without it users are not told apart.
        """
        return OrderedTasks(self._lines, shares)


class OrderedTasks:
    """Waiting task ids in order of placement; `skip_line` leaves out the rest of a line."""

    def __init__(
        self, lines: Mapping[Line, _Members], shares: Mapping[str, int] | None = None
    ) -> None:
        self._shares = None if shares is None else dict(shares)
        self._lines = list(lines)
        self._walks: list[Iterator[_Entry]] = []
        # Two heaps deep, for a share that grows moves one user and not each of his lines.
        self._heads: dict[str, list[tuple[int, int, int]]] = {}  # (-priority, task id, line)
        for index, line in enumerate(self._lines):
            members = lines[line]
            head = members.head()
            assert head is not None
            self._walks.append(_sorted_entries(members))
            self._heads.setdefault(self._owner(line), []).append((*head, index))
        self._owners: list[tuple[int, int, int, str]] = []  # (-priority, share, task id, user)
        for owner, heads in self._heads.items():
            heapq.heapify(heads)
            self._owners.append((heads[0][0], self._share(owner), heads[0][1], owner))
        heapq.heapify(self._owners)
        self._last: int | None = None  # the line that was returned last, unless it was skipped
        self._last_owner: str | None = None
        self.rank = (0, 0)  # of the task that `next` returned last: (-priority, id)

    def next(self) -> tuple[int, Line] | None:
        """Return the next task id and its line, or None at the end."""
        if self._last_owner is not None:
            self._put_back(self._last_owner)
        if not self._owners:
            return None
        minus_priority, _, task_id, owner = heapq.heappop(self._owners)
        index = heapq.heappop(self._heads[owner])[2]
        self._last, self._last_owner = index, owner
        self.rank = (minus_priority, task_id)
        return task_id, self._lines[index]

    def _put_back(self, owner: str) -> None:
        """Let the user whose task was returned last stand with his next one, and his share now."""
        heads = self._heads[owner]
        if self._last is not None:
            entry = next(self._walks[self._last], None)
            if entry is not None:
                heapq.heappush(heads, (*entry, self._last))
        if heads:
            heapq.heappush(self._owners, (heads[0][0], self._share(owner), heads[0][1], owner))
        self._last, self._last_owner = None, None

    def charge(self, line: Line) -> None:
        """Count the task that `next` returned last, of this line, against its user's share."""
        if self._shares is not None:
            size_bytes = line.shape.memory_request_bytes
            self._shares[line.user] = self._shares.get(line.user, 0) + size_bytes

    def skip_line(self) -> None:
        """Leave out all further tasks of the line that `next` returned last."""
        self._last = None

    def _owner(self, line: Line) -> str:
        return "" if self._shares is None else line.user

    def _share(self, user: str) -> int:
        return 0 if self._shares is None else self._shares.get(user, 0)


def _sorted_entries(members: _Members) -> Iterator[_Entry]:
    """Yield the line's entries after its head in order, without disturbing the heap.

    A best-first walk over the heap's own tree: cost grows with what is taken, not with the line.
    """
    entries = members.entries
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
        if members.has(entry):
            yield entry
