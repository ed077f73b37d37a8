"""Run by alembic, never imported: takes the connection that `gateway/store/schema.py` hands it through its steps."""

from __future__ import annotations

from alembic import context

from gateway.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite alters a table by writing it anew.
    render_as_batch=True,
    # Every step or none: what is killed half-way left the file as it was.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
