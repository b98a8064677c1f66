"""
Migrations, run by Alembic, on either engine.

Imported where a database lacks some and nowhere else: with SQLAlchemy it takes as long as all else that a command
imports.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, NullPool, StaticPool, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

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
            _upgrade(begun)
    except DBAPIError as exc:
        if isinstance(exc.orig, sqlite3.Error):
            raise exc.orig from None  # it is the cause of this one: no cycle
        raise
    finally:
        engine.dispose()


async def upgrade_postgresql(connect: Callable[[], Awaitable[Any]], *, hold: int) -> None:
    """
    Run the migrations that a PostgreSQL database lacks, in one transaction that has the advisory lock *hold*.

    *connect* returns an asyncpg connection. Raises `UnknownSchema`, and what *connect* does.
    """
    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.begin() as begun:
            await begun.execute(text(f"SELECT pg_advisory_xact_lock({hold})"))
            await begun.run_sync(_upgrade)
    finally:
        await engine.dispose()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _upgrade(connection: Connection) -> None:
    if not lacks_migrations(MigrationContext.configure(connection).get_current_revision()):
        return  # another process ran them before this one had the lock
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
