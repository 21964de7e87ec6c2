"""Alerts may be of a task: the task joins what an alert is known by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEPT = (
    "name, node_id, state, labels, annotations, value, active_at_ns, fired_at_ns, resolved_at_ns"
)


def upgrade() -> None:
    """Make the table anew with the longer key; alerts of before are of no task."""
    op.rename_table("alerts", "alerts_of_nodes")
    op.create_table(
        "alerts",
        _text("name"),
        _text("node_id"),
        _integer("task_id"),
        _text("state"),
        _text("labels"),
        _text("annotations"),
        sa.Column("value", sa.Double),
        _integer("active_at_ns"),
        _integer("fired_at_ns"),
        _integer("resolved_at_ns"),
        sa.PrimaryKeyConstraint("name", "node_id", "task_id"),
        sqlite_with_rowid=False,
    )
    op.execute(f"INSERT INTO alerts (task_id, {_KEPT}) SELECT 0, {_KEPT} FROM alerts_of_nodes")
    op.drop_table("alerts_of_nodes")


def _integer(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)
