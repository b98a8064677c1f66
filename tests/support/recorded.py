"""A database that remembers the statements that were run on it, and asks the engine how it would run them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from receiver.store.database import Database
from receiver.store.engines.sqlite import SqliteDatabase
from receiver.store.statements import Fetch, FetchWide, Run, Work
from tests.support.rows import fetch

T = TypeVar("T")


class Recorded:
    """`Database` over another one. `texts` holds the text of each statement that was run, with its values."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.texts: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def read(self, work: Callable[[], Work[T]]) -> T:
        return await self._database.read(lambda: self._noted(work()))

    async def write(self, work: Callable[[], Work[T]], *, attempts: int = 5) -> T:
        return await self._database.write(lambda: self._noted(work()), attempts=attempts)

    def _noted(self, steps: Work[T]) -> Work[T]:
        result = None
        while True:
            try:
                statement = steps.send(result)
            except StopIteration as stop:
                value: T = stop.value
                return value
            match statement:
                case FetchWide(columns, rest, values):
                    self.texts[f"SELECT {', '.join(columns)} {rest}"] = values
                case Fetch(sql, values) | Run(sql, values):
                    self.texts[sql] = values
                case _:
                    pass
            result = yield statement


async def tables_read_whole(database: Database, sql: str, values: Any) -> list[str]:
    """The tables that the engine would read from end to end for *sql*."""
    if isinstance(database, SqliteDatabase):
        steps = [row[3] for row in await fetch(database, f"EXPLAIN QUERY PLAN {sql}", *values)]
        return [found[1] for step in steps if (found := re.match(r"SCAN (\w+)(?!.*\bUSING\b)", step))]
    ((plan,),) = await fetch(database, f"EXPLAIN (FORMAT JSON) {sql}", *values)
    return [node["Relation Name"] for node in _nodes(json.loads(plan)[0]["Plan"]) if node["Node Type"] == "Seq Scan"]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)
