"""The migrations build exactly the tables that the code speaks of."""

import asyncio
import contextlib
import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from receiver.domain.evidence import Evidence
from receiver.domain.jobs import Source
from receiver.store.database import migrate, open_database, schema_is_newest
from receiver.store.errors import DatabaseRefused
from receiver.store.evidence import EvidenceLog
from receiver.store.schema import MIGRATIONS, UnknownSchema, lacks_migrations, newest_schema
from receiver.store.tables import metadata
from tests.support.cli import bare_environment, program
from tests.support.engines import database_of
from tests.support.postgresql import PostgresqlServer
from tests.support.rows import execute, fetch


def test_the_names_of_the_migrations_are_their_revisions() -> None:
    script = ScriptDirectory(str(MIGRATIONS))
    assert newest_schema() == script.get_current_head()
    for revision in script.walk_revisions():
        assert lacks_migrations(revision.revision) == (revision.revision != newest_schema())
    assert lacks_migrations(None)
    with pytest.raises(UnknownSchema):
        lacks_migrations("9999")


@pytest.mark.sqlite(reason="PostgreSQL's types are taken from the tables")
async def test_a_process_whose_database_lacks_no_migration_does_not_import_what_runs_them(tmp_path: Path) -> None:
    database_of(tmp_path)
    script = """
import asyncio, sys
from pathlib import Path
from receiver.store.database import open_database

async def main():
    database = await open_database(Path("receiver.db"))
    assert await database.schema_is_current()
    await database.close()

asyncio.run(main())
print([name for name in ("alembic", "sqlalchemy") if name in sys.modules])
"""
    done = await program(sys.executable, "-c", script, environment=bare_environment(), directory=tmp_path)
    assert done.out == "[]\n", done.err


@pytest.mark.sqlite(reason="a file needs no extra")
async def test_a_file_is_migrated_without_what_the_extra_for_postgresql_installs(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from pathlib import Path

sys.modules.update(dict.fromkeys(("asyncpg", "greenlet")))  # None: can't be imported
from receiver.store.database import migrate

asyncio.run(migrate(Path("receiver.db")))
"""
    done = await program(sys.executable, "-c", script, environment=bare_environment(), directory=tmp_path)
    assert done.status == 0, done.err
    assert await schema_is_newest(tmp_path / "receiver.db")


@pytest.mark.sqlite(reason="the schema of a file")
async def test_a_migrated_database_has_the_tables_of_the_code(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "receiver.db")
    assert await database.schema_is_current()
    await database.close()
    engine = create_engine(f"sqlite:///{tmp_path / 'receiver.db'}")
    with engine.connect() as connection:
        assert _differences(connection) == []
    engine.dispose()


async def test_a_migrated_postgresql_database_has_the_tables_of_the_code(postgresql_server: PostgresqlServer) -> None:
    async with postgresql_server.database() as url:
        engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"), poolclass=NullPool)
        async with engine.connect() as connection:
            assert await connection.run_sync(_differences) == []
        await engine.dispose()


async def test_postgresql_is_migrated_by_its_command_alone(postgresql_server: PostgresqlServer) -> None:
    async with postgresql_server.database(migrated=False) as url:
        assert not await schema_is_newest(url)
        with pytest.raises(DatabaseRefused, match="run `receiver migrate`"):
            await open_database(url)
        await asyncio.gather(migrate(url), migrate(url))
        assert await schema_is_newest(url)
        database = await open_database(url)
        await execute(database, "UPDATE alembic_version SET version_num = '9999'")
        assert not await database.schema_is_current()
        await database.close()
        for use in (open_database, migrate):
            with pytest.raises(DatabaseRefused, match="newer version"):
                await use(url)


@pytest.mark.sqlite(reason="made as a file of an older version")
async def test_a_test_event_of_an_older_version_is_not_taken_for_one_that_waits_for_its_position(
    tmp_path: Path,
) -> None:
    path = tmp_path / "receiver.db"
    at_revision(path, "0002")
    with contextlib.closing(sqlite3.connect(path)) as older:
        older.executemany(
            "INSERT INTO events (id, position, type, created_at, body) VALUES (?, ?, 'job.queued', 1, '{}')",
            [("evt_1", 1), ("evt_2", None)],
        )
        older.commit()
    database = await open_database(path)
    assert await fetch(database, "SELECT id, example FROM events ORDER BY id") == [("evt_1", 0), ("evt_2", 1)]
    await database.close()


@pytest.mark.sqlite(reason="made as a file of an older version")
async def test_replays_of_what_an_older_version_kept_are_known(tmp_path: Path) -> None:
    path, job = tmp_path / "receiver.db", f"job_{1:026d}"
    at_revision(path, "0004")
    kept = [(job, "msg_1", b"{}", "believed"), (job, "msg_2", b"{}", "refused"), (job, None, b"{}", "hint")]
    with contextlib.closing(sqlite3.connect(path)) as older:
        older.executemany(
            "INSERT INTO evidence (job_id, delivery_id, body, verdict, provider, source, received_at, read_at, headers)"
            " VALUES (?, ?, ?, ?, 'freepik', 'callback', 1, 1, '[]')",
            kept * 600,
        )
        older.commit()
    database = await open_database(path)
    log = EvidenceLog(database)
    now = datetime.now(UTC)
    for delivery_id, body in (("msg_1", b"{}"), ("msg_1", b"{ }"), ("msg_2", b"{}")):
        piece = Evidence(Source.CALLBACK, "freepik", job, now, "[]", body, delivery_id=delivery_id)
        await log.record([piece])
    came = (await log.unread(limit=10)).evidence
    assert await log.repeats(came) == {came[0].id}
    await database.close()


@pytest.mark.sqlite(reason="a file is migrated as it is opened")
async def test_opening_a_database_again_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        database = await open_database(tmp_path / "receiver.db")
        assert await database.schema_is_current()
        await database.close()


def at_revision(path: Path, revision: str) -> None:
    """Make a database as the version of *revision* left it."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def _differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


@pytest.mark.sqlite(reason="the modes of the file")
async def test_a_new_database_is_for_its_owner_only(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "receiver.db")
    await execute(database, "CREATE TABLE something (a)")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    await database.close()
    assert [name for name, mode in modes.items() if not mode.endswith("00")] == []
