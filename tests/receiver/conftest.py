"""The engines: `database` is an open one of each, `engine` the environment of a receiver on each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.store.database import Database, open_database
from tests.support.engines import ENGINES, SHARED_SECRETS, database_of, shared_server
from tests.support.postgresql import PostgresqlServer


@pytest.fixture(scope="session")
def postgresql_server() -> PostgresqlServer:
    return shared_server()


@pytest.fixture(params=ENGINES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        sqlite = await open_database(database_of(tmp_path))
        yield sqlite
        await sqlite.close()
        return
    async with shared_server().database() as url:
        postgresql = await open_database(url)
        yield postgresql
        await postgresql.close()


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[dict[str, str]]:
    """Settings that put a receiver on each engine."""
    if request.param == "sqlite":
        yield {}
        return
    async with shared_server().database() as url:
        yield {"RECEIVER_DATABASE_URL": url, "RECEIVER_SECRET_KEYS": SHARED_SECRETS["RECEIVER_SECRET_KEYS"]}
