"""Running tasks as rows, for rules that look at each of them: one row per attempt that has started.

Rows are bounded by `tasks_running_max`, as the reservations behind them are; a row is free for
another attempt once its own has ended.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from allocator.ledger import Reservation
from controller.core.alerts import Subject
from controller.core.model import Task
from controller.core.nodes import Floats

_Attempt = tuple[int, int]  # task and number


class TaskRows:
    """Which running attempt has which row. `subjects` has None for the rows that are free."""

    def __init__(self, rows_max: int) -> None:
        self.rows_max = rows_max
        self.subjects: list[Subject | None] = []
        self._rows: dict[_Attempt, int] = {}
        self._free: list[int] = []
        self._gone: list[int] = []

    def update(self, running: Iterable[Task]) -> None:
        """Give each of these attempts a row, and free the rows of all others."""
        attempts = {(task.id, task.attempt): task for task in running}
        for attempt in [attempt for attempt in self._rows if attempt not in attempts]:
            row = self._rows.pop(attempt)
            self.subjects[row] = None
            self._free.append(row)
            self._gone.append(row)
        for attempt in sorted(attempts.keys() - self._rows.keys()):
            if self._free:
                row = self._free.pop()
            else:
                row = len(self.subjects)
                assert row < self.rows_max, "more attempts run than may have a reservation"
                self.subjects.append(None)
            self._rows[attempt] = row
            task = attempts[attempt]
            self.subjects[row] = Subject(task.node_id, task.id, task.label)

    def take_gone(self) -> list[int]:
        """Return the rows freed since the last call: alerts of their attempts are to end."""
        gone, self._gone = self._gone, []
        return gone

    def by_subject(self) -> dict[Subject, int]:
        """Return the row of each running task."""
        return {subject: row for row, subject in enumerate(self.subjects) if subject is not None}

    def columns(
        self, reservations: Iterable[Reservation], tasks: dict[int, Task], now_ns: int
    ) -> dict[str, Floats]:
        """Return every metric of tasks by row, NaN where it is not known."""
        names = ("used", "reserved", "limit", "runtime")
        used, reserved, limit, runtime = (np.full(len(self.subjects), np.nan) for _ in names)
        for entry in reservations:
            row = self._rows.get((entry.task_id, entry.attempt))
            if row is None:
                continue
            task = tasks[entry.task_id]
            # A reservation begins with nothing measured, and no living process uses nothing.
            used[row] = entry.used_bytes or np.nan
            reserved[row] = entry.reserved_bytes
            limit[row] = task.memory_limit_bytes or np.nan
            runtime[row] = max(0, now_ns - task.started_at_ns) / 1e9
        return {
            "task_mem_used": used,
            "task_mem_reserved": reserved,
            "task_mem_limit": limit,
            "task_mem_percent": 100.0 * used / limit,
            "task_runtime_seconds": runtime,
        }
