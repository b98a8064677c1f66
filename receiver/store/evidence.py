"""
Evidence: the append-only log of every callback, poll answer and submit answer, as it came.

A piece is durable before anybody is told that we have it; what it means is written behind it later: `verdict` and
`read_at`. Bytes and headers are never altered.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from receiver.domain.jobs import Source, Verdict
from receiver.store import tables
from receiver.store.database import Database
from receiver.store.rows import delivery_digest, from_us, moment, to_us, us
from receiver.store.statements import Fetch, FetchWide, Work, alone, first
from submitter.vocabulary import Trust


@dataclass(frozen=True, slots=True)
class Evidence:
    """What came, as it came. `id` is None until it is written."""

    source: Source
    provider: str
    job_id: str | None
    received_at: datetime
    headers_json: str
    """As they are stored, for hardly any is ever looked at; see `headers_to_json`."""
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

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Names and values, in order, every duplicate included."""
        return tuple((name, value) for name, value in json.loads(self.headers_json))

    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The bytes that came."""
        return tuple((_octets(name), _octets(value)) for name, value in json.loads(self.headers_json))


def headers_to_json(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """
    A list of [name, value] pairs, each byte as the character of its number (latin-1).

    What `json.dumps` would make of them, for a third of the time: all are escaped in one go. No header can hold a line
    break, so line breaks stand between them; where no backslash was, one in the result is of an escape.
    """
    text = b"\n".join([b"\r".join(pair) for pair in headers]).decode("latin-1")
    if "\\" in text or text.count("\r") != len(headers) or text.count("\n") != len(headers) - 1:
        return json.dumps([[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers])
    return f"[[{quoted(text)}]]".replace("\\r", '", "').replace("\\n", '"], ["')


def _octets(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:  # an answer that was kept before headers were kept byte for byte
        return text.encode()


@dataclass(frozen=True, slots=True)
class EvidenceFilter:
    """Which evidence is to be read again. None and empty: all."""

    since: datetime | None = None
    provider: str | None = None
    job_id: str | None = None
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True)
class Unread:
    """
    Evidence that nobody has read, in the order in which it came, and the job that it ends at.

    `more`: there is more, of the same jobs or of others.
    """

    evidence: Sequence[Evidence]
    place: str
    more: bool


class EvidenceLog:
    """The sentences about evidence."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, batch: Sequence[Evidence]) -> None:
        """Make *batch* durable in one commit."""
        await self._database.append("evidence", _WRITTEN, [_values(item) for item in batch])

    async def unread(self, *, limit: int, after: str = "") -> Unread:
        """
        Up to *limit* pieces that nobody has read, from the job behind *after* on and round to it again.

        Of one job there are at most `_MOST_OF_JOB`, its oldest: with each batch's `place` as the next one's *after*, a
        job with any number of callbacks takes no more of the reader's time than others do.
        """
        return await self._database.read(lambda: _unread(limit, after))

    async def unsigned_bytes(self, job_id: str) -> int:
        """About how much unsigned callbacks of a job take on disk."""
        row = await self._database.read(lambda: first(_UNSIGNED_BYTES, job_id))
        return int(row[0] or 0)

    async def repeats(self, evidence: Sequence[Evidence], *, also_later: bool = False) -> set[int]:
        """
        Those of *evidence* (by id) that are replays: their job has the same delivery, id and body, from earlier.

        A repeated id with another body is not the same delivery: it was signed anew, and is update.
        """
        keyed = [item.id for item in evidence if item.delivery_id and item.job_id]
        if not keyed:
            return set()
        rows = await self._database.read(alone(Fetch(_REPEATS if also_later else _REPEATS_BEFORE, (keyed,))))
        return {row[0] for row in rows}

    async def read_before(self, selection: EvidenceFilter, *, after: int, limit: int) -> list[Evidence]:
        """Evidence of *selection* that was read, oldest first, from behind the id *after* on."""
        clauses = ["id > ?", "read_at IS NOT NULL"]
        values: list[Any] = [after]
        for clause, value in (
            ("received_at >= ?", to_us(selection.since)),
            ("provider = ?", selection.provider),
            ("job_id = ?", selection.job_id),
        ):
            if value is not None:
                clauses.append(clause)
                values.append(value)
        if selection.verdicts:
            clauses.append("verdict IN (??)")
            values.append([verdict.value for verdict in selection.verdicts])
        query = f"SELECT {', '.join(_COLUMNS)} FROM evidence WHERE {' AND '.join(clauses)} ORDER BY id LIMIT ?"
        rows = await self._database.read(alone(Fetch(query, (*values, limit))))
        return [_from_row(row) for row in rows]

    async def answers_before(self, evidence: Evidence, *, limit: int = 100) -> list[Evidence]:
        """Earlier answers to the same kind of call for the same job, with the same status, newest first."""
        key = (evidence.job_id, evidence.source.value, evidence.status, evidence.id, limit)
        rows = await self._database.read(alone(Fetch(_ANSWERS_BEFORE, key)))
        return [_from_row(row) for row in rows]

    async def of(self, job_id: str, *, after: int = 0, limit: int = 100) -> list[Evidence]:
        rows = await self._database.read(alone(Fetch(_OF_JOB, (job_id, after, limit))))
        return [_from_row(row) for row in rows]


_COLUMNS = tuple(column.name for column in tables.evidence.columns)
_WRITTEN = tuple(name for name in _COLUMNS if name != "id")
_MOST_OF_JOB = 20
_BATCH_BYTES = 4 * 1024 * 1024
_UNREAD = (
    "SELECT job_id, id, length(body) FROM evidence WHERE read_at IS NULL AND job_id > ? ORDER BY job_id, id LIMIT ?"
)
_UNREAD_ROWS = "FROM evidence WHERE id IN (??) AND read_at IS NULL"
_REPEATS = (
    "SELECT id FROM evidence WHERE id IN (??) AND EXISTS (SELECT 1 FROM evidence AS other"
    " WHERE other.delivery_digest = evidence.delivery_digest AND other.id != evidence.id)"
)
_REPEATS_BEFORE = _REPEATS.replace("!=", "<")
ROW_BYTES = 512
"""What a row takes beside its headers and body, about."""
_UNSIGNED_BYTES = (
    f"SELECT sum(length(body) + length(headers) + {ROW_BYTES}) FROM evidence WHERE job_id = ?"
    f" AND source = '{Source.CALLBACK.value}' AND trust = '{Trust.CAPABILITY_TOKEN.value}'"
)
_OF_JOB = f"SELECT {', '.join(_COLUMNS)} FROM evidence WHERE job_id = ? AND id > ? ORDER BY id LIMIT ?"
_ANSWERS_BEFORE = (
    f"SELECT {', '.join(_COLUMNS)} FROM evidence WHERE job_id = ? AND source = ?"
    " AND status = ? AND id < ? ORDER BY id DESC LIMIT ?"
)


def _values(item: Evidence) -> tuple[Any, ...]:
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
        item.headers_json,
        item.body,
        item.body_name,
        item.peer,
        item.delivery_id,
        item.note,
        _digest(item),
    )


def _digest(item: Evidence) -> str | None:
    if item.delivery_id is None or item.job_id is None or item.verdict is Verdict.REFUSED:
        return None
    return delivery_digest(item.job_id, item.delivery_id, item.body)


def _from_row(row: Any) -> Evidence:
    return Evidence(
        id=row[0],
        job_id=row[1],
        provider=row[2],
        source=Source(row[3]),
        verdict=Verdict(row[4]),
        trust=None if row[5] is None else Trust(row[5]),
        received_at=moment(row[6]),
        read_at=from_us(row[7]),
        asked_at=from_us(row[8]),
        status=row[9],
        headers_json=row[10],
        body=bytes(row[11]),
        body_name=row[12],
        peer=row[13],
        delivery_id=row[14],
        note=row[15],
    )


def _unread(limit: int, after: str) -> Work[Unread]:
    chosen: list[int] = []
    place, size, more = after, 0, False
    laps: list[tuple[str, str | None]] = [(after, None)] + ([("", after)] if after else [])
    for start, last in laps:
        cursor, ended = start, False
        while not ended:
            rows = yield Fetch(_UNREAD, (cursor, limit))
            ended = len(rows) < limit
            of_job: dict[str, int] = {}
            for job_id, number, length in rows:
                if last is not None and job_id > last:
                    ended = True
                    break
                cursor = job_id
                of_job[job_id] = of_job.get(job_id, 0) + 1
                if of_job[job_id] > _MOST_OF_JOB:
                    more = True
                elif len(chosen) == limit or size >= _BATCH_BYTES:
                    return Unread((yield from _of_ids(chosen)), place, True)
                else:
                    chosen.append(number)
                    place, size = job_id, size + length
    return Unread((yield from _of_ids(chosen)), place, more)


def _of_ids(ids: list[int]) -> Work[list[Evidence]]:
    if not ids:
        return []
    rows = yield FetchWide(_COLUMNS, _UNREAD_ROWS, (ids,), blobs=frozenset({"body"}))
    return [_from_row(row) for row in sorted(rows, key=lambda row: int(row[0]))]
