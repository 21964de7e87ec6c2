"""What is read from an SQLite store; used by its one reader thread only."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from controller.core.limits import Limits
from controller.core.model import Attempt, OutputStream, Task, TaskState
from controller.store import statements
from controller.store.base import ATTEMPTS_READ_MAX, Stored, TaskFilter
from controller.store.rows import (
    Row,
    alert_from,
    attempt_from,
    node_from,
    reservation_from,
    submission_from,
    tasks_from,
)
from controller.store.schema import CLUSTER_ID
from controller.store.sqlite_writer import NEXT_RESERVATION_ID, NEXT_TASK_ID

ID_MAX = (1 << 63) - 1  # above every id and every instant


class Reader:
    """Reads what was committed before the call; it never waits for the writer."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def load(self, limits: Limits) -> Stored:
        """Return what the core starts from."""
        with self._one_view():
            submissions = self._all(statements.select_submissions(), limits.submissions_kept)
            return Stored(
                tasks=tuple(tasks_from(self._all(statements.select_open_tasks()))),
                nodes=tuple(map(node_from, self._all(statements.select_nodes()))),
                alerts=tuple(map(alert_from, self._all(statements.select_alerts()))),
                submissions=tuple(map(submission_from, reversed(submissions))),
                next_task_id=self.next_task_id(),
                reservations=tuple(
                    map(reservation_from, self._all(statements.select_reservations()))
                ),
                next_reservation_id=self.next_reservation_id(),
                cluster_id=self.cluster_id(),
                attempts=self.latest_attempts(limits),
            )

    def latest_attempts(self, limits: Limits) -> tuple[Attempt, ...]:
        """Return the latest attempts of each category, in the order in which they ended."""
        found: list[list[Attempt]] = []
        category = ""
        while True:
            # One step in the index for each category, whatever there is of each.
            ((following,),) = self._all(statements.select_next_category(), category)
            if following is None:
                break
            category = str(following)
            rows = self._all(
                statements.select_attempts_of_category(), category, limits.category_attempts_max
            )
            found.append([attempt_from(row) for row in rows])
        found.sort(key=lambda attempts: (attempts[0].ended_at_ns, attempts[0].category))
        kept = [one for attempts in found[-limits.categories_max :] for one in attempts]
        return tuple(sorted(kept, key=lambda one: (one.ended_at_ns, one.task_id, one.number)))

    def next_task_id(self) -> int:
        """Return an id above every one that was ever committed."""
        counted = self._all(statements.select_counter(), NEXT_TASK_ID)
        ((last,),) = self._all(statements.select_last_task_id())
        return max(1, counted[0][0] if counted else 1, (last or 0) + 1)

    def next_reservation_id(self) -> int:
        """Return an id above every one that a reservation ever had."""
        counted = self._all(statements.select_counter(), NEXT_RESERVATION_ID)
        return int(counted[0][0]) if counted else 1

    def cluster_id(self) -> str:
        """Return the name of this store and its copies: 16 hexadecimal digits."""
        ((number,),) = self._all(statements.select_counter(), CLUSTER_ID)
        return f"{number:016x}"

    def tasks(self, before_id: int, limit: int, wanted: TaskFilter) -> list[Task]:
        """Return a page of tasks, newest first."""
        if wanted == TaskFilter():
            return tasks_from(self._all(statements.select_tasks_before(), before_id, limit))
        named: dict[str, str | int] = {"name": wanted.name, "user": wanted.user}
        named |= {"since": wanted.since_ns, "array": wanted.array_id}
        query = statements.select_task_ids_filtered(
            state=bool(wanted.states), **{key: bool(value) for key, value in named.items()}
        )
        values = [value for value in named.values() if value]
        with self._one_view():
            ids = [
                task_id
                for state in wanted.states or (None,)
                for (task_id,) in self._all(
                    query, *([state.value] if state else []), *values, before_id, limit
                )
            ]
            return self.tasks_by_id(sorted(ids, reverse=True)[:limit])

    def array_task_ids(self, array_id: int, index: int | None) -> list[int]:
        """Return the ids of an array's elements, or of the one with that index."""
        if index is None:
            rows = self._all(statements.select_array(), array_id)
        else:
            rows = self._all(statements.select_array_element(), array_id, index)
        return [task_id for (task_id,) in rows]

    def ended_states(self, thing_ids: Collection[int]) -> dict[int, frozenset[TaskState]]:
        """Return how the tasks, and the elements of the arrays, with these ids have ended."""
        query = statements.select_ended_states()
        found = {}
        with self._one_view():
            for thing_id in thing_ids:
                words = self._all(query, thing_id, thing_id)
                found[thing_id] = frozenset(TaskState(word) for (word,) in words)
        return found

    def tasks_by_id(self, task_ids: Collection[int]) -> list[Task]:
        """Return those of the tasks that are known, newest first."""
        return tasks_from(self._all(statements.select_tasks_by_id(), json.dumps(list(task_ids))))

    def task_ids_known(self, task_ids: Collection[int]) -> set[int]:
        """Return those of the ids that are a task's."""
        rows = self._all(statements.select_task_ids_known(), json.dumps(list(task_ids)))
        return {task_id for (task_id,) in rows}

    def attempts(self, task_id: int) -> list[Attempt]:
        """Return a task's attempts by number."""
        rows = self._all(statements.select_attempts(), task_id, ATTEMPTS_READ_MAX)
        return [attempt_from(row) for row in reversed(rows)]

    def output(self, task_id: int, attempt: int, stream: OutputStream) -> bytes | None:
        """Return the kept output of an attempt."""
        rows = self._all(statements.select_output(), task_id, attempt, stream.value)
        return bytes(rows[0][0]) if rows else None

    def prune_bound(self, ended_before_ns: int, tasks_max: int) -> tuple[int, int]:
        """Return the (ended_at_ns, id) below which ended tasks are to be forgotten."""
        if tasks_max == 0:
            return (ID_MAX, ID_MAX)
        rows = self._all(statements.select_oldest_kept(), tasks_max - 1)
        # Ids start at 1, so this is below all that ended at that instant.
        by_age = (ended_before_ns, 0)
        return max(by_age, (rows[0][0], rows[0][1])) if rows else by_age

    def ended_task_ids(self, below: tuple[int, int], count_max: int) -> list[int]:
        """Return the ids of the tasks that ended first, oldest end first."""
        rows = self._all(statements.select_ended_task_ids(), *below, count_max)
        return [task_id for (task_id,) in rows]

    def _all(self, query: str, *values: object) -> list[Row]:
        return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _one_view(self) -> Iterator[None]:
        # Several queries that must see the same commits.
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("COMMIT")
