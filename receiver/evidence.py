"""
Evidence: the append-only log of every callback, poll answer and submit answer, as it came.

A piece is durable before anybody is told that we have it; what it means is written behind it later: `verdict` and
`read_at`. Bytes and headers are never altered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from receiver import tables
from receiver.database import Database
from receiver.jobs import Source, Verdict
from receiver.rows import chunks, from_us, moment, to_us, us
from submitter.vocabulary import Trust


@dataclass(frozen=True, slots=True)
class Evidence:
    """What came, as it came. `id` is None until it is written."""

    source: Source
    provider: str
    job_id: str | None
    received_at: datetime
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)
    verdict: Verdict = Verdict.RECEIVED
    trust: Trust | None = None
    read_at: datetime | None = None
    asked_at: datetime | None = None
    status: int | None = None
    body_name: str | None = None
    peer: str | None = None
    delivery_id: str | None = None
    note: str | None = None
    id: int | None = None


class EvidenceLog:
    """The sentences about evidence."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, batch: Sequence[Evidence]) -> None:
        """Make *batch* durable in one commit."""
        rows = [_evidence_values(item) for item in batch]
        await self._database.batch(lambda db: db.executemany(_INSERT, rows))

    async def unread(self, *, limit: int, after: int = 0) -> list[Evidence]:
        """Evidence that nobody has read, oldest first."""
        async with self._database.read() as connection:
            rows = await connection.execute(
                select(tables.evidence)
                .where(tables.evidence.c.read_at.is_(None), tables.evidence.c.id > after)
                .order_by(tables.evidence.c.id)
                .limit(limit)
            )
            return [_evidence_from_row(row) for row in rows.mappings()]

    async def earlier_deliveries(self, evidence: Sequence[Evidence]) -> set[int]:
        """Those of *evidence* (by id) whose delivery id their job has seen before."""
        keyed = [item for item in evidence if item.delivery_id and item.job_id and item.id]
        if not keyed:
            return set()
        first: dict[tuple[str, str], int] = {}
        table = tables.evidence.c
        async with self._database.read() as connection:
            for chunk in chunks(sorted({item.job_id for item in keyed if item.job_id})):
                rows = await connection.execute(
                    select(table.job_id, table.delivery_id, func.min(table.id))
                    .where(table.job_id.in_(chunk), table.delivery_id.is_not(None), table.verdict != Verdict.REFUSED)
                    .group_by(table.job_id, table.delivery_id)
                )
                first.update({(row[0], row[1]): row[2] for row in rows})
        return {
            item.id for item in keyed if item.id and first.get((item.job_id or "", item.delivery_id or "")) != item.id
        }

    async def close(self, verdicts: Iterable[tuple[int, Verdict, str | None]], now: datetime) -> None:
        """Mark evidence as read that is about no job's state."""
        async with self._database.write_raw() as db:
            await db.executemany(
                "UPDATE evidence SET verdict = ?, note = coalesce(?, note), read_at = ? WHERE id = ?",
                [(verdict.value, note, us(now), number) for number, verdict, note in verdicts],
            )

    async def of(self, job_id: str, *, after: int = 0, limit: int = 100) -> list[Evidence]:
        async with self._database.read() as connection:
            rows = await connection.execute(
                select(tables.evidence)
                .where(tables.evidence.c.job_id == job_id, tables.evidence.c.id > after)
                .order_by(tables.evidence.c.id)
                .limit(limit)
            )
            return [_evidence_from_row(row) for row in rows.mappings()]


_INSERT = (
    "INSERT INTO evidence (job_id, provider, source, verdict, trust, received_at, read_at, asked_at, status, headers,"
    " body, body_name, peer, delivery_id, note) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def _evidence_values(item: Evidence) -> tuple[Any, ...]:
    return (
        item.job_id,
        item.provider,
        item.source.value,
        item.verdict.value,
        item.trust and item.trust.value,
        us(item.received_at),
        to_us(item.read_at),
        to_us(item.asked_at),
        item.status,
        json.dumps(item.headers, separators=(",", ":")),
        item.body,
        item.body_name,
        item.peer,
        item.delivery_id,
        item.note,
    )


def _evidence_from_row(row: Any) -> Evidence:
    return Evidence(
        id=row["id"],
        source=Source(row["source"]),
        provider=row["provider"],
        job_id=row["job_id"],
        received_at=moment(row["received_at"]),
        headers=tuple((name, value) for name, value in json.loads(row["headers"])),
        body=bytes(row["body"]),
        verdict=Verdict(row["verdict"]),
        trust=None if row["trust"] is None else Trust(row["trust"]),
        read_at=from_us(row["read_at"]),
        asked_at=from_us(row["asked_at"]),
        status=row["status"],
        body_name=row["body_name"],
        peer=row["peer"],
        delivery_id=row["delivery_id"],
        note=row["note"],
    )
