"""Arrays: the indexes of their elements as text, and how many of each are open and placed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from controller.core.errors import InvalidRequest
from controller.core.model import PLACED_STATES, Task, TaskState

_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)


def array_indexes(text: str, count_max: int) -> tuple[int, ...]:
    """Return the indexes of "1-1000", "0-9,20" or "0-100:10", in order and each once.

    Raises:
        InvalidRequest: it cannot be read, names an index twice, or has more than count_max.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise InvalidRequest(
                f"array '{text[:80]}' is not understood at '{part.strip()[:40]}'; write for example"
                " 1-1000, 0-9,20 or 0-100:10"
            )
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if last < first or step < 1:
            raise InvalidRequest(f"array '{text[:80]}': {part.strip()} names no index")
        indexes = range(first, last + 1, step)
        if len(found) + len(indexes) > count_max:
            raise InvalidRequest(
                f"array '{text[:80]}' has more than {count_max} elements, which is the bound"
            )
        for index in indexes:
            if index in found:
                raise InvalidRequest(f"array '{text[:80]}' names index {index} twice")
            found[index] = None
    return tuple(found)


@dataclass(slots=True)
class ArrayRecord:
    """An array with open elements."""

    running_max: int
    open_count: int = 0
    placed_count: int = 0
    ended_states: set[TaskState] = field(default_factory=set)  # since this controller runs


class Arrays:
    """The arrays that have open elements, by id."""

    def __init__(self) -> None:
        self._records: dict[int, ArrayRecord] = {}

    def __contains__(self, array_id: int) -> bool:
        """Say whether an array has open elements."""
        return array_id in self._records

    def change(self, before: Task | None, task: Task) -> None:
        """Count a change of an element; the value before is None when it is new."""
        record = self._records.get(task.array_id)
        if record is None:
            record = self._records[task.array_id] = ArrayRecord(task.spec.array_running_max)
        was_placed = before is not None and before.state in PLACED_STATES
        record.placed_count += (task.state in PLACED_STATES) - was_placed
        record.open_count += (not task.ended) - (before is not None)
        if task.ended:
            record.ended_states.add(task.state)
            if not record.open_count:
                del self._records[task.array_id]

    def ended_states(self, array_id: int) -> frozenset[TaskState]:
        """Return how elements have ended since this controller runs."""
        record = self._records.get(array_id)
        return frozenset(record.ended_states) if record is not None else frozenset()

    def placed(self) -> dict[int, int]:
        """Return how many elements are placed, for the arrays that have a bound."""
        return {i: r.placed_count for i, r in self._records.items() if r.running_max}

    def check(self, tasks: dict[int, Task]) -> None:
        """Assert that the counts are those of the open tasks."""
        opened: dict[int, int] = {}
        placed: dict[int, int] = {}
        for task in tasks.values():
            if task.array_id:
                opened[task.array_id] = opened.get(task.array_id, 0) + 1
                placed[task.array_id] = placed.get(task.array_id, 0) + (task.state in PLACED_STATES)
        assert opened == {i: record.open_count for i, record in self._records.items()}
        assert placed == {i: record.placed_count for i, record in self._records.items()}
        for array_id, record in self._records.items():
            if record.running_max:
                assert placed[array_id] <= record.running_max
