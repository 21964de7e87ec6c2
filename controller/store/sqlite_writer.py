"""What is written to an SQLite store; used by its one writer thread only."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence

from controller.core.commands import Save
from controller.core.model import AlertState, Task
from controller.store import statements
from controller.store.connection import transaction
from controller.store.rows import (
    NewRow,
    alert_row,
    attempt_row,
    new_task_row,
    node_row,
    reservation_row,
    spec_text,
    submission_row,
    task_progress_row,
)
from controller.store.statements import RowsStatement
from controller.store.turn import Turn

NEXT_TASK_ID = "next_task_id"
NEXT_RESERVATION_ID = "next_reservation_id"


class Writer:
    """Writes turns. `last_task_id` is the greatest id that was ever committed, 0 for none."""

    def __init__(
        self, connection: sqlite3.Connection, last_task_id: int, last_reservation_id: int = 0
    ) -> None:
        self._connection = connection
        self._last_task_id = last_task_id
        self._last_reservation_id = last_reservation_id

    def commit(self, saves: Sequence[Save]) -> None:
        """Write a turn as one transaction, durably."""
        turn = Turn(saves)
        with transaction(self._connection):
            # Tasks first: attempts and outputs refer to them.
            self._save_tasks(list(turn.tasks.values()))
            self._run(
                statements.SAVE_ATTEMPTS, [attempt_row(value) for value in turn.attempts.values()]
            )
            self._run(
                statements.SAVE_OUTPUTS,
                [
                    (task_id, attempt, stream.value, data)
                    for (task_id, attempt, stream), data in turn.outputs.items()
                ],
            )
            self._save_nodes(turn)
            self._save_reservations(turn)
            self._run(
                statements.SAVE_SUBMISSIONS,
                [submission_row(value) for value in turn.submissions.values()],
            )
            self._save_alerts(turn)
        # Only now: a turn that was rolled back has added no task.
        self._last_task_id = max(self._last_task_id, max(turn.tasks, default=0))

    def delete_tasks(self, task_ids: Collection[int]) -> int:
        """Forget those of the tasks that have ended, as one transaction; return how many."""
        with transaction(self._connection):
            # The newest task may be among them, and its id must not be given again.
            self._run(statements.SAVE_COUNTERS, [(NEXT_TASK_ID, self._last_task_id + 1)])
            cursor = self._connection.execute(statements.delete_tasks(), (_json(task_ids),))
            return cursor.rowcount

    def delete_submissions(self, kept: int, count_max: int) -> int:
        """Forget the oldest submissions beyond those to keep; return how many."""
        with transaction(self._connection):
            values = (kept, count_max)
            return self._connection.execute(statements.delete_old_submissions(), values).rowcount

    def _save_tasks(self, tasks: list[Task]) -> None:
        # Ids grow, so a greater one than ever is new, and others are most likely there already.
        new = [task for task in tasks if task.id > self._last_task_id]
        changed = [task for task in tasks if task.id <= self._last_task_id]
        before = self._connection.total_changes
        if len(changed) <= statements.ROWS_ONE_BY_ONE:
            text = statements.update_task()
            for task in changed:
                self._connection.execute(text, (*task_progress_row(task), task.id))
        else:
            rows = [(task.id, *task_progress_row(task)) for task in changed]
            self._run(statements.UPDATE_TASKS, rows)
        if self._connection.total_changes - before < len(changed):
            new += self._missing(changed)
        if not new:
            return
        self._run(statements.INSERT_TASKS, [new_task_row(task) for task in new])
        specs = [(task.id, spec_text(task.spec)) for task in new]
        self._run(statements.INSERT_TASK_SPECS, specs)

    def _missing(self, tasks: list[Task]) -> list[Task]:
        ids = _json([task.id for task in tasks])
        query = statements.select_task_ids_known()
        known = {task_id for (task_id,) in self._connection.execute(query, (ids,))}
        return [task for task in tasks if task.id not in known]

    def _save_nodes(self, turn: Turn) -> None:
        if not turn.nodes:
            return
        kept = [node_row(value) for value in turn.nodes.values() if value is not None]
        self._run(statements.SAVE_NODES, kept)
        gone = [(node_id,) for node_id, value in turn.nodes.items() if value is None]
        self._connection.executemany(statements.delete_node(), gone)

    def _save_reservations(self, turn: Turn) -> None:
        if not turn.reservations:
            return
        kept = [value for value in turn.reservations.values() if value is not None]
        self._run(statements.SAVE_RESERVATIONS, [reservation_row(value) for value in kept])
        gone = [(number,) for number, value in turn.reservations.items() if value is None]
        self._connection.executemany(statements.delete_reservation(), gone)
        # An id is not given again, so that a late release of an old one cannot end a new one.
        self._last_reservation_id = max(self._last_reservation_id, *turn.reservations)
        self._run(statements.SAVE_COUNTERS, [(NEXT_RESERVATION_ID, self._last_reservation_id + 1)])

    def _save_alerts(self, turn: Turn) -> None:
        if not turn.alerts:
            return
        kept, forgotten = [], []
        for key, alert in turn.alerts.items():
            if alert.state is AlertState.INACTIVE:
                forgotten.append(key)
            else:
                kept.append(alert_row(alert))
        self._run(statements.SAVE_ALERTS, kept)
        self._connection.executemany(statements.delete_alert(), forgotten)

    def _run(self, statement: RowsStatement, rows: Sequence[NewRow]) -> None:
        if not rows:
            return
        for text, values in statement.calls(rows):
            self._connection.execute(text, values)


def _json(task_ids: Collection[int]) -> str:
    return json.dumps(list(task_ids))
