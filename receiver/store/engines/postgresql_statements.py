"""Statements on PostgreSQL: each is awaited on a connection of asyncpg's."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from receiver.store.statements import (
    Fetch,
    FetchWide,
    Hold,
    InsertMany,
    LockRows,
    NumberEvents,
    Positions,
    Row,
    Run,
    RunMany,
    Statement,
    UpdateMany,
)
from receiver.store.tables import metadata

_COPY_FROM = 8
"""Fewer rows than this are inserted one by one: COPY asks for the columns' types first."""
HOLDS = {"subscriptions": 7001, "positions": 7002, "migrations": 7003}
"""Advisory locks by name."""


async def execute(connection: Any, statement: Statement) -> Any:
    """Execute *statement*, and return its result as `receiver.store.statements` describes it."""
    return await _EXECUTE[type(statement)](connection, statement)


async def _fetch(connection: Any, statement: Fetch) -> list[Any]:
    sql = _translated(statement.sql)
    rows = await connection.fetch(f"{sql} {statement.lock}" if statement.lock else sql, *clean(statement.values))
    return [tuple(row) for row in rows]


async def _fetch_wide(connection: Any, statement: FetchWide) -> list[Any]:
    sql = _translated(f"SELECT {', '.join(statement.columns)} {statement.rest}")
    return list(await connection.fetch(sql, *clean(statement.values)))


async def _run(connection: Any, statement: Run) -> int:
    status: str = await connection.execute(_translated(statement.sql), *clean(statement.values))
    return int(status.rpartition(" ")[2])


async def _run_many(connection: Any, statement: RunMany) -> None:
    if statement.rows:
        await connection.executemany(_translated(statement.sql), [clean(row) for row in statement.rows])


async def _insert_many(connection: Any, statement: InsertMany) -> None:
    rows = [clean(row) for row in statement.rows]
    if len(rows) >= _COPY_FROM and not statement.known:
        await connection.copy_records_to_table(statement.table, records=rows, columns=statement.columns)
    elif rows:
        await connection.executemany(_insert_text(statement.table, statement.columns, statement.known), rows)


async def _update_many(connection: Any, statement: UpdateMany) -> int:
    if not statement.rows:
        return 0
    columns = [list(values) for values in zip(*map(clean, statement.rows), strict=True)]
    status: str = await connection.execute(_update_text(statement.table, statement.columns), *columns)
    return int(status.rpartition(" ")[2])


async def _hold(connection: Any, statement: Hold) -> None:
    kind = "_shared" if statement.shared else ""
    await connection.execute(f"SELECT pg_advisory_xact_lock{kind}({HOLDS[statement.name]})")


async def _lock_rows(connection: Any, statement: LockRows) -> None:
    sql = f"SELECT FROM {statement.table} WHERE id = ANY($1) ORDER BY id FOR UPDATE"
    await connection.execute(sql, *clean((list(statement.ids),)))


async def _positions(connection: Any, statement: Positions) -> list[None]:
    return [None] * statement.count


async def _number_events(connection: Any, statement: NumberEvents) -> int | None:
    """
    Number committed events. The lock is released only after its holder's commit is visible.

    The update is a statement of its own, so that its snapshot is younger than the lock.
    """
    if not await connection.fetchval(f"SELECT pg_try_advisory_xact_lock({HOLDS['positions']})"):
        return None
    return await _run(connection, Run(_NUMBER_EVENTS, (statement.limit,)))


_NUMBER_EVENTS = (
    "WITH fresh AS (SELECT id, row_number() OVER (ORDER BY id) AS n FROM"
    " (SELECT id FROM events WHERE position IS NULL AND example = 0 ORDER BY id LIMIT ?) AS waiting)"
    " UPDATE events SET position = (SELECT coalesce(max(position), 0) FROM events) + fresh.n"
    " FROM fresh WHERE events.id = fresh.id"
)

_EXECUTE: dict[type[Statement], Callable[[Any, Any], Awaitable[Any]]] = {
    Fetch: _fetch,
    FetchWide: _fetch_wide,
    Run: _run,
    RunMany: _run_many,
    InsertMany: _insert_many,
    UpdateMany: _update_many,
    Hold: _hold,
    LockRows: _lock_rows,
    Positions: _positions,
    NumberEvents: _number_events,
}


def clean(values: Row) -> Row:
    """
    Replace NUL in texts, and in lists of them: PostgreSQL's text holds every other character.

    Providers' answers may contain it, and so may ids in the paths of requests.
    """
    return tuple(map(_without_nul, values)) if any(map(_has_nul, values)) else values


def _has_nul(value: Any) -> bool:
    return (type(value) is str and "\0" in value) or (type(value) is list and any(map(_has_nul, value)))


def _without_nul(value: Any) -> Any:
    if type(value) is list:
        return list(map(_without_nul, value))
    return value.replace("\0", "\ufffd") if type(value) is str else value


_TOKENS = re.compile(r"\bNOT IN \(\?\?\)|\bIN \(\?\?\)|\?| INDEXED BY \w+")


@lru_cache(maxsize=1024)
def _translated(sql: str) -> str:
    """Translate *sql* for PostgreSQL: numbered values, lists as arrays, no index named."""
    count = 0

    def token(found: re.Match[str]) -> str:
        nonlocal count
        if "INDEXED" in found[0]:
            return ""
        count += 1
        if found[0].startswith("NOT IN"):
            return f"<> ALL(${count})"
        return f"= ANY(${count})" if found[0].startswith("IN") else f"${count}"

    return _TOKENS.sub(token, sql)


@lru_cache(maxsize=256)
def _insert_text(table: str, columns: tuple[str, ...], known: tuple[str, ...]) -> str:
    marks = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    conflict = f" ON CONFLICT ({', '.join(known)}) DO NOTHING" if known else ""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}){conflict}"


@lru_cache(maxsize=256)
def _update_text(table: str, columns: tuple[str, ...]) -> str:
    named = ("id", "version", *columns)
    arrays = ", ".join(f"${n}::{_type(table, name)}[]" for n, name in enumerate(named, 1))
    assignments = "".join(f"{name} = new.{name}, " for name in columns)
    return (
        f"UPDATE {table} SET {assignments}version = {table}.version + 1"
        f" FROM unnest({arrays}) AS new (row_id, read_version, {', '.join(columns)})"
        f" WHERE {table}.id = new.row_id AND {table}.version = new.read_version"
    )


def _type(table: str, column: str) -> str:
    kind = metadata.tables[table].columns[column].type
    for sql_type, name in (
        (sa.LargeBinary, "bytea"),
        (sa.BigInteger, "int8"),
        (sa.Integer, "int4"),
        (sa.Float, "float8"),
        (sa.String, "text"),
    ):
        if isinstance(kind, sql_type):
            return name
    raise AssertionError(f"{table}.{column} has a type without an array: {kind}")
