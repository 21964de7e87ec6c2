"""Time that moves by hand: what is to happen, in the order of its instant, ties by age."""

from __future__ import annotations

import heapq
from collections.abc import Callable

SECOND_NS = 1_000_000_000
MILLISECOND_NS = 1_000_000
BEGIN_NS = 1_700_000_000 * SECOND_NS


class Due:
    """Something that will happen unless it is cancelled."""

    __slots__ = ("action", "at_ns")

    def __init__(self, at_ns: int, action: Callable[[], None]) -> None:
        self.at_ns = at_ns
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Let it not happen."""
        self.action = None


class Timeline:
    """The one clock of a simulated world, in nanoseconds since the epoch."""

    def __init__(self) -> None:
        self._now_ns = BEGIN_NS
        self._heap: list[tuple[int, int, Due]] = []
        self._count = 0

    def now_ns(self) -> int:
        """Return the time."""
        return self._now_ns

    def at(self, at_ns: int, action: Callable[[], None]) -> Due:
        """Let something happen at an instant, or now when that has passed."""
        due = Due(max(at_ns, self._now_ns), action)
        self._count += 1
        heapq.heappush(self._heap, (due.at_ns, self._count, due))
        return due

    def after(self, delay_ns: int, action: Callable[[], None]) -> Due:
        """Let something happen after a delay."""
        return self.at(self._now_ns + delay_ns, action)

    def run_until(self, at_ns: int) -> None:
        """Let everything happen that is due by then. May be called from within an action."""
        while self._heap and self._heap[0][0] <= at_ns:
            due_ns, _, due = heapq.heappop(self._heap)
            self._now_ns = max(self._now_ns, due_ns)
            action, due.action = due.action, None
            if action is not None:
                action()
        self._now_ns = max(self._now_ns, at_ns)
