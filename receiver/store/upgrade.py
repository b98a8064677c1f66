"""
Migrations, run by Alembic, on either engine.

Imported where a database lacks some and nowhere else: with SQLAlchemy it takes as long as all else that a command
imports.
"""

from __future__ import annotations

import sqlite3

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, StaticPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from receiver.store.schema import MIGRATIONS, lacks_migrations


def upgrade_sqlite(connection: sqlite3.Connection) -> None:
    """
    Run the migrations that *connection*'s database lacks in one transaction, and close the connection.

    It must be in autocommit mode. Raises `UnknownSchema` and `sqlite3.Error`.
    """
    engine = create_engine("sqlite://", creator=lambda: connection, hide_parameters=True, poolclass=StaticPool)
    event.listen(engine, "begin", _begin_immediate)
    try:
        with engine.begin() as begun:
            upgrade(begun)
    except DBAPIError as exc:
        if isinstance(exc.orig, sqlite3.Error):
            raise exc.orig from None  # it is the cause of this one: no cycle
        raise
    finally:
        engine.dispose()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def upgrade(connection: Connection) -> None:
    """Run the migrations that *connection*'s database lacks, in its transaction. Raises `UnknownSchema`."""
    if not lacks_migrations(MigrationContext.configure(connection).get_current_revision()):
        return  # another process ran them before this one had the lock
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
