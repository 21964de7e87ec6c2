"""The store's statements, each a named function, as text for SQLite.

They are compiled once and kept: building one takes longer than running it. A statement over many
rows takes as many at once as fit, because SQLite then works through them without the interpreter's
lock: 10,000 changes take half the time of one statement a row, beside a busy loop too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from controller.store.rows import NewRow
from controller.store.tables import (
    TASK_PROGRESS,
    alerts,
    attempts,
    counters,
    nodes,
    outputs,
    reservations,
    submissions,
    task_specs,
    tasks,
)

_DIALECT = sqlite.dialect(paramstyle="qmark")
# Rows of one statement, largest first; 512 tasks are 17,408 values, SQLite's bound is 32,766.
_ROWS_PER_STATEMENT = (512, 128, 16, 4, 1)
# Up to so many changed rows a plain UPDATE for each is the quickest.
ROWS_ONE_BY_ONE = 8


def compiled(statement: sa.ClauseElement) -> str:
    """Return a statement as text for SQLite, values marked by `?`."""
    return str(statement.compile(dialect=_DIALECT))


class RowsStatement:
    """A statement over any number of rows; its text for one row is made at its first use."""

    def __init__(self, width: int, build: Callable[[], sa.ClauseElement]) -> None:
        """Take the number of values of a row, and what makes the statement for one row."""
        self._marks = f"({', '.join('?' * width)})"
        self._build = build
        self._texts: dict[int, str] = {}

    def calls(self, rows: Sequence[NewRow]) -> Iterator[tuple[str, list[object]]]:
        """Yield the texts to run, each with its values, that together cover all rows."""
        start = 0
        for count in _ROWS_PER_STATEMENT:
            while len(rows) - start >= count:
                yield self._text(count), list(chain.from_iterable(rows[start : start + count]))
                start += count

    def _text(self, count: int) -> str:
        text = self._texts.get(count)
        if text is None:
            # Compiling it for 1,024 rows would take 0.3 s; only the marks of a row repeat.
            before, marks, after = compiled(self._build()).partition(self._marks)
            assert marks
            assert "?" not in before + after
            text = self._texts[count] = before + ", ".join([marks] * count) + after
        return text


# Written out, because SQLite's dialect would otherwise ask for a value of its own at each call.
_NO_OFFSET: sa.ColumnElement[int] = sa.literal_column("0", sa.Integer)
_ONE: sa.ColumnElement[int] = sa.literal_column("1", sa.Integer)
# Literally as the partial index over arrays has it, which SQLite would not use for a `?`.
_IN_ARRAY: sa.ColumnElement[bool] = tasks.c.array_id > sa.literal_column("0", sa.Integer)


def _insert(table: sa.Table) -> RowsStatement:
    return RowsStatement(len(table.columns), lambda: sa.insert(table))


def _insert_or_replace(table: sa.Table) -> RowsStatement:
    def build() -> sa.ClauseElement:
        insert = sqlite.insert(table)
        return insert.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={
                column.name: insert.excluded[column.name]
                for column in table.columns
                if not column.primary_key
            },
        )

    return RowsStatement(len(table.columns), build)


def _update_tasks() -> sa.ClauseElement:
    columns = [tasks.c.id, *TASK_PROGRESS]
    new = sa.values(*(sa.column(column.name, column.type) for column in columns), name="new")
    # The zeros are only marks; what is bound in their place comes with the call.
    values = new.data([(0,) * len(columns)]).cte("new")
    return (
        sa.update(tasks)
        .where(tasks.c.id == values.c.id)
        .values({column.name: values.c[column.name] for column in TASK_PROGRESS})
    )


# New tasks, and their specifications.
INSERT_TASKS = _insert(tasks)
INSERT_TASK_SPECS = _insert(task_specs)
# What has changed in tasks that are there already: id, then TASK_PROGRESS.
UPDATE_TASKS = RowsStatement(1 + len(TASK_PROGRESS), _update_tasks)


@cache
def update_task() -> str:
    """Change one task that is there already. Values: TASK_PROGRESS, then its id."""
    values: dict[str, sa.BindParameter[object]] = {
        column.name: sa.bindparam(f"new_{column.name}") for column in TASK_PROGRESS
    }
    return compiled(sa.update(tasks).where(tasks.c.id == sa.bindparam("key")).values(values))


SAVE_ATTEMPTS = _insert_or_replace(attempts)
SAVE_OUTPUTS = _insert_or_replace(outputs)
SAVE_NODES = _insert_or_replace(nodes)
SAVE_RESERVATIONS = _insert_or_replace(reservations)
SAVE_SUBMISSIONS = _insert_or_replace(submissions)
SAVE_ALERTS = _insert_or_replace(alerts)
SAVE_COUNTERS = _insert_or_replace(counters)


@cache
def delete_node() -> str:
    """Forget a node. Values: its id."""
    return compiled(sa.delete(nodes).where(nodes.c.id == sa.bindparam("id")))


@cache
def delete_reservation() -> str:
    """Forget a reservation. Values: its id."""
    return compiled(sa.delete(reservations).where(reservations.c.id == sa.bindparam("id")))


@cache
def select_reservations() -> str:
    """All reservations, by id."""
    return compiled(sa.select(reservations).order_by(reservations.c.id))


@cache
def select_array() -> str:
    """Ids of an array's elements, by id. Values: the array."""
    return compiled(
        sa.select(tasks.c.id)
        .where(_IN_ARRAY, tasks.c.array_id == sa.bindparam("array_id"))
        .order_by(tasks.c.id)
    )


@cache
def select_array_element() -> str:
    """Ids of one element of an array. Values: the array, the index."""
    return compiled(
        sa.select(tasks.c.id).where(
            _IN_ARRAY,
            tasks.c.array_id == sa.bindparam("array_id"),
            tasks.c.array_index == sa.bindparam("array_index"),
        )
    )


@cache
def select_ended_states() -> str:
    """States of what has ended of a task or an array. Values: its id, its id again."""
    return compiled(
        sa.select(tasks.c.state)
        .where(
            tasks.c.ended.is_(True),
            sa.or_(
                tasks.c.id == sa.bindparam("id"),
                sa.and_(_IN_ARRAY, tasks.c.array_id == sa.bindparam("array_id")),
            ),
        )
        .distinct()
    )


@cache
def select_task_ids_filtered(state: bool, name: bool, user: bool, since: bool, array: bool) -> str:
    """Ids of tasks, newest first. At most one state at a time, so that the index gives them in
    order: with several, all tasks of those states would be sorted for one page.

    Values: those asked for in this order, the id they are below, how many.
    """
    conditions: list[sa.ColumnElement[bool]] = []
    if state:
        conditions.append(tasks.c.state == sa.bindparam("state"))
    if name:
        conditions.append(tasks.c.name == sa.bindparam("name"))
    if user:
        conditions.append(tasks.c.user == sa.bindparam("user"))
    if since:
        conditions.append(tasks.c.submitted_at_ns >= sa.bindparam("since_ns"))
    if array:
        conditions.append(_IN_ARRAY)
        conditions.append(tasks.c.array_id == sa.bindparam("array_id"))
    return compiled(
        sa.select(tasks.c.id)
        .where(*conditions, tasks.c.id < sa.bindparam("before_id"))
        .order_by(tasks.c.id.desc())
        .limit(sa.bindparam("count"))
        .offset(_NO_OFFSET)
    )


@cache
def delete_alert() -> str:
    """Forget an alert. Values: name, node_id, task_id."""
    return compiled(
        sa.delete(alerts).where(
            alerts.c.name == sa.bindparam("name"),
            alerts.c.node_id == sa.bindparam("node_id"),
            alerts.c.task_id == sa.bindparam("task_id"),
        )
    )


def _ids() -> sa.Select[tuple[int]]:
    """A set of ids, given as one JSON array."""
    values = sa.func.json_each(sa.bindparam("ids")).table_valued("value")
    return sa.select(values.c.value)


def _whole_tasks() -> sa.Select[tuple[object, ...]]:
    # Outer, so that a task without a specification is noticed as damage, not left out.
    return sa.select(*tasks.columns, task_specs.c.spec).outerjoin_from(
        tasks, task_specs, task_specs.c.task_id == tasks.c.id
    )


@cache
def select_open_tasks() -> str:
    """All tasks that have not ended, by id."""
    return compiled(_whole_tasks().where(tasks.c.ended.is_(False)).order_by(tasks.c.id))


@cache
def select_tasks_before() -> str:
    """Tasks of all states, newest first. Values: the id they are below, how many."""
    return compiled(
        _whole_tasks()
        .where(tasks.c.id < sa.bindparam("before_id"))
        .order_by(tasks.c.id.desc())
        .limit(sa.bindparam("count"))
        .offset(_NO_OFFSET)
    )


@cache
def select_tasks_by_id() -> str:
    """The tasks of a set of ids, newest first. Values: the ids as a JSON array."""
    return compiled(_whole_tasks().where(tasks.c.id.in_(_ids())).order_by(tasks.c.id.desc()))


@cache
def select_task_ids_known() -> str:
    """Those of a set of ids that are tasks. Values: the ids as a JSON array."""
    return compiled(sa.select(tasks.c.id).where(tasks.c.id.in_(_ids())))


@cache
def select_attempts() -> str:
    """A task's attempts, the last first. Values: task_id, how many."""
    return compiled(
        sa.select(attempts)
        .where(attempts.c.task_id == sa.bindparam("task_id"))
        .order_by(attempts.c.number.desc())
        .limit(sa.bindparam("count"))
        .offset(_NO_OFFSET)
    )


@cache
def select_next_category() -> str:
    """The first category behind one by name, with attempts, or NULL. Values: that one."""
    return compiled(
        sa.select(sa.func.min(attempts.c.category)).where(
            attempts.c.category > sa.bindparam("category")
        )
    )


@cache
def select_attempts_of_category() -> str:
    """The latest attempts of a category, the last first. Values: category, how many."""
    return compiled(
        sa.select(attempts)
        .where(attempts.c.category == sa.bindparam("category"))
        .order_by(
            attempts.c.ended_at_ns.desc(), attempts.c.task_id.desc(), attempts.c.number.desc()
        )
        .limit(sa.bindparam("count"))
        .offset(_NO_OFFSET)
    )


@cache
def select_output() -> str:
    """The kept output of an attempt. Values: task_id, attempt, stream."""
    return compiled(
        sa.select(outputs.c.data).where(
            outputs.c.task_id == sa.bindparam("task_id"),
            outputs.c.attempt == sa.bindparam("attempt"),
            outputs.c.stream == sa.bindparam("stream"),
        )
    )


@cache
def select_nodes() -> str:
    """All nodes, by id."""
    return compiled(sa.select(nodes).order_by(nodes.c.id))


@cache
def select_alerts() -> str:
    """All alerts, by name, node and task."""
    order = (alerts.c.name, alerts.c.node_id, alerts.c.task_id)
    return compiled(sa.select(alerts).order_by(*order))


@cache
def select_submissions() -> str:
    """Submissions, newest first. Values: how many."""
    return compiled(
        sa.select(submissions)
        .order_by(submissions.c.first_task_id.desc())
        .limit(sa.bindparam("count"))
        .offset(_NO_OFFSET)
    )


@cache
def select_counter() -> str:
    """A counter's value. Values: its name."""
    return compiled(sa.select(counters.c.value).where(counters.c.name == sa.bindparam("name")))


@cache
def select_last_task_id() -> str:
    """The greatest id of a task, or NULL."""
    return compiled(sa.select(sa.func.max(tasks.c.id)))


@cache
def select_oldest_kept() -> str:
    """The first ended task of those to keep. Values: how many to keep, minus 1.

    No row when there are fewer.
    """
    return compiled(
        sa.select(tasks.c.ended_at_ns, tasks.c.id)
        .where(tasks.c.ended.is_(True))
        .order_by(tasks.c.ended_at_ns.desc(), tasks.c.id.desc())
        .limit(_ONE)
        .offset(sa.bindparam("kept"))
    )


@cache
def select_ended_task_ids() -> str:
    """Ids of the tasks that ended first. Values: (ended_at_ns, id) they are below, how many."""
    return compiled(
        sa.select(tasks.c.id)
        .where(
            tasks.c.ended.is_(True),
            sa.tuple_(tasks.c.ended_at_ns, tasks.c.id)
            < sa.tuple_(sa.bindparam("ended_at_ns"), sa.bindparam("id")),
        )
        .order_by(tasks.c.ended_at_ns, tasks.c.id)
        .limit(sa.bindparam("count"))
        .offset(_NO_OFFSET)
    )


@cache
def delete_tasks() -> str:
    """Forget ended tasks and what hangs on them. Values: their ids as a JSON array."""
    return compiled(sa.delete(tasks).where(tasks.c.ended.is_(True), tasks.c.id.in_(_ids())))


@cache
def delete_old_submissions() -> str:
    """Forget the oldest submissions. Values: how many to keep, how many at most to forget."""
    newest_to_forget = (
        sa.select(submissions.c.first_task_id)
        .order_by(submissions.c.first_task_id.desc())
        .limit(_ONE)
        .offset(sa.bindparam("kept"))
        .scalar_subquery()
    )
    forgotten = (
        sa.select(submissions.c.request_id)
        .where(submissions.c.first_task_id <= newest_to_forget)
        .order_by(submissions.c.first_task_id)
        .limit(sa.bindparam("count"))
        .offset(_NO_OFFSET)
    )
    return compiled(sa.delete(submissions).where(submissions.c.request_id.in_(forgotten)))
