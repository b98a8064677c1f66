"""The engines: `database` is an open one of each, `engine` the environment of a receiver on each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from receiver.store.engines.postgresql import PostgresqlDatabase
from receiver.store.engines.sqlite import SqliteDatabase
from tests.support.postgresql import PostgresqlServer, running_postgresql


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    if request.param == "sqlite":
        sqlite = await SqliteDatabase.open(tmp_path / "receiver.db")
        yield sqlite
        await sqlite.close()
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    async with server.database() as url:
        postgresql = await PostgresqlDatabase.open(url)
        yield postgresql
        await postgresql.close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[dict[str, str]]:
    """Settings that put a receiver on each engine."""
    if request.param == "sqlite":
        yield {}
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    async with server.database() as url:
        yield {"RECEIVER_DATABASE_URL": url, "RECEIVER_SECRET_KEYS": "a-key-that-all-processes-share"}
