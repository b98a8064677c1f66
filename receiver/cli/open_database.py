"""The database of the settings in force, for commands that read it directly."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from receiver.settings import Settings, load
from receiver.store.database import Database
from receiver.store.database import open_database as open_or_make
from receiver.store.sqlite_file import usable_database
from submitter.printing import failed


@contextlib.asynccontextmanager
async def open_database(settings: Settings | None = None) -> AsyncIterator[Database]:
    """Open an existing database; a missing one is an error, and is not created."""
    settings = settings or load()[0]
    path = settings.database_path
    if not settings.on_postgresql and not path.exists():
        raise failed(f"there is no database at {path}; is RECEIVER_DATA_DIR right? `receiver serve` makes it")
    database = await open_or_make(settings.database_address)
    try:
        with usable_database(path):
            yield database
    finally:
        await database.close()
