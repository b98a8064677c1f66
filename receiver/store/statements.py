"""
Statements that a transaction yields, as values.

A transaction is a generator: it yields statements, is sent their results, and returns its own result. It does no I/O,
so one body of code runs on every engine: SQLite drives a whole generator on the thread of a connection, PostgreSQL
awaits each statement. An engine calls the work again when another transaction interfered; so the work must start from
scratch each time it is called.

SQL texts are written once. Every `?` stands for one value; `IN (??)` stands for a list of values, given as one list in
the place of that value. Engines translate the rest:

    lock            appended on PostgreSQL; SQLite has one writer, and needs no row locks
    INDEXED BY …    dropped on PostgreSQL

Fields that look redundant exist for speed. `FetchWide` names its columns because SQLite's driver gives up the
interpreter at every row, and takes it back late while the event loop is busy: the engine packs all rows into one.
`InsertMany` and `UpdateMany` carry their rows as data for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
Row = Sequence[Any]

FOR_UPDATE = "FOR UPDATE"
SKIP_LOCKED = "FOR UPDATE SKIP LOCKED"


@dataclass(frozen=True, slots=True)
class Fetch:
    """Rows of *sql*, as a list of tuples. *lock* is `FOR_UPDATE` or `SKIP_LOCKED`."""

    sql: str
    values: Row = ()
    lock: str = ""


@dataclass(frozen=True, slots=True)
class FetchWide:
    """
    Rows of `SELECT columns rest`, as a list of sequences in no particular order: many or wide rows at once.

    An expression among *columns* needs a name (`… AS name`); *blobs* are those that hold bytes.
    """

    columns: tuple[str, ...]
    rest: str
    values: Row = ()
    blobs: frozenset[str] = field(default=frozenset())


@dataclass(frozen=True, slots=True)
class Run:
    """A statement without rows. Its result is the number of rows that it changed."""

    sql: str
    values: Row = ()


@dataclass(frozen=True, slots=True)
class RunMany:
    """*sql* once for each of *rows*."""

    sql: str
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class InsertMany:
    """New rows. With *known*, the columns of a unique key, a row whose key exists is left as it is."""

    table: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    known: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdateMany:
    """
    Set *columns* of *table* row by row, each only if its `version` is the one that was read; increment the versions.

    Each of *rows* is (id, version read, a value for each column). The result is the number of rows that were written.
    """

    table: str
    columns: tuple[str, ...]
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Hold:
    """
    A named lock, held until the transaction ends; *shared* holders exclude only an exclusive holder.

    SQLite's one writer holds all of them anyway.
    """

    name: str
    shared: bool = False


@dataclass(frozen=True, slots=True)
class LockRows:
    """
    Lock the rows of *table* with these *ids* until the transaction ends, always in the same order.

    So transactions that want the same rows wait for each other and never deadlock. SQLite's one writer needs no lock.
    """

    table: str
    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Positions:
    """
    Positions for *count* events that this transaction writes, as a list.

    Given by SQLite, where the order of writing is the order of commits. None for each on PostgreSQL: there the
    sequencer numbers events after their commit.
    """

    count: int


@dataclass(frozen=True, slots=True)
class NumberEvents:
    """
    Give positions to up to *limit* committed events that have none.

    The result is the number of events numbered; None if another transaction is numbering.
    """

    limit: int


Statement = Fetch | FetchWide | Run | RunMany | InsertMany | UpdateMany | Hold | LockRows | Positions | NumberEvents
Work = Generator[Statement, Any, T]
"""A transaction, or a part of one: `rows = yield Fetch(…)`, `found = yield from part(…)`."""


def alone(statement: Statement) -> Callable[[], Work[Any]]:
    """Return a transaction of a single *statement*, for `Database.read` and `Database.write`."""

    def work() -> Work[Any]:
        return (yield statement)

    return work


def first(sql: str, *values: Any, lock: str = "") -> Work[Any]:
    """The first row of *sql*, or None."""
    rows = yield Fetch(sql, values, lock)
    return rows[0] if rows else None
