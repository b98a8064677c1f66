"""
One SQLite file: one writer, several readers.

All writes of a process go through one connection behind one fair lock, and every transaction is `BEGIN IMMEDIATE`, so
within a transaction nothing that was read can have changed and positions given inside it are in commit order. Readers
have connections of their own and never wait for the writer. `busy_timeout` is for other processes only.

`write_raw()` hands out a transaction that commits when the block ends and rolls back if it raises; a
process that dies inside the block has written nothing, one that dies behind it has written everything
(`synchronous=FULL`). The hot paths use `batch()`: a whole transaction as one function on the driver's own thread, since
every single statement that crosses threads costs more than SQLite takes for it. `checkpoint()` moves what the log holds
into the file beside the writer; left to SQLite, a commit would stop for it every thousand pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from receiver.runtime.data_dir import DataUnusable, usable

T = TypeVar("T")
_CONNECT: dict[str, Any] = {"isolation_level": None, "cached_statements": 512}
"""Of the hot paths, whose statements come in as many lengths as batches (see `execute_rows`)."""
_LOG_PAGES = 25_000
"""100 MB: where a commit checkpoints after all, should nobody else do it."""
_LAST_QUERY_SECONDS = 5.0
_RESTORE = "move it away and restore a backup (`receiver restore`)"
_WRITABLE = "give the file and its directory to the user that this runs as, on a disk that can be written"
_NEWER = "install the version that it was last used with, or a newer one"
_REMEDIES = {
    sqlite3.SQLITE_NOTADB: _RESTORE,
    sqlite3.SQLITE_CORRUPT: _RESTORE,
    sqlite3.SQLITE_READONLY: _WRITABLE,
    sqlite3.SQLITE_CANTOPEN: _WRITABLE,
    sqlite3.SQLITE_PERM: _WRITABLE,
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_IOERR: "see what the system's log says of this disk",
    sqlite3.SQLITE_BUSY: "another process holds it; try again, or end that process",
}
"""By SQLite's primary code: what is wrong with the file. Everything else is a mistake of ours."""


class Database:
    """An open database. Make one with `Database.open`."""

    def __init__(self, path: Path, writer: AsyncEngine, readers: AsyncEngine) -> None:
        self.path = path
        self._writer = writer
        self._readers = readers
        self._lock = asyncio.Lock()
        self._connection: AsyncConnection | None = None
        self._raw: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None
        self._keeper: aiosqlite.Connection | None = None
        self._drivers: list[aiosqlite.Connection] = []

    @classmethod
    async def open(cls, path: Path, *, readers: int = 4) -> Database:
        """Open *path*, make it if it is not there, and bring it to the newest schema. Raises `DataUnusable`."""
        await asyncio.to_thread(_make_private, path)
        url = URL.create("sqlite+aiosqlite", database=str(path))
        writer = create_async_engine(url, connect_args=_CONNECT, hide_parameters=True, pool_size=1, max_overflow=0)
        reading = create_async_engine(
            url, connect_args={"isolation_level": None}, hide_parameters=True, pool_size=readers, max_overflow=4
        )
        event.listen(writer.sync_engine, "connect", _prepare_writer)
        event.listen(writer.sync_engine, "begin", _begin_immediate)
        event.listen(reading.sync_engine, "connect", _prepare_reader)
        database = cls(path, writer, reading)
        for engine in (writer, reading):
            event.listen(engine.sync_engine, "connect", database._remember)
        try:
            with usable_database(path):
                await database._connect(path)
        except BaseException:
            await database.close()
            raise
        return database

    async def _connect(self, path: Path) -> None:
        connection = await self._writer.connect()
        await connection.run_sync(upgrade)
        await connection.commit()
        pooled = await connection.get_raw_connection()
        driver = pooled.driver_connection
        assert isinstance(driver, aiosqlite.Connection)
        await connection.rollback()
        self._connection, self._raw = connection, driver
        self._reader = await aiosqlite.connect(path, **_CONNECT)
        await on_its_thread(self._reader, _prepare_reader, None)
        self._keeper = await aiosqlite.connect(path, isolation_level=None)
        await on_its_thread(self._keeper, _prepare_writer, None)

    async def close(self) -> None:
        """Close all connections and wait for their threads: one that outlived the event loop would die complaining."""
        async with self._lock:
            if self._connection is not None:
                await self._connection.close()
            for one in (self._reader, self._keeper):
                if one is not None:
                    await one.close()
            self._connection = self._raw = self._reader = self._keeper = None
        await self._readers.dispose()
        await self._writer.dispose()
        for driver in self._drivers:
            with contextlib.suppress(ValueError):  # closed already
                await driver.interrupt()
            await asyncio.to_thread(driver._thread.join, _LAST_QUERY_SECONDS)

    @contextlib.asynccontextmanager
    async def write_raw(self) -> AsyncIterator[aiosqlite.Connection]:
        """A transaction, on the driver alone."""
        async with self._lock:
            raw = self._open_writer()
            try:
                await raw.execute("BEGIN IMMEDIATE")
                yield raw
                await raw.execute("COMMIT")
            except BaseException:
                # On the driver's thread, behind whatever still runs there; without a transaction it does nothing.
                await asyncio.shield(raw.rollback())
                raise

    async def batch(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """
        Run *work* in one transaction on the driver's thread and return what it returns.

        Committed when this returns. A cancelled caller does not know: all of it is written or nothing.
        """
        async with self._lock:
            raw = self._open_writer()
            return await on_its_thread(raw, _in_one_transaction, work)

    async def statement(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`batch` for *work* that is one statement: that is a transaction by itself, and the fastest there is."""
        async with self._lock:
            return await on_its_thread(self._open_writer(), _by_itself, work)

    async def glance(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run *work*, which only reads, on a reader's thread: the hot paths' `read()`."""
        if self._reader is None:
            raise RuntimeError("the database is closed")
        return await on_its_thread(self._reader, work)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A consistent view, on a connection of its own."""
        async with self._readers.connect() as connection:
            yield connection

    def _open_writer(self) -> aiosqlite.Connection:
        if self._raw is None:
            raise RuntimeError("the database is closed")
        return self._raw

    def _remember(self, connection: Any, _: Any) -> None:
        """The driver has a thread for each connection; one whose query was cancelled twice is not waited for."""
        self._drivers = [driver for driver in self._drivers if driver._thread.is_alive()]
        self._drivers.append(connection.driver_connection)

    async def checkpoint(self) -> None:
        """Move what was committed from the log into the file, on a thread of its own; waits for nobody."""
        if self._keeper is not None:
            await on_its_thread(self._keeper, _checkpoint)

    async def write_nothing(self) -> None:
        """Commit a change that changes nothing; raises what keeps anything from being written."""
        await self.batch(lambda db: db.execute("UPDATE alembic_version SET version_num = version_num"))

    async def schema_is_current(self) -> bool:
        async with self.read() as connection:
            current = await connection.run_sync(_revision)
        return current == newest_schema()


def newest_schema() -> str | None:
    """The revision that this version of the code wants."""
    return _script().get_current_head()


@contextlib.contextmanager
def usable_database(path: Path) -> Iterator[None]:
    """What SQLite has against the file at *path* becomes `DataUnusable`; a mistake of ours stays what it is."""
    try:
        yield
    except CommandError as exc:
        raise DataUnusable(path, "its schema is not known to this version", _NEWER) from exc
    except (DBAPIError, sqlite3.Error) as exc:
        said: BaseException | None = exc.orig if isinstance(exc, DBAPIError) else exc
        # The drivers between us and SQLite wrap what they pass on.
        while said is not None and not isinstance(said, sqlite3.Error):
            said = said.__cause__
        remedy = _REMEDIES.get(getattr(said, "sqlite_errorcode", 0) & 0xFF, "")
        if not remedy:
            raise
        raise DataUnusable(path, f"can't be used: {said}", remedy) from exc


def open_to_read(path: Path) -> sqlite3.Connection:
    """A plain connection that can neither write nor make the file."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def check_ours(path: Path, *, remedy: str) -> None:
    """The database at *path* must have our tables and a schema that we know. Raises `DataUnusable`; changes nothing."""
    with usable_database(path), contextlib.closing(open_to_read(path)) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"alembic_version", "jobs", "evidence"} <= names:
            raise DataUnusable(path, "is no database of a receiver", remedy)
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    if row is None:
        raise DataUnusable(path, "is no database of a receiver", remedy)
    if row[0] not in {one.revision for one in _script().walk_revisions()}:
        raise DataUnusable(path, "its schema is not known to this version", _NEWER)


def _make_private(path: Path) -> None:
    """Secrets of endpoints are in there: a new file, and the log files beside it, are for their owner only."""
    with usable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)


def upgrade(connection: Connection) -> None:
    """Run the migrations that *connection*'s database lacks."""
    config = _config()
    config.attributes["connection"] = connection
    if _revision(connection) != newest_schema():
        command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


async def on_its_thread(db: aiosqlite.Connection, work: Callable[..., T], *more: Any) -> T:
    """Run `work(connection, *more)` on the thread of *db*: many statements for the price of one crossing."""
    return cast(T, await db._execute(work, db._conn, *more))  # type: ignore[no-untyped-call]


def _checkpoint(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _by_itself(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    if connection.in_transaction:
        raise RuntimeError("a transaction is open: what is written now would not be committed")
    return work(connection)


def _in_one_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise
    return result


def _prepare_writer(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.execute("PRAGMA cache_size=-65536")
    cursor.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
    cursor.execute("PRAGMA journal_size_limit=67108864")
    cursor.close()


def _prepare_reader(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA query_only=ON")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
