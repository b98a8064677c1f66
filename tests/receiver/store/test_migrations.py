"""The migrations build exactly the tables that the code speaks of."""

import asyncio
import threading
from pathlib import Path

import aiosqlite
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine

from receiver.store.database import Database
from receiver.store.tables import metadata


async def test_a_migrated_database_has_the_tables_of_the_code(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "receiver.db")
    assert await database.schema_is_current()
    await database.close()
    engine = create_engine(f"sqlite:///{tmp_path / 'receiver.db'}")
    with engine.connect() as connection:
        assert _differences(connection) == []
    engine.dispose()


async def test_opening_a_database_again_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        database = await Database.open(tmp_path / "receiver.db")
        assert await database.schema_is_current()
        await database.close()


async def test_nothing_is_written_by_itself_inside_somebodys_open_transaction(tmp_path: Path) -> None:
    """It would be told to be durable, and be gone at a rollback."""
    database = await Database.open(tmp_path / "receiver.db")
    assert database._raw is not None
    await database._raw.execute("BEGIN IMMEDIATE")
    with pytest.raises(RuntimeError, match="transaction is open"):
        await database.statement(lambda db: db.execute("DELETE FROM jobs"))
    await database._raw.rollback()
    await database.close()


def _differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


async def test_a_new_database_is_for_its_owner_only(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "receiver.db")
    async with database.write_raw() as db:
        await db.execute("CREATE TABLE something (a)")
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    await database.close()
    assert set(modes.values()) == {"0o600"}, modes


async def test_closing_leaves_no_thread_behind_even_of_queries_that_were_cancelled_twice(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    database = await Database.open(tmp_path / "receiver.db")
    began, loop = asyncio.Event(), asyncio.get_running_loop()

    async def read_for_long() -> None:
        async with database.read() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert isinstance(driver, aiosqlite.Connection)
            await driver.set_progress_handler(lambda: loop.call_soon_threadsafe(began.set) and None, 1_000_000)
            await connection.exec_driver_sql(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e9) SELECT count(*) FROM n"
            )

    reading = asyncio.create_task(read_for_long())
    await began.wait()
    for _ in range(3):
        reading.cancel()
        await asyncio.sleep(0.01)
    await asyncio.wait([reading])
    await database.close()
    left = set(threading.enumerate()) - before
    assert not [thread.name for thread in left if "connection_worker" in thread.name]
