"""The waiting tasks, in the order they are to be placed: higher priority first; of equal priority
the user who takes less memory; then the lower id.

Tasks with the same needs and the same owner stand in one line, so that a cycle that finds no node
for the first of them need not look at the others. Where a size follows from what is learned, the
line keeps what it follows from, and is sized anew in each cycle: not its tasks.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from controller.core.model import Preference, Task
from controller.core.needs import Need

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
    node_min_bytes: int = 0  # what its node must be able to give in all, however little is asked

    @property
    def capacity_bytes(self) -> int:
        """Return the least capacity of a node that can ever take it."""
        return max(self.memory_request_bytes, self.node_min_bytes)


@dataclass(frozen=True, slots=True)
class Line:
    """What decides where and when: a shape, whose tasks they are, and the array that bounds how
    many of its elements are placed at once (0 for none)."""

    shape: Shape
    user: str = ""
    array_id: int = 0
    array_running_max: int = 0
    need: Need | None = None  # what the shape's memory follows from; None: it is as declared


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


def line_of(task: Task, need: Need | None = None) -> Line:
    """Return the line that a task waits in; with a need its memory is 0 until it is sized."""
    running_max, shape = task.spec.array_running_max, shape_of(task)
    if need is not None:
        shape = replace(shape, memory_request_bytes=0)
    return Line(shape, task.user, task.array_id if running_max else 0, running_max, need)


def _as_declared(task: Task) -> None:
    return None


def _never(need: Need) -> tuple[int, int]:
    raise AssertionError(f"nothing sizes {need}")


class PendingQueue:
    """All waiting tasks. Bounded by the number of open tasks."""

    def __init__(
        self,
        need_of: Callable[[Task], Need | None] = _as_declared,
        sizes_of: Callable[[Need], tuple[int, int]] = _never,
    ) -> None:
        """Take what says which tasks are sized by what is learned, and of a need its size now and
        what its node must be able to give in all."""
        self._need_of, self._sizes_of = need_of, sizes_of
        self._lines: dict[Line, _Members] = {}
        self._line_by_task: dict[int, Line] = {}
        self._sized: dict[Line, Line] = {}  # by line, as it was sized last
        self._learned = False  # some line has a need

    def __len__(self) -> int:
        return len(self._line_by_task)

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._line_by_task

    def add(self, task: Task) -> None:
        """Put a waiting task in its line. It must not be there yet."""
        assert task.id not in self._line_by_task
        line = line_of(task, self._need_of(task))
        self._lines.setdefault(line, _Members()).add(task)
        self._line_by_task[task.id] = line
        self._learned = self._learned or line.need is not None

    def remove(self, task_id: int) -> None:
        """Take a task out; one that is not there changes nothing."""
        line = self._line_by_task.pop(task_id, None)
        if line is None:
            return
        members = self._lines[line]
        members.remove(task_id)
        if not members.members:
            del self._lines[line]
            self._sized.pop(line, None)

    def sort_anew(self, tasks: Mapping[int, Task]) -> None:
        """Put every task in its line again: which ones are sized by what is learned has changed."""
        waiting = list(self._line_by_task)
        for task_id in waiting:
            self.remove(task_id)
        for task_id in waiting:
            self.add(tasks[task_id])

    def shape(self, task_id: int) -> Shape:
        """Return the shape of a task that is in the queue, as it is sized now."""
        return self._as_sized(self._line_by_task[task_id]).shape

    def line(self, task: Task) -> Line:
        """Return the line of a task, in the queue or not, as it is sized now."""
        line = self._line_by_task.get(task.id) or line_of(task, self._need_of(task))
        return self._as_sized(line)

    def shape_of(self, task: Task) -> Shape:
        """Return the shape of a task, in the queue or not, as it is sized now."""
        return self.line(task).shape

    def _as_sized(self, line: Line) -> Line:
        if line.need is None:
            return line
        sizes = self._sizes_of(line.need)
        sized = self._sized.get(line)
        if sized is None or sizes != (sized.shape.memory_request_bytes, sized.shape.node_min_bytes):
            size_bytes, least_bytes = sizes
            shape = replace(line.shape, memory_request_bytes=size_bytes, node_min_bytes=least_bytes)
            sized = replace(line, shape=shape)
            if line in self._lines:
                self._sized[line] = sized
        return sized

    def in_order(self, shares: Mapping[str, int] | None = None) -> OrderedTasks:
        """Return an iteration for one cycle; the queue must not change meanwhile.

        `shares` are the bytes each user takes already; without it users are not told apart.
        """
        return OrderedTasks(
            {self._as_sized(line): members for line, members in self._lines.items()}
            if self._learned
            else self._lines,
            shares,
        )


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
