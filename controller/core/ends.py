"""How tasks and arrays ended lately, so that what was looked up in the store a moment ago can be
brought up to now: under load something ends between any look-up and what follows from it."""

from __future__ import annotations

from collections import deque
from itertools import islice

from controller.core.model import TaskState

KEPT_MAX = 10_000  # some seconds of a busy cluster, about a MiB


class EndsLately:
    """The latest ends, counted; bounded by KEPT_MAX."""

    def __init__(self) -> None:
        self.count = 0
        self._latest: deque[tuple[int, TaskState]] = deque(maxlen=KEPT_MAX)

    def note(self, thing_id: int, state: TaskState) -> None:
        """Take in how a task, or an element of an array, ended."""
        self.count += 1
        self._latest.append((thing_id, state))

    def since(self, count: int) -> dict[int, frozenset[TaskState]] | None:
        """Return how things ended after so many ends; None where not all of them are kept."""
        missed = self.count - count
        if missed > len(self._latest):
            return None
        found: dict[int, set[TaskState]] = {}
        for thing_id, state in islice(reversed(self._latest), missed):
            found.setdefault(thing_id, set()).add(state)
        return {thing_id: frozenset(states) for thing_id, states in found.items()}
