"""Alembic's entry: the caller hands over an open connection in `config.attributes`."""

from alembic import context
from sqlalchemy import Connection

from receiver.store.tables import metadata

connection = context.config.attributes["connection"]
assert isinstance(connection, Connection)
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
