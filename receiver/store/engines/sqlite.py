"""
SQLite: one writer, several readers.

All writes of a process go through one connection behind one fair lock, and every transaction is `BEGIN IMMEDIATE`, so
within a transaction nothing that was read can have changed, and positions given inside it are in commit order. Readers
have connections of their own, each transaction one snapshot, and never wait for the writer. `busy_timeout` is for other
processes only.

Each connection has a thread of its own. A whole transaction runs there in one crossing, since a crossing costs more
than SQLite takes for most statements. A transaction is committed when `write` returns (`synchronous=FULL`); a process
that dies before has written nothing. If the caller is cancelled, either all of it is written or nothing.

Many rows go in one statement, and come back in one row: the driver releases the interpreter at every row, and with a
busy event loop it gets it back half a millisecond later. A batch of a hundred rows would take fifty milliseconds, with
the transaction open.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite

from receiver.store.engines.local_signals import LocalSignals
from receiver.store.engines.sqlite_statements import ROWS_AT_ONCE, execute
from receiver.store.errors import Conflict, DatabaseUnavailable
from receiver.store.schema import newest_schema
from receiver.store.sqlite_file import Presence, make_private, migrate, usable_database
from receiver.store.statements import Fetch, InsertMany, Row, Run, Statement, Work

T = TypeVar("T")
_READERS = 8
_CACHE_KIB = 32 * 1024
"""The writer's page cache. Twice as much makes `bench ingest` onto a million rows no faster."""
_LOG_PAGES = 25_000
"""100 MB: the size at which a commit checkpoints by itself, should nothing call `checkpoint`."""


class SqliteDatabase:
    """An open SQLite file. Create it with `SqliteDatabase.open`."""

    def __init__(self, path: Path, writer: _Thread, keeper: _Thread, *, readers: int) -> None:
        self.path = path
        self._presence = Presence(path)
        self._writer = writer
        self._keeper = keeper
        self._readers: list[_Thread] = []
        self._idle: list[_Thread] = []
        self._opening: set[asyncio.Task[_Thread]] = set()
        self._places = asyncio.Semaphore(readers)
        self._lock = asyncio.Lock()
        self._wakes: dict[str, list[Callable[[], None]]] = {}
        self._closed = False
        self._signals = LocalSignals(path.with_name(f"{path.name}-signals"), self._wake)

    @classmethod
    async def open(
        cls, path: Path, *, readers: int = _READERS, writer: type[sqlite3.Connection] = sqlite3.Connection
    ) -> SqliteDatabase:
        """
        Open *path*, create it if missing, and bring it to the newest schema. Raises `DataUnusable`.

        *writer* is the class of the writing connection, for tests that watch what is written.
        """
        await asyncio.to_thread(make_private, path)
        await asyncio.to_thread(migrate, path)
        threads: list[_Thread] = []
        try:
            with usable_database(path):
                for factory in (writer, sqlite3.Connection):
                    threads.append(await _Thread.start(path, _prepare_writer, factory))
        except BaseException:
            for thread in threads:
                await thread.close()
            raise
        database = cls(path, threads[0], threads[1], readers=readers)
        database._signals.open()
        return database

    async def write(self, work: Callable[[], Work[T]], *, attempts: int = 1) -> T:
        """Run *work* in one transaction. *attempts* is for engines on which transactions conflict."""
        async with self._lock:
            return await self._running(self._writer).run(self._where_it_was_opened, _in_one_transaction, work)

    async def append(self, table: str, columns: tuple[str, ...], rows: Sequence[Row]) -> None:
        """Insert *rows* in one transaction; a single statement is one by itself, and the fastest way."""
        statement = InsertMany(table, columns, rows)
        run = _in_one_transaction if len(rows) > ROWS_AT_ONCE else _by_itself
        async with self._lock:
            await self._running(self._writer).run(self._where_it_was_opened, run, lambda: _only(statement))

    async def read(self, work: Callable[[], Work[T]]) -> T:
        """Run *work*, which only reads, on a single snapshot."""
        async with self._places:
            reader = self._idle.pop() if self._idle else await self._new_reader()
            try:
                return await self._running(reader).run(_in_one_snapshot, work)
            except asyncio.CancelledError:
                reader.interrupt()
                raise
            finally:
                self._idle.append(reader)

    async def notify(self, channel: str) -> None:
        """Wake every listener to *channel*, in every process on this file and this machine."""
        self._wake(channel)
        self._signals.send(channel)

    def listen(self, channel: str, wake: Callable[[], None]) -> None:
        """Call *wake* whenever *channel* is notified."""
        self._wakes.setdefault(channel, []).append(wake)

    def _wake(self, channel: str) -> None:
        for wake in self._wakes.get(channel, ()):
            wake()

    async def checkpoint(self) -> None:
        """Move committed pages from the log into the file, without blocking the writer."""
        await self._running(self._keeper).run(_checkpoint)

    async def check_writable(self) -> None:
        """Commit a change that has no effect; raises the error that prevents writing, if any."""
        statement = Run("UPDATE alembic_version SET version_num = version_num")
        await self.write(lambda: _only(statement))

    async def schema_is_current(self) -> bool:
        rows: Any = await self.read(lambda: _only(Fetch("SELECT version_num FROM alembic_version")))
        return [row[0] for row in rows] == [newest_schema()]

    async def close(self) -> None:
        """Close all connections and wait for their threads. A write in progress is finished."""
        async with self._lock:
            if self._closed:
                return
            self._closed = True
            self._signals.close()
            await asyncio.gather(*self._opening, return_exceptions=True)
            for reader in self._readers:
                await reader.close(at_once=True)
            for thread in (self._keeper, self._writer):
                await thread.close()

    def _where_it_was_opened(
        self, connection: sqlite3.Connection, run: Callable[[sqlite3.Connection, Callable[[], Work[T]]], T], work: Any
    ) -> T:
        """Run *work* on the writer's thread, if the file is still in its place."""
        self._presence.check()
        return run(connection, work)

    def _running(self, thread: _Thread) -> _Thread:
        if self._closed:
            raise RuntimeError("the database is closed")
        return thread

    async def _new_reader(self) -> _Thread:
        """Open another reader. Whoever gives up waiting for it leaves it to the next one, and `close` closes it."""
        self._presence.check()
        opening = asyncio.create_task(self._open_reader())
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._keep_for_later)
            raise

    async def _open_reader(self) -> _Thread:
        with _mapped():
            reader = await _Thread.start(self.path, _prepare_reader)
        self._readers.append(reader)
        return reader

    def _keep_for_later(self, opened: asyncio.Task[_Thread]) -> None:
        if not opened.cancelled() and opened.exception() is None:
            self._idle.append(opened.result())


# --- Connections and their threads ------------------------------------------------------------------------------------


class _Thread:
    """
    A connection and the only thread that uses it.

    aiosqlite runs single statements; whole transactions go to its thread by `_execute` with `_conn`, and a closed
    connection is waited for by `_thread`: private names, tried with aiosqlite 0.22.1.
    """

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    @classmethod
    async def start(
        cls,
        path: Path,
        prepare: Callable[[sqlite3.Connection], None],
        factory: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> _Thread:
        # Statements of the hot paths have as many lengths as there are batch sizes. The thread that interrupts a
        # connection is not the thread that uses it.
        connection = aiosqlite.connect(
            path, isolation_level=None, cached_statements=512, check_same_thread=False, factory=factory
        )
        thread = cls(await connection)
        try:
            await thread.run(prepare)
        except BaseException:
            await thread.close()
            raise
        return thread

    async def run(self, work: Callable[..., T], *more: Any) -> T:
        """Call `work(connection, *more)` on the thread."""
        return cast(T, await self._connection._execute(work, self._connection._conn, *more))  # type: ignore[no-untyped-call]

    def interrupt(self) -> None:
        """Interrupt the statement that runs on the thread, if any."""
        with contextlib.suppress(sqlite3.ProgrammingError, ValueError):  # closed already
            self._connection._conn.interrupt()

    async def close(self, *, at_once: bool = False) -> None:
        """Close the connection and end the thread, after its current work; *at_once* interrupts that."""
        closing = asyncio.ensure_future(self._connection.close())
        while at_once and not closing.done():
            self.interrupt()  # again, should a query have begun only now
            await asyncio.wait([closing], timeout=0.1)
        await closing
        await asyncio.to_thread(self._connection._thread.join)


def _prepare_writer(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA busy_timeout=10000")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
    connection.execute("PRAGMA journal_size_limit=67108864")


def _prepare_reader(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only=ON")
    connection.execute("PRAGMA busy_timeout=10000")


def _checkpoint(connection: sqlite3.Connection) -> None:
    with _mapped():
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


# --- Transactions -----------------------------------------------------------------------------------------------------


def _in_one_transaction(connection: sqlite3.Connection, work: Callable[[], Work[T]]) -> T:
    with _mapped():
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = _drive(connection, work())
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise
        return result


def _in_one_snapshot(connection: sqlite3.Connection, work: Callable[[], Work[T]]) -> T:
    with _mapped():
        connection.execute("BEGIN")
        try:
            return _drive(connection, work())
        finally:
            connection.rollback()


def _by_itself(connection: sqlite3.Connection, work: Callable[[], Work[T]]) -> T:
    with _mapped():
        return _drive(connection, work())


def _drive(connection: sqlite3.Connection, steps: Work[T]) -> T:
    """Execute what *steps* yields, until it returns."""
    result = None
    try:
        while True:
            try:
                statement = steps.send(result)
            except StopIteration as stop:
                value: T = stop.value
                return value
            result = execute(connection, statement)
    finally:
        steps.close()


def _only(statement: Statement) -> Work[Any]:
    return (yield statement)


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    """Turn SQLite's errors into ours; bugs in our SQL or values are raised as they are."""
    try:
        yield
    except sqlite3.IntegrityError as exc:
        raise Conflict(str(exc)) from exc
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError, sqlite3.NotSupportedError):
        raise
    except sqlite3.DatabaseError as exc:
        raise DatabaseUnavailable(str(exc)) from exc
