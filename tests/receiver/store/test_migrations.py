"""The migrations build exactly the tables that the code speaks of."""

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine

from receiver.store.database import open_database
from receiver.store.tables import metadata
from tests.support.rows import execute


async def test_a_migrated_database_has_the_tables_of_the_code(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "receiver.db")
    assert await database.schema_is_current()
    await database.close()
    engine = create_engine(f"sqlite:///{tmp_path / 'receiver.db'}")
    with engine.connect() as connection:
        assert _differences(connection) == []
    engine.dispose()


async def test_opening_a_database_again_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        database = await open_database(tmp_path / "receiver.db")
        assert await database.schema_is_current()
        await database.close()


def _differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


async def test_a_new_database_is_for_its_owner_only(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "receiver.db")
    await execute(database, "CREATE TABLE something (a)")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    await database.close()
    assert set(modes.values()) == {"0o600"}, modes
