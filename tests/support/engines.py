"""
The engine under the receivers of the tests: SQLite, or PostgreSQL where `RECEIVER_TEST_ENGINE` is `postgresql`.

A database goes by the directory of its receiver's data: it is a file there, or a database of the test server that is
made when its directory is first named, and dropped after the test. A test that is about SQLite or its file has the
marker `sqlite`, with the reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from receiver.store.engines.sqlite import SqliteDatabase
from tests.support.postgresql import PostgresqlServer, running_postgresql

T = TypeVar("T")
ENGINE = os.environ.get("RECEIVER_TEST_ENGINE", "sqlite")
ON_POSTGRESQL = ENGINE == "postgresql"
ENGINES = ["postgresql"] if ON_POSTGRESQL else ["sqlite", "postgresql"]
"""Those of a test that runs on each."""
SHARED_SECRETS = {
    "RECEIVER_SECRET_KEYS": "a-key-that-all-processes-share",
    "RECEIVER_API_TOKENS": "a-token-for-tests",
    "RECEIVER_NOTIFY_SECRETS": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
}
"""What an installation on PostgreSQL does not generate."""

_ending = ExitStack()
_databases: dict[Path, str] = {}


@cache
def shared_server() -> PostgresqlServer:
    """The PostgreSQL server of this process, started when it is first asked for."""
    return _ending.enter_context(running_postgresql())


def end_server() -> None:
    """Stop it, if it runs."""
    _ending.close()
    shared_server.cache_clear()
    _migrated.cache_clear()


def database_of(data_dir: Path) -> Path | str:
    """The address of the database of the receiver whose data is in *data_dir*; a new one is empty and migrated."""
    if ON_POSTGRESQL:
        return url_of(data_dir)
    path = data_dir / "receiver.db"
    if not path.exists():
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy(_migrated(), path)
    return path


@cache
def _migrated() -> Path:
    """A file to copy: migrations take longer than most tests."""
    directory = Path(_ending.enter_context(tempfile.TemporaryDirectory()))

    async def make() -> None:
        database = await SqliteDatabase.open(directory / "receiver.db")
        await database.close()

    _aside(make())
    return directory / "receiver.db"


def url_of(data_dir: Path) -> str:
    """The URL of the PostgreSQL database of *data_dir*."""
    data_dir = data_dir.resolve()
    if data_dir not in _databases:
        _databases[data_dir] = _aside(shared_server().create())
    return _databases[data_dir]


def secrets_of(data_dir: Path) -> dict[str, str]:
    """`secret_key`, `api_token` and `notify_secret` of the receiver that nothing was set for but its engine."""
    if ON_POSTGRESQL:
        return dict(zip(("secret_key", "api_token", "notify_secret"), SHARED_SECRETS.values(), strict=True))
    generated: dict[str, str] = json.loads((data_dir / "secrets.json").read_text())
    return generated


def known_databases() -> set[Path]:
    return set(_databases)


def drop_databases(*, but: set[Path]) -> None:
    """Drop all PostgreSQL databases whose directories are not in *but*."""
    for data_dir in _databases.keys() - but:
        _aside(shared_server().drop(_databases.pop(data_dir)))


def on_engine(environment: Mapping[str, str], directory: Path) -> dict[str, str]:
    """*environment* of a receiver that works in *directory*, with the database and secrets that it needs there."""
    if not ON_POSTGRESQL or "RECEIVER_DATABASE_URL" in environment:
        return dict(environment)
    data_dir = directory / environment.get("RECEIVER_DATA_DIR", "data")
    return {**SHARED_SECRETS, "RECEIVER_DATABASE_URL": url_of(data_dir), **environment}


def engine_settings(data_dir: Path) -> dict[str, str]:
    """Fields of the settings of a receiver in this process whose data is in *data_dir*; its database is there."""
    database_of(data_dir)
    environment = on_engine({"RECEIVER_DATA_DIR": str(data_dir)}, data_dir)
    del environment["RECEIVER_DATA_DIR"]
    return {name.removeprefix("RECEIVER_").lower(): value for name, value in environment.items()}


def _aside(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* to its end, whether or not a loop runs in this thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
