"""Migrations of a PostgreSQL database. Imported where it lacks some; it needs what the extra installs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from receiver.store.upgrade import upgrade


async def upgrade_postgresql(connect: Callable[[], Awaitable[Any]], *, hold: int) -> None:
    """
    Run the migrations that a database lacks, in one transaction that has the advisory lock *hold*.

    *connect* returns an asyncpg connection. Raises `UnknownSchema`, and what *connect* does.
    """
    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.begin() as begun:
            await begun.execute(text(f"SELECT pg_advisory_xact_lock({hold})"))
            await begun.run_sync(upgrade)
    finally:
        await engine.dispose()
