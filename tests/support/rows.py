"""Rows of a database in use, read and written past the code under test."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

from receiver.store.database import Database
from receiver.store.statements import Fetch, Run, RunMany, Work, alone


async def fetch(database: Database, sql: str, *values: Any) -> list[Any]:
    rows: list[Any] = await database.read(alone(Fetch(sql, values)))
    return rows


async def execute(database: Database, sql: str, *values: Any) -> int:
    """Returns how many rows were changed."""
    changed: int = await database.write(alone(Run(sql, values)))
    return changed


async def define(database: Database, sql: str) -> None:
    """Change the schema."""
    await database.write(alone(Fetch(sql)))


async def execute_many(database: Database, sql: str, rows: list[tuple[Any, ...]]) -> None:
    await database.write(alone(RunMany(sql, rows)))


@contextlib.asynccontextmanager
async def busy_writer(database: Database) -> AsyncIterator[None]:
    """A SQLite database whose one writer is in a transaction for as long as the block runs."""
    begun, ended = threading.Event(), threading.Event()

    def work() -> Work[None]:
        yield Fetch("SELECT 1")
        begun.set()
        assert ended.wait(60)

    writing = asyncio.create_task(database.write(work))
    try:
        assert await asyncio.to_thread(begun.wait, 60)
        yield
    finally:
        ended.set()
        await writing
