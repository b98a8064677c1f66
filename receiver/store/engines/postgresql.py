"""
PostgreSQL: a bounded pool of connections, each statement of a transaction awaited on asyncpg.

Writing transactions are `READ COMMITTED`: a row to be changed according to its contents is locked before it is read, or
updated by its version. Reading ones use one snapshot (`REPEATABLE READ`, read only). A transaction that conflicts with
another is called again, a few times. Row locks and `pg_advisory_xact_lock` end with their transaction, and no session
state is set, so that a pooler in transaction mode may stand in between; then prepared statements are not kept, and
LISTEN needs a connection of its own that goes to the server directly (`listen_url`).

Positions of events are given after the commit, by `NumberEvents`: ids and sequences are in the order of writing, not of
commits, and a reader that follows them would miss events that were committed late.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar

import asyncpg
import structlog

from receiver.store.engines.postgresql_statements import HOLDS, execute
from receiver.store.errors import Conflict, DatabaseRefused, DatabaseUnavailable
from receiver.store.schema import UnknownSchema, lacks_migrations, newest_schema
from receiver.store.statements import InsertMany, Row, Work

log = structlog.get_logger("receiver.store")

T = TypeVar("T")
_POOL = 10
_CONNECT_SECONDS = 10.0
_COMMAND_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 5.0

_UNAVAILABLE = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
)
_CONFLICTS = (asyncpg.UniqueViolationError, asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_REFUSED = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)
_MISTAKES = (asyncpg.DataError, asyncpg.exceptions.DataError)


class PostgresqlDatabase:
    """A pool of connections to one PostgreSQL database. Create it with `PostgresqlDatabase.open`."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], listen_url: str) -> None:
        self._pool = pool
        self._listen_url = listen_url
        self._wakes: dict[str, list[Callable[[], None]]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, url: str, *, listen_url: str | None = None, pool_size: int = _POOL) -> PostgresqlDatabase:
        """
        Connect to *url*, whose schema must be this version's.

        *listen_url* connects directly, where *url* goes through a pooler. Raises `DatabaseUnavailable`, and
        `DatabaseRefused` for a database that was not migrated to the schema of this version.
        """
        pool = asyncpg.create_pool(
            url,
            min_size=1,
            max_size=pool_size,
            statement_cache_size=0 if listen_url and listen_url != url else 256,
            command_timeout=_COMMAND_SECONDS,
            timeout=_CONNECT_SECONDS,
            reset=_keep,
        )
        database = cls(pool, listen_url or url)
        try:
            with mapped_errors():
                await pool
            await database._check_schema()
        except BaseException:
            pool.terminate()
            raise
        return database

    async def write(self, work: Callable[[], Work[T]], *, attempts: int = 5) -> T:
        """Run *work* in one transaction; call it again, up to *attempts* times in all, when it raises `Conflict`."""
        for attempt in range(1, attempts + 1):
            try:
                async with self._connection() as connection, connection.transaction():
                    return await _drive(connection, work())
            except Conflict:
                if attempt == attempts:
                    raise
            await asyncio.sleep(random.uniform(0, 0.005 * 2**attempt))
        raise AssertionError("no attempt was made")

    async def append(self, table: str, columns: tuple[str, ...], rows: Sequence[Row]) -> None:
        """Insert *rows* in one transaction."""
        async with self._connection() as connection, connection.transaction():
            await execute(connection, InsertMany(table, columns, rows))

    async def read(self, work: Callable[[], Work[T]]) -> T:
        """Run *work*, which only reads, on a single snapshot."""
        snapshot: dict[str, Any] = {"isolation": "repeatable_read", "readonly": True}
        async with self._connection() as connection, connection.transaction(**snapshot):
            return await _drive(connection, work())

    async def notify(self, channel: str) -> None:
        """Wake every listener to *channel*, in every process."""
        async with self._connection() as connection:
            await connection.execute("SELECT pg_notify($1, '')", channel)

    def listen(self, channel: str, wake: Callable[[], None]) -> None:
        """Call *wake* whenever *channel* is notified, and whenever notifications may have been missed."""
        self._wakes.setdefault(channel, []).append(wake)
        if self._listener is not None:
            self._listener.cancel()
        self._listener = asyncio.create_task(self._listen(), name="listen")

    async def checkpoint(self) -> None:
        """Nothing to do: the server does it."""

    async def check_writable(self) -> None:
        """Commit a change that has no effect; raises the error that prevents writing, if any."""
        async with self._connection() as connection:
            await connection.execute("UPDATE alembic_version SET version_num = version_num")

    async def schema_is_current(self) -> bool:
        async with self._connection() as connection:
            return await _schema(connection) == newest_schema()

    async def close(self) -> None:
        """Close all connections; statements that run for more than a few seconds longer are cut off."""
        self._closed = True
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    # --- Connections --------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        if self._closed:
            raise RuntimeError("the database is closed")
        with mapped_errors():
            async with self._pool.acquire(timeout=_CONNECT_SECONDS) as connection:
                try:
                    yield connection
                except asyncio.CancelledError:
                    connection.terminate()  # a statement that was cut off may leave the session inside a transaction
                    raise

    async def _check_schema(self) -> None:
        async with self._connection() as connection:
            found = await _schema(connection)
        with _newer_refused():
            if lacks_migrations(found):
                raise DatabaseRefused("the database is not at the schema of this version; run `receiver migrate`")

    async def _listen(self) -> None:
        """Hold a connection that listens; after each reconnect, wake all listeners for notifications they missed."""
        pause = 0.1
        while True:
            try:
                connection = await asyncpg.connect(self._listen_url, timeout=_CONNECT_SECONDS, statement_cache_size=0)
                try:
                    ended = asyncio.Event()
                    connection.add_termination_listener(lambda _, ended=ended: ended.set())
                    for channel in self._wakes:
                        await connection.add_listener(channel, self._notified)
                    for channel in self._wakes:
                        self._notified(None, 0, channel, "")
                    pause = 0.1
                    await ended.wait()
                finally:
                    connection.terminate()
            except (asyncpg.PostgresError, *_UNAVAILABLE) as exc:
                log.warning("listening_failed", error=type(exc).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _notified(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        for wake in self._wakes.get(channel, ()):
            wake()


async def migrate(url: str) -> None:
    """
    Bring the database at *url* to the newest schema; one process does it, others wait.

    Raises `DatabaseUnavailable`, and `DatabaseRefused` for a database of a newer version.
    """

    async def connect() -> Any:
        return await asyncpg.connect(url, timeout=_CONNECT_SECONDS, statement_cache_size=0)

    with _newer_refused():
        if lacks_migrations(await schema_at(url)):
            from receiver.store.engines.postgresql_upgrade import upgrade_postgresql

            with mapped_errors():
                await upgrade_postgresql(connect, hold=HOLDS["migrations"])


@contextlib.contextmanager
def _newer_refused() -> Iterator[None]:
    try:
        yield
    except UnknownSchema as exc:
        raise DatabaseRefused(
            "the database was migrated by a newer version; install that version, or a newer one"
        ) from exc


@contextlib.asynccontextmanager
async def connected(url: str, *, command_seconds: float) -> AsyncIterator[Any]:
    """Provide a connection to *url* while the block runs."""
    connection = await asyncpg.connect(
        url, timeout=_CONNECT_SECONDS, command_timeout=command_seconds, statement_cache_size=0
    )
    try:
        yield connection
    finally:
        await connection.close()


async def schema_at(url: str) -> str | None:
    """Return the revision of the database at *url*; None for an empty one. Raises `StoreError`."""
    with mapped_errors():
        async with connected(url, command_seconds=_COMMAND_SECONDS) as connection:
            return await _schema(connection)


async def _schema(connection: Any) -> str | None:
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    found: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return found


async def _keep(connection: Any) -> None:
    """Skip the reset between transactions: a session has no state, and the default costs a round trip each time."""


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn the driver's errors into ours; bugs in our SQL or values are raised as they are."""
    try:
        yield
    except _MISTAKES:
        raise
    except _CONFLICTS as exc:
        raise Conflict(str(exc)) from exc
    except _REFUSED as exc:
        raise DatabaseRefused(f"PostgreSQL refuses RECEIVER_DATABASE_URL: {exc}") from exc
    except _UNAVAILABLE as exc:
        raise DatabaseUnavailable(f"{type(exc).__name__}: {exc}") from exc


async def _drive(connection: Any, steps: Work[T]) -> T:
    """Execute what *steps* yields, until it returns."""
    result = None
    try:
        while True:
            try:
                statement = steps.send(result)
            except StopIteration as stop:
                value: T = stop.value
                return value
            result = await execute(connection, statement)
    finally:
        steps.close()
