"""The first tables: tasks, attempts, outputs, nodes, submissions, alerts, counters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    _make_tasks()
    _make_what_hangs_on_tasks()
    _make_the_rest()


def _row_key() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _integer(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _task_id() -> sa.Column[int]:
    key = sa.ForeignKey("tasks.id", ondelete="CASCADE")
    return sa.Column("task_id", _row_key(), key, nullable=False)


def _make_tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", _row_key(), primary_key=True, autoincrement=False),
        _text("user"),
        _integer("submitted_at_ns"),
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
    )
    ended: sa.ColumnClause[bool] = sa.column("ended", sa.Boolean)
    op.create_index(
        "tasks_open",
        "tasks",
        ["id"],
        sqlite_where=ended.is_(False),
        postgresql_where=ended.is_(False),
    )
    op.create_index("tasks_state", "tasks", ["state", "id"])
    op.create_index(
        "tasks_ended",
        "tasks",
        ["ended_at_ns", "id", "ended"],
        sqlite_where=ended.is_(True),
        postgresql_where=ended.is_(True),
    )


def _make_what_hangs_on_tasks() -> None:
    op.create_table(
        "task_specs",
        _task_id(),
        _text("spec"),
        sa.PrimaryKeyConstraint("task_id"),
    )
    op.create_table(
        "attempts",
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
        sa.PrimaryKeyConstraint("task_id", "number"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "outputs",
        _task_id(),
        _integer("attempt"),
        _text("stream"),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("task_id", "attempt", "stream"),
    )


def _make_the_rest() -> None:
    op.create_table(
        "nodes",
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
        sqlite_with_rowid=False,
    )
    op.create_table(
        "submissions",
        sa.Column("request_id", sa.Text, primary_key=True),
        _integer("first_task_id"),
        _integer("task_count"),
        _integer("at_ns"),
        sqlite_with_rowid=False,
    )
    op.create_index("submissions_order", "submissions", ["first_task_id"])
    op.create_table(
        "alerts",
        _text("name"),
        _text("node_id"),
        _text("state"),
        _text("labels"),
        _text("annotations"),
        sa.Column("value", sa.Double),
        _integer("active_at_ns"),
        _integer("fired_at_ns"),
        _integer("resolved_at_ns"),
        sa.PrimaryKeyConstraint("name", "node_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.Text, primary_key=True),
        _integer("value"),
        sqlite_with_rowid=False,
    )
