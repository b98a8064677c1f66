"""`receiver migrate`."""

from __future__ import annotations

import asyncio

import typer

from receiver.settings import load
from receiver.store.database import open_database


def migrate() -> None:
    """Bring the database to the newest schema."""
    settings, _ = load()

    async def run() -> None:
        database = await open_database(settings.database_path)
        await database.close()

    asyncio.run(run())
    typer.echo(f"{settings.database_path} is at the newest schema")
