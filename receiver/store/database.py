"""
The storage interface: what the rest of the code sees of a database.

A transaction is a generator of statements (`receiver.store.statements`), which an engine drives: SQLite on a thread of
its own, PostgreSQL statement by statement. Work that is called again because another transaction interfered starts from
scratch, so everything that it uses from outside is read-only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from receiver.store.engines.sqlite import SqliteDatabase
from receiver.store.errors import DatabaseRefused
from receiver.store.schema import newest_schema
from receiver.store.sqlite_file import is_at_newest_schema
from receiver.store.statements import Row, Work

T = TypeVar("T")


class Database(Protocol):
    """An open database. Everything raises `receiver.store.errors.StoreError` where the database is at fault."""

    async def write(self, work: Callable[[], Work[T]], *, attempts: int = 5) -> T:
        """
        Run *work* in one transaction, committed when this returns. If the caller is cancelled, the outcome is unknown.

        If another transaction interferes (`Conflict`), *work* is called again, up to *attempts* times in all.
        """
        ...

    async def read(self, work: Callable[[], Work[T]]) -> T:
        """Run *work*, which only reads, on a single snapshot."""
        ...

    async def append(self, table: str, columns: tuple[str, ...], rows: Sequence[Row]) -> None:
        """Insert *rows* in one transaction, in the engine's fastest way."""
        ...

    async def notify(self, channel: str) -> None:
        """Wake every listener to *channel*, in every process on the database that can be reached."""
        ...

    def listen(self, channel: str, wake: Callable[[], None]) -> None:
        """Call *wake* when *channel* is notified. A notification may be lost: sweep as well."""
        ...

    async def checkpoint(self) -> None:
        """Do the upkeep that commits postpone."""
        ...

    async def check_writable(self) -> None:
        """Commit a change that has no effect; raises the error that prevents writing, if any."""
        ...

    async def schema_is_current(self) -> bool:
        """Return whether the schema is the one that this version needs."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


async def open_database(address: Path | str, *, listen_url: str | None = None) -> Database:
    """
    Open the SQLite file at a path, or the PostgreSQL database at a URL.

    A file is created if missing, and migrated; raises `DataUnusable`. A PostgreSQL database must have been brought to
    this version's schema by `migrate`; raises `DatabaseRefused` and `DatabaseUnavailable`. *listen_url* reaches the
    same server directly, where the URL goes through a pooler.
    """
    if isinstance(address, Path):
        return await SqliteDatabase.open(address)
    database: Database = await _postgresql().PostgresqlDatabase.open(address, listen_url=listen_url)
    return database


async def migrate(address: Path | str) -> None:
    """Bring the database to the newest schema. Raises as `open_database` does."""
    if isinstance(address, Path):
        await (await SqliteDatabase.open(address)).close()
    else:
        await _postgresql().migrate(address)


async def schema_is_newest(address: Path | str) -> bool:
    """Return whether `migrate` has nothing to do. Changes nothing."""
    if isinstance(address, Path):
        return await asyncio.to_thread(is_at_newest_schema, address)
    found: str | None = await _postgresql().schema_at(address)
    return found == newest_schema()


async def transfer(path: Path, url: str) -> dict[str, int]:
    """
    Copy the SQLite file at *path*, which must not be in use, into the empty PostgreSQL database at *url*.

    Returns the number of rows of each table, all of them compared. Changes nothing at *path*. Raises
    `DatabaseRefused`, `DatabaseUnavailable`.
    """
    _postgresql()
    from receiver.store.engines.transfer import transfer as copy

    return await copy(path, url)


def _postgresql() -> Any:
    try:
        from receiver.store.engines import postgresql
    except ModuleNotFoundError as exc:
        raise DatabaseRefused(
            f"PostgreSQL needs {exc.name}, which is not installed: install the extra, upscale-receiver[postgresql]"
        ) from exc
    return postgresql
