"""Statements on SQLite: each is executed on the thread of its connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import orjson

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

ROWS_AT_ONCE = 64
"""Up to this many rows are one statement, and so a transaction by themselves."""
_PACKED_BYTES = 4 * 1024 * 1024
"""More than this is fetched row by row: packing would hold it twice."""


def execute(connection: sqlite3.Connection, statement: Statement) -> Any:
    """Execute *statement*, and return its result as `receiver.store.statements` describes it."""
    return _EXECUTE[type(statement)](connection, statement)


def _fetch(db: sqlite3.Connection, statement: Fetch) -> list[Any]:
    return db.execute(*_expanded(statement.sql, statement.values)).fetchall()


def _fetch_wide(db: sqlite3.Connection, statement: FetchWide) -> list[Any]:
    sql, values = _expanded(f"SELECT {', '.join(statement.columns)} {statement.rest}", statement.values)
    if statement.blobs:
        size = " + ".join(f"length({name})" for name in sorted(statement.blobs))
        (total,) = db.execute(f"SELECT total({size}) FROM ({sql})", values).fetchone()
        if total > _PACKED_BYTES:
            return db.execute(sql, values).fetchall()
    # Bytes are joined as they are: in hexadecimal, inside the JSON, they would cost more than all the rest of settling.
    names = [column.rpartition(" AS ")[2] for column in statement.columns]
    packed = ", ".join(f"ifnull(length({name}), 0)" if name in statement.blobs else name for name in names)
    joined = "".join(f", CAST(group_concat({name}, '') AS BLOB)" for name in names if name in statement.blobs)
    text, *blobs = db.execute(f"SELECT json_group_array(json_array({packed})){joined} FROM ({sql})", values).fetchone()
    rows: list[Any] = orjson.loads(text)
    places = [place for place, name in enumerate(names) if name in statement.blobs]
    for place, blob in zip(places, blobs, strict=True):
        start = 0
        for row in rows:
            end = start + row[place]
            row[place], start = (blob or b"")[start:end], end
    return rows


def _run(db: sqlite3.Connection, statement: Run) -> int:
    before = db.total_changes
    db.execute(*_expanded(statement.sql, statement.values))
    return db.total_changes - before


def _run_many(db: sqlite3.Connection, statement: RunMany) -> int:
    before = db.total_changes
    db.executemany(statement.sql, statement.rows)
    return db.total_changes - before


def _insert_many(db: sqlite3.Connection, statement: InsertMany) -> None:
    for rows in _chunks(statement.rows):
        sql = _insert_text(statement.table, statement.columns, statement.known, len(rows))
        db.execute(sql, [value for row in rows for value in row])


def _update_many(db: sqlite3.Connection, statement: UpdateMany) -> int:
    before = db.total_changes
    for rows in _chunks(statement.rows):
        sql = _update_text(statement.table, statement.columns, len(rows))
        db.execute(sql, [value for row in rows for value in row])
    return db.total_changes - before


def _hold(db: sqlite3.Connection, statement: Hold) -> None:
    """Nothing to do: this is the only writer."""


def _lock_rows(db: sqlite3.Connection, statement: LockRows) -> None:
    """Nothing to do: this is the only writer."""


def _positions(db: sqlite3.Connection, statement: Positions) -> list[int]:
    (newest,) = db.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()
    return list(range(newest + 1, newest + 1 + statement.count))


def _number_events(db: sqlite3.Connection, statement: NumberEvents) -> int:
    """Nothing to do: events have their positions from the start."""
    return 0


_EXECUTE: dict[type[Statement], Callable[[sqlite3.Connection, Any], Any]] = {
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


def _expanded(sql: str, values: Row) -> tuple[str, Row]:
    """Return *sql* with a `?` for each value of a list, and all values."""
    if "??" not in sql:
        return sql, values
    flat: list[Any] = []
    for value in values:
        if isinstance(value, list):
            flat += value
            sql = sql.replace("??", ", ".join("?" * len(value)), 1)
        else:
            flat.append(value)
    return sql, flat


@lru_cache(maxsize=1024)
def _insert_text(table: str, columns: tuple[str, ...], known: tuple[str, ...], count: int) -> str:
    marks = f"({', '.join('?' * len(columns))})"
    conflict = f" ON CONFLICT ({', '.join(known)}) DO NOTHING" if known else ""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([marks] * count)}{conflict}"


@lru_cache(maxsize=1024)
def _update_text(table: str, columns: tuple[str, ...], count: int) -> str:
    marks = f"({', '.join('?' * (len(columns) + 2))})"
    assignments = "".join(f"{name} = new.{name}, " for name in columns)
    return (
        f"WITH new (row_id, read_version, {', '.join(columns)}) AS (VALUES {', '.join([marks] * count)})"
        f" UPDATE {table} SET {assignments}version = version + 1 FROM new"
        f" WHERE {table}.id = new.row_id AND {table}.version = new.read_version"
    )


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    return (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE))
