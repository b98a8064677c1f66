"""
Sums by hour and provider, in the table `rollups`.

An hour is always summed from the tables, by ranges of indexes, and overwrites its earlier sums: writing it twice, or in
two processes, changes nothing. Logs without an index on time are entered by bisection, since their ids are in the order
of time. Deliveries belong to no provider: their sums are stored under the empty name.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from receiver.domain.ids import lowest_id
from receiver.domain.rollups import HOUR, Sums
from receiver.store.codecs import moment, us
from receiver.store.database import Database
from receiver.store.statements import Fetch, RunMany, Work, alone, first

DELIVERIES = ""


class RollupTable:
    """The statements about hourly sums."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self) -> datetime | None:
        """Return the last hour that has been summed."""
        row = await self._database.read(lambda: first("SELECT max(hour) FROM rollups"))
        return None if row[0] is None else moment(row[0])

    async def oldest_job(self) -> datetime | None:
        """Return when the first job was made."""
        row = await self._database.read(lambda: first("SELECT created_at FROM jobs ORDER BY id LIMIT 1"))
        return None if row is None else moment(row[0])

    async def summed(self, hour: datetime, providers: Sequence[str]) -> dict[str, Sums]:
        """Sum the hour that begins at *hour* from the tables, by provider with any jobs, and under `DELIVERIES`."""
        return await self._database.read(lambda: _summed(hour, providers))

    async def write(self, hour: datetime, sums: Mapping[str, Sums]) -> None:
        rows = [(us(hour), name, json.dumps(its.to_json(), separators=(",", ":"))) for name, its in sums.items()]
        await self._database.write(alone(RunMany(_WRITE, rows)))

    async def between(self, since: datetime, until: datetime) -> list[tuple[datetime, str, Sums]]:
        """Return the sums from *since* until before *until*, oldest first: (hour, provider, sums)."""
        rows = await self._database.read(alone(Fetch(_BETWEEN, (us(since), us(until)))))
        return await asyncio.to_thread(_read, rows)  # a month is thousands of rows


def _read(rows: Sequence[Any]) -> list[tuple[datetime, str, Sums]]:
    return [(moment(hour), provider, Sums.from_json(json.loads(body))) for hour, provider, body in rows]


def _summed(hour: datetime, providers: Sequence[str]) -> Work[dict[str, Sums]]:
    sums = {provider: Sums() for provider in providers}
    sums[DELIVERIES] = Sums()
    end = hour + HOUR
    for provider, count in (yield Fetch(_CREATED, (lowest_id("job", hour), lowest_id("job", end)))):
        sums.setdefault(provider, Sums()).created = count
    for provider in providers:
        rows = yield Fetch(_FINISHED, (provider, us(hour), us(end)))
        for state, awaited, milliseconds, unit, amount, count in rows:
            _add_finished(sums[provider], state, awaited, milliseconds, unit, amount, count)
        lost = (yield from first(_LOST, provider, us(hour), us(end)))[0]
        if lost:
            sums[provider].callbacks["lost"] = lost
    came = yield from _range("evidence", "received_at", hour, end)
    for provider, verdict, count in (yield Fetch(_CALLBACKS, came)):
        callbacks = sums.setdefault(provider, Sums()).callbacks
        callbacks["received"] = callbacks.get("received", 0) + count
        if verdict in ("late", "refused"):
            callbacks[verdict] = count
    tried = yield from _range("attempts", "started_at", hour, end)
    for delivered, count in (yield Fetch(_ATTEMPTS, tried)):
        sums[DELIVERIES].attempts["delivered" if delivered else "failed"] = count
    return {name: its for name, its in sums.items() if name == DELIVERIES or its != Sums()}


def _add_finished(
    sums: Sums, state: str, awaited: int, milliseconds: int | None, unit: str | None, amount: str | None, count: int
) -> None:
    sums.finished[state] = sums.finished.get(state, 0) + count
    if milliseconds is not None:
        sums.turnaround[milliseconds] = sums.turnaround.get(milliseconds, 0) + count
    if awaited:
        sums.callbacks["awaited"] = sums.callbacks.get("awaited", 0) + count
    if unit is not None and amount is not None:
        sums.cost[unit] = sums.cost.get(unit, Decimal(0)) + Decimal(amount) * count


def _range(table: str, column: str, start: datetime, end: datetime) -> Work[tuple[int, int]]:
    """Return the range of ids of a log's rows from *start* until before *end*, its end excluded."""
    lowest = yield from _first_id(table, column, us(start))
    return lowest, (yield from _first_id(table, column, us(end)))


def _first_id(table: str, column: str, at: int) -> Work[int]:
    """Return the id of the first row from *at* or later; if there is none, an id above the last."""
    low, high = yield from first(f"SELECT coalesce(min(id), 0), coalesce(max(id), 0) + 1 FROM {table}")
    query = f"SELECT id, {column} FROM {table} WHERE id >= ? ORDER BY id LIMIT 1"
    while low < high:
        middle = (low + high) // 2
        row = yield from first(query, middle)
        if row is None or row[1] >= at:
            high = middle
        else:
            low = row[0] + 1
    return int(low)


_SECOND = 1_000_000
_TOOK = "(finished_at - sent_at)"
_ROUNDED = (
    f"CASE WHEN {_TOOK} < {10 * _SECOND} THEN {_TOOK} / {_SECOND // 10} * 100"
    f" WHEN {_TOOK} < {100 * _SECOND} THEN {_TOOK} / {_SECOND} * 1000"
    f" WHEN {_TOOK} < {1000 * _SECOND} THEN {_TOOK} / {10 * _SECOND} * 10000"
    f" ELSE {_TOOK} / {100 * _SECOND} * 100000 END"
)
_CREATED = "SELECT provider, count(*) FROM jobs WHERE id >= ? AND id < ? GROUP BY provider"
_HOUR_OF_PROVIDER = "provider = ? AND finished_at >= ? AND finished_at < ?"
_FINISHED = (
    "SELECT state, awaited, took, cost_unit, cost_amount, count(*) FROM (SELECT state,"
    " CASE WHEN awaits_callback = 1 AND settled_by IN ('callback', 'poll') THEN 1 ELSE 0 END AS awaited,"
    f" CASE WHEN settled_by IS NOT NULL THEN {_ROUNDED} END AS took, cost_unit, cost_amount"
    f" FROM jobs WHERE {_HOUR_OF_PROVIDER}) AS ended GROUP BY state, awaited, took, cost_unit, cost_amount"
)
_LOST = (
    f"SELECT count(*) FROM jobs WHERE {_HOUR_OF_PROVIDER} AND settled_by = 'poll' AND awaits_callback = 1"
    " AND NOT EXISTS (SELECT 1 FROM evidence WHERE job_id = jobs.id AND source = 'callback' AND verdict <> 'refused'"
    " AND received_at >= finished_at)"
)
_CALLBACKS = (
    "SELECT provider, verdict, count(*) FROM evidence WHERE id >= ? AND id < ? AND source = 'callback'"
    " GROUP BY provider, verdict"
)
_ATTEMPTS = (
    "SELECT delivered, count(*) FROM (SELECT CASE WHEN error IS NULL THEN 1 ELSE 0 END AS delivered"
    " FROM attempts WHERE id >= ? AND id < ?) AS tried GROUP BY delivered"
)
_WRITE = (
    "INSERT INTO rollups (hour, provider, body) VALUES (?, ?, ?)"
    " ON CONFLICT (hour, provider) DO UPDATE SET body = excluded.body"
)
_BETWEEN = "SELECT hour, provider, body FROM rollups WHERE hour >= ? AND hour < ? ORDER BY hour, provider"
