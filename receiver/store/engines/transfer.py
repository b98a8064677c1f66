"""
A SQLite installation, copied into PostgreSQL.

Theory. All tables are copied in one transaction of the target, over one read-only snapshot of the source, and compared
before the commit: the target holds everything or nothing, and a transfer that failed is simply started again. Tables
are equal if the numbers of their rows and the sums of their digests are; a sum does not depend on the order in which
engines return rows. Positions of events are copied, and the numbers of new rows continue after the old ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from receiver.store.engines.postgresql import connected, mapped_errors, migrate
from receiver.store.engines.postgresql_statements import clean
from receiver.store.errors import DatabaseRefused
from receiver.store.sqlite_file import open_to_read
from receiver.store.tables import metadata
from submitter.threads import in_thread

_ROWS_AT_ONCE = 2000
_SECONDS = 3600.0
"""For one statement: a COPY waits for no more than its batch, a comparison reads a table."""


@dataclass(slots=True)
class TableDigest:
    """The number of rows of a table, and the sum of their digests."""

    rows: int = 0
    total: int = 0

    def add(self, row: Sequence[Any]) -> None:
        digest = blake2b(repr(tuple(row)).encode(), digest_size=16).digest()
        self.rows += 1
        self.total = (self.total + int.from_bytes(digest, "big")) % (1 << 128)


async def transfer(path: Path, url: str) -> dict[str, int]:
    """
    Copy the file at *path*, which must not be in use, into the empty database at *url*; return each table's row count.

    The file is only read, and must be at the newest schema. The database is migrated first. Raises `DatabaseRefused`
    where it is not empty or the copy is not the same, and `DatabaseUnavailable`.
    """
    await migrate(url)
    copied: dict[str, int] = {}
    with contextlib.closing(await asyncio.to_thread(open_to_read, path)) as source, mapped_errors():
        source.execute("BEGIN")
        async with connected(url, command_seconds=_SECONDS) as target, target.transaction():
            for table in metadata.sorted_tables:
                await target.execute(f"LOCK TABLE {table.name} IN EXCLUSIVE MODE")
                if await target.fetchval(f"SELECT EXISTS (SELECT 1 FROM {table.name})"):
                    raise DatabaseRefused(f"the target's table {table.name} is not empty: name a new database")
            for table in metadata.sorted_tables:
                written = await _copy(source, target, table)
                if await _digest(target, table) != written:
                    raise DatabaseRefused(f"the copy of {table.name} is not the same; nothing was transferred")
                copied[table.name] = written.rows
                await _number_on(target, table)
    return copied


async def _copy(source: sqlite3.Connection, target: Any, table: sa.Table) -> TableDigest:
    columns, written = [column.name for column in table.columns], TableDigest()
    cursor = await in_thread(source.execute, f"SELECT {', '.join(columns)} FROM {table.name}")

    def batch() -> list[Sequence[Any]]:
        rows = [clean(row) for row in cursor.fetchmany(_ROWS_AT_ONCE)]
        for row in rows:
            written.add(row)
        return rows

    while rows := await in_thread(batch):
        await target.copy_records_to_table(table.name, records=rows, columns=columns)
    return written


async def _digest(target: Any, table: sa.Table) -> TableDigest:
    found = TableDigest()
    names = ", ".join(column.name for column in table.columns)
    async for row in target.cursor(f"SELECT {names} FROM {table.name}", prefetch=_ROWS_AT_ONCE):
        found.add(tuple(row))
    return found


async def _number_on(target: Any, table: sa.Table) -> None:
    """Have the next row of a numbered table take the number after the last."""
    for column in table.primary_key.columns:
        if column.autoincrement is True:
            await target.execute(
                f"SELECT setval(pg_get_serial_sequence('{table.name}', '{column.name}'),"
                f" coalesce(max({column.name}), 0) + 1, false) FROM {table.name}"
            )
