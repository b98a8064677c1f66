"""PgBouncer in transaction mode, in front of the server of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from tests.support.ports import free_port
from tests.support.postgresql import PostgresqlServer
from tests.support.waiting import eventually, patiently

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed; .ci/run installs it")

CONNECTIONS = 4
"""To the server, for all clients."""


@contextlib.asynccontextmanager
async def pooled(server: PostgresqlServer, database_url: str, directory: Path) -> AsyncIterator[str]:
    """The URL of the database at *database_url* through PgBouncer, which runs as long as the block."""
    assert PGBOUNCER is not None
    parts = urlsplit(database_url)
    (socket_directory,) = parse_qs(parts.query).get("host", [""])
    if not socket_directory:
        pytest.skip("the server at RECEIVER_TEST_POSTGRESQL_URL has its own users: only the wheel's is put behind it")
    port, name = free_port(), parts.path.removeprefix("/")
    directory.mkdir()
    config = directory / "pgbouncer.ini"
    config.write_text(
        f"""[databases]
{name} = host={socket_directory} user={parts.username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {CONNECTIONS}
max_client_conn = 200
"""
    )
    # It refuses to run as root, and the server's directory is for its owner alone.
    user = ["-u", Path(socket_directory).owner()] if os.getuid() == 0 else []
    url = f"postgresql://anybody@127.0.0.1:{port}/{name}"
    with (directory / "pgbouncer.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(PGBOUNCER, *user, str(config), stdout=log, stderr=log)

    async def answers() -> bool:
        assert process.returncode is None, (directory / "pgbouncer.log").read_text()
        try:
            connection = await asyncpg.connect(url, statement_cache_size=0)
        except (OSError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True

    try:
        await eventually(answers)
        yield url
    finally:
        process.terminate()
        await patiently(process.wait())
