"""How fast something grows, told from its last few readings.

Owns a small ring of points. The rule kept: a slope is of the last moments only, so that growth that
begins at once is seen at the second reading, and growth that has ended is forgotten soon.
"""

from __future__ import annotations

from collections import deque

SECOND_NS = 1_000_000_000
POINTS_MAX = 16
# Memory grows in bursts of tens of milliseconds: shorter would take each pause for an end.
WINDOW_NS = 400_000_000


class Slope:
    """The readings of one thing; at most POINTS_MAX points of the last WINDOW_NS."""

    __slots__ = ("_points",)

    def __init__(self) -> None:
        self._points: deque[tuple[int, int]] = deque(maxlen=POINTS_MAX)

    def add(self, now_ns: int, size_bytes: int) -> float:
        """Take a reading and return the slope in bytes per second; 0 at the first.

        Of points further apart than the window the last two count.
        """
        points = self._points
        if points and now_ns <= points[-1][0]:
            points.pop()  # read twice in one moment: the later one holds
        points.append((now_ns, size_bytes))
        while len(points) > 2 and now_ns - points[0][0] > WINDOW_NS:
            points.popleft()
        first_ns, first_bytes = points[0]
        if first_ns == now_ns:
            return 0.0
        return (size_bytes - first_bytes) * SECOND_NS / (now_ns - first_ns)
