"""Sizes that are learned: what was decided for a task, and what its attempts told."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and the index by which the latest attempts of a category are found."""
    for column in (
        _number("memory_size_bytes"),
        _number("memory_expected_peak_bytes"),
        sa.Column("memory_elastic", sa.Boolean, nullable=False, server_default=sa.false()),
        _words("memory_reason"),
        _number("memory_reached_bytes"),
        _number("memory_spared"),
        _number("guard_kills"),
    ):
        op.add_column("tasks", column)
    for column in (
        _words("category"),
        sa.Column("input_bytes", sa.BigInteger, nullable=True),
        sa.Column("declared_bytes", sa.BigInteger, nullable=True),
        _number("memory_size_bytes"),
    ):
        op.add_column("attempts", column)
    # Until now every task had its request set aside, and its specification does not say whether
    # that was declared or the default: it counts as declared.
    spec = "SELECT json_extract(spec, '$.{}') FROM task_specs WHERE task_specs.task_id = {}"
    request = spec.format("memory_request_bytes", "tasks.id")
    op.execute(
        f"UPDATE tasks SET memory_size_bytes = coalesce(({request}), 0)"
        " WHERE attempt > 0 AND state <> 'PENDING'"
    )
    request = spec.format("memory_request_bytes", "attempts.task_id")
    category = spec.format("category", "attempts.task_id")
    op.execute(
        f"UPDATE attempts SET category = coalesce(({category}), ''),"
        f" declared_bytes = ({request}), memory_size_bytes = coalesce(({request}), 0)"
    )
    op.create_index("attempts_category", "attempts", ["category", "ended_at_ns"])


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _words(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")
