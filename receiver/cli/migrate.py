"""`receiver migrate`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from receiver.settings import load
from receiver.store import database

Check = Annotated[bool, typer.Option("--check", help="Change nothing. Exit status 1: the schema is not current.")]


def migrate(check: Check = False) -> None:
    """Bring the database to the newest schema. A SQLite file is migrated by `serve` too, PostgreSQL only by this."""
    settings, _ = load()
    address = settings.database_address
    name = "the PostgreSQL database" if settings.on_postgresql else str(address)
    if not check:
        asyncio.run(database.migrate(address))
    elif not asyncio.run(database.schema_is_newest(address)):
        typer.echo(f"{name} is not at the newest schema: run `receiver migrate`")
        raise typer.Exit(1)
    typer.echo(f"{name} is at the newest schema")
