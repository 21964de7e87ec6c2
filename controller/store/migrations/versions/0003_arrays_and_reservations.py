"""Arrays, retries with a delay, changed priorities, labels and GPUs of nodes, reservations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, the index of arrays and the table of reservations."""
    for column in (
        _number("not_before_ns"),
        _words("gpu_indexes"),
        sa.Column("priority_set", sa.BigInteger, nullable=True),
        _number("array_id"),
        _number("array_index"),
        _words("name"),
    ):
        op.add_column("tasks", column)
    array_id: sa.ColumnClause[int] = sa.column("array_id", sa.BigInteger)
    op.create_index(
        "tasks_array",
        "tasks",
        ["array_id", "array_index"],
        sqlite_where=array_id > 0,
        postgresql_where=array_id > 0,
    )
    # A name could only be read out of each specification; tasks of before are found by it too.
    op.execute(
        "UPDATE tasks SET name = coalesce((SELECT json_extract(spec, '$.name') FROM task_specs"
        " WHERE task_specs.task_id = tasks.id), '')"
    )
    for column in (_words("labels"), _number("gpus"), _number("drain_deadline_ns")):
        op.add_column("nodes", column)
    op.create_table(
        "reservations",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        _text("request_id"),
        _text("node_id"),
        _integer("memory_bytes"),
        _text("purpose"),
        _text("user"),
        _integer("created_at_ns"),
        _integer("expires_at_ns"),
    )


def _integer(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _words(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")
