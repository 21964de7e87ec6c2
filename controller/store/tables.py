"""The tables of the store and the revision they stand for.

A change here needs a new migration and a new HEAD_REVISION; a test holds the two to the same
schema. States are words, not numbers, so that a new state needs no migration.
"""

from __future__ import annotations

import sqlalchemy as sa

HEAD_REVISION = "0004"
NO_REVISION = "0000"  # a store without any migration
APPLICATION_ID = 0x4D415353  # "MASS", in the header of an SQLite file

METADATA = sa.MetaData()

# Only a column of exactly this type is SQLite's own row key; a second index would double the cost.
_ROW_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _integer(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


# Columns that an upgrade added: rows of before need a value.
def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _words(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false())


tasks = sa.Table(
    "tasks",
    METADATA,
    sa.Column("id", _ROW_KEY, primary_key=True, autoincrement=False),
    _text("user"),
    _integer("submitted_at_ns"),
    # From here on the columns change with the task.
    _text("state"),
    sa.Column("ended", sa.Boolean, nullable=False),
    _text("reason_code"),
    _text("reason"),
    _integer("attempt"),
    _text("node_id"),
    _text("instance_id"),
    _integer("assigned_at_ns"),
    _integer("started_at_ns"),
    _integer("ended_at_ns"),
    _integer("exit_code", nullable=True),
    _integer("signal", nullable=True),
    _integer("memory_peak_bytes"),
    _integer("memory_limit_bytes", nullable=True),
    _text("oom_cause"),
    _integer("failures"),
    _integer("memory_requeues"),
    sa.Column("cancelled", sa.Boolean, nullable=False),
    _number("not_before_ns"),
    _words("gpu_indexes"),
    _integer("priority_set", nullable=True),
    # These stay as the submit made them. An upgrade can only add at the end.
    _number("array_id"),
    _number("array_index"),
    _words("name"),
    # And these change again.
    _number("memory_size_bytes"),
    _number("memory_expected_peak_bytes"),
    _flag("memory_elastic"),
    _words("memory_reason"),
    _number("memory_reached_bytes"),
    _number("memory_spared"),
    _number("guard_kills"),
)
_FIXED = ("id", "user", "submitted_at_ns", "array_id", "array_index", "name")
TASK_PROGRESS = tuple(column for column in tasks.columns if column.name not in _FIXED)

# For the open tasks at start: by this and not by their states, so that one in a state that cannot
# be read is noticed instead of left out.
sa.Index(
    "tasks_open",
    tasks.c.id,
    sqlite_where=tasks.c.ended.is_(False),
    postgresql_where=tasks.c.ended.is_(False),
)
# For a list of one state, newest first.
sa.Index("tasks_state", tasks.c.state, tasks.c.id)
# For the elements of an array.
sa.Index(
    "tasks_array",
    tasks.c.array_id,
    tasks.c.array_index,
    sqlite_where=tasks.c.array_id > 0,
    postgresql_where=tasks.c.array_id > 0,
)
# For pruning, oldest end first. With `ended`, although it says nothing new: SQLite would look it up
# in the table, for each of a million rows that are counted off.
sa.Index(
    "tasks_ended",
    tasks.c.ended_at_ns,
    tasks.c.id,
    tasks.c.ended,
    sqlite_where=tasks.c.ended.is_(True),
    postgresql_where=tasks.c.ended.is_(True),
)


def _task_id() -> sa.Column[int]:
    return sa.Column(
        "task_id", _ROW_KEY, sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False
    )


# Apart from `tasks`, because a specification can be 256 KiB and every change of a task's state
# would write it again.
task_specs = sa.Table(
    "task_specs",
    METADATA,
    _task_id(),
    _text("spec"),
    sa.PrimaryKeyConstraint("task_id"),
)

attempts = sa.Table(
    "attempts",
    METADATA,
    _task_id(),
    _integer("number"),
    _text("node_id"),
    _text("outcome"),
    _integer("assigned_at_ns"),
    _integer("started_at_ns"),
    _integer("ended_at_ns"),
    _integer("exit_code", nullable=True),
    _integer("signal", nullable=True),
    _integer("memory_peak_bytes"),
    _integer("memory_limit_bytes", nullable=True),
    _text("oom_cause"),
    _text("reason"),
    # What its task asked for, for learning.
    _words("category"),
    _integer("input_bytes", nullable=True),
    _integer("declared_bytes", nullable=True),
    _number("memory_size_bytes"),
    sa.PrimaryKeyConstraint("task_id", "number"),
    sqlite_with_rowid=False,
)
# For the latest of each category at start.
sa.Index("attempts_category", attempts.c.category, attempts.c.ended_at_ns)

outputs = sa.Table(
    "outputs",
    METADATA,
    _task_id(),
    _integer("attempt"),
    _text("stream"),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("task_id", "attempt", "stream"),
)

nodes = sa.Table(
    "nodes",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    _text("machine_id"),
    _text("boot_id"),
    _text("instance_id"),
    _text("agent_version"),
    _integer("memory_total_bytes"),
    _integer("memory_declared_bytes", nullable=True),
    sa.Column("cpus", sa.Double, nullable=False),
    _text("enforcement"),
    _integer("joined_at_ns"),
    _text("scheduling"),
    _text("scheduling_reason"),
    _text("scheduling_by"),
    _integer("scheduling_since_ns"),
    _words("labels"),
    _number("gpus"),
    _number("drain_deadline_ns"),
    sqlite_with_rowid=False,
)

# Memory set aside for something that is not a task.
reservations = sa.Table(
    "reservations",
    METADATA,
    sa.Column("id", _ROW_KEY, primary_key=True, autoincrement=False),
    _text("request_id"),
    _text("node_id"),
    _integer("memory_bytes"),
    _text("purpose"),
    _text("user"),
    _integer("created_at_ns"),
    _integer("expires_at_ns"),
)

submissions = sa.Table(
    "submissions",
    METADATA,
    sa.Column("request_id", sa.Text, primary_key=True),
    _integer("first_task_id"),
    _integer("task_count"),
    _integer("at_ns"),
    sqlite_with_rowid=False,
)
sa.Index("submissions_order", submissions.c.first_task_id)

alerts = sa.Table(
    "alerts",
    METADATA,
    _text("name"),
    _text("node_id"),
    _integer("task_id"),
    _text("state"),
    _text("labels"),
    _text("annotations"),
    sa.Column("value", sa.Double),  # NULL is "not a number", which SQLite cannot hold
    _integer("active_at_ns"),
    _integer("fired_at_ns"),
    _integer("resolved_at_ns"),
    sa.PrimaryKeyConstraint("name", "node_id", "task_id"),
    sqlite_with_rowid=False,
)

# What must outlive the rows it was counted from.
counters = sa.Table(
    "counters",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    _integer("value"),
    sqlite_with_rowid=False,
)

# As alembic makes it; written here so that a new store needs no alembic.
alembic_version = sa.Table(
    "alembic_version",
    METADATA,
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
