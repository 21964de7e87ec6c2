"""Runs the migrations on the connection that `controller.store.schema` hands over."""

from __future__ import annotations

from alembic import context

from controller.store.tables import METADATA

# The caller holds the transaction, so that a failed migration leaves the store as it was.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
)
context.run_migrations()
