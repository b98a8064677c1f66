"""The schema of a database: its revision, and the migrations that it lacks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


@cache
def newest_schema() -> str | None:
    """Return the revision that this version of the code needs."""
    return _script().get_current_head()


@cache
def known_schemas() -> frozenset[str]:
    """Return every revision that this version of the code can start from."""
    return frozenset(script.revision for script in _script().walk_revisions())


def schema_of(connection: Connection) -> str | None:
    """Return the revision of *connection*'s database; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(connection: Connection) -> None:
    """Run the migrations that *connection*'s database lacks. Raises `CommandError` if its revision is not known."""
    config = _config()
    config.attributes["connection"] = connection
    if schema_of(connection) != newest_schema():
        command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
