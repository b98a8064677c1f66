"""Evidence: the append-only log of everything received, durable before it is acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from receiver.domain.evidence import Evidence, EvidenceFilter, delivery_digest
from receiver.domain.jobs import Source, Verdict
from receiver.store.codecs import Codec, to_us
from receiver.store.database import Database
from receiver.store.statements import Fetch, FetchWide, Work, alone, first
from submitter.vocabulary import Trust


@dataclass(frozen=True, slots=True)
class Unread:
    """
    Unread evidence, in the order of its arrival, and the job that it ends at.

    `more`: there is more, of the same jobs or of others.
    """

    evidence: Sequence[Evidence]
    place: str
    more: bool


class EvidenceLog:
    """The statements about evidence, one transaction each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, batch: Sequence[Evidence]) -> None:
        """Make *batch* durable in one commit."""
        await self._database.append("evidence", _WRITTEN, [(*_CODEC.to_row(item), _digest(item)) for item in batch])

    async def unread(self, *, limit: int, after: str = "") -> Unread:
        """
        Return up to *limit* unread pieces, starting at the job that follows *after* and wrapping around to it.

        Of each job, at most the `_MOST_OF_JOB` oldest are returned: with each batch's `place` as the next one's
        *after*, a job with any number of callbacks takes no more of the reader's time than others do.
        """
        return await self._database.read(lambda: _unread(limit, after))

    async def unsigned_bytes(self, job_id: str) -> int:
        """Return about how many bytes the unsigned callbacks of a job take on disk."""
        row = await self._database.read(lambda: first(_UNSIGNED_BYTES, job_id))
        return int(row[0] or 0)

    async def repeats(self, evidence: Sequence[Evidence], *, also_later: bool = False) -> set[int]:
        """
        Return the ids of replays among *evidence*: their job has the same delivery, id and body, from earlier.

        A repeated id with another body is not the same delivery: it was signed again.
        """
        keyed = [item.id for item in evidence if item.delivery_id and item.job_id]
        if not keyed:
            return set()
        rows = await self._database.read(alone(Fetch(_REPEATS if also_later else _REPEATS_BEFORE, (keyed,))))
        return {row[0] for row in rows}

    async def read_before(self, selection: EvidenceFilter, *, after: int, limit: int) -> list[Evidence]:
        """Return evidence that matches *selection* and was read, oldest first, with ids above *after*."""
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
        query = f"SELECT {_CODEC.sql} FROM evidence WHERE {' AND '.join(clauses)} ORDER BY id LIMIT ?"
        rows = await self._database.read(alone(Fetch(query, (*values, limit))))
        return [_CODEC.from_row(row) for row in rows]

    async def answers_before(self, evidence: Evidence, *, limit: int = 100) -> list[Evidence]:
        """Return earlier answers to the same kind of call for the same job, with the same status, newest first."""
        key = (evidence.job_id, evidence.source.value, evidence.status, evidence.id, limit)
        rows = await self._database.read(alone(Fetch(_ANSWERS_BEFORE, key)))
        return [_CODEC.from_row(row) for row in rows]

    async def of(self, job_id: str, *, after: int = 0, limit: int = 100) -> list[Evidence]:
        rows = await self._database.read(alone(Fetch(_OF_JOB, (job_id, after, limit))))
        return [_CODEC.from_row(row) for row in rows]


_CODEC = Codec(Evidence, numbered="id")
_ID = _CODEC.place("id")
_WRITTEN = (*_CODEC.written, "delivery_digest")
_MOST_OF_JOB = 20
_BATCH_BYTES = 4 * 1024 * 1024
_UNREAD_SIZES = ("job_id", "id", "length(body) AS size")
_UNREAD = "FROM evidence WHERE read_at IS NULL AND job_id > ? ORDER BY job_id, id LIMIT ?"
_UNREAD_ROWS = "FROM evidence WHERE id IN (??) AND read_at IS NULL"
_REPEATS = (
    "SELECT id FROM evidence WHERE id IN (??) AND EXISTS (SELECT 1 FROM evidence AS other"
    " WHERE other.delivery_digest = evidence.delivery_digest AND other.id != evidence.id)"
)
_REPEATS_BEFORE = _REPEATS.replace("!=", "<")
ROW_BYTES = 512
"""The approximate size of a row without its headers and body."""
_UNSIGNED_BYTES = (
    f"SELECT sum(length(body) + length(headers) + {ROW_BYTES}) FROM evidence WHERE job_id = ?"
    f" AND source = '{Source.CALLBACK.value}' AND trust = '{Trust.CAPABILITY_TOKEN.value}'"
)
_OF_JOB = f"SELECT {_CODEC.sql} FROM evidence WHERE job_id = ? AND id > ? ORDER BY id LIMIT ?"
_ANSWERS_BEFORE = (
    f"SELECT {_CODEC.sql} FROM evidence WHERE job_id = ? AND source = ?"
    " AND status = ? AND id < ? ORDER BY id DESC LIMIT ?"
)


def _digest(item: Evidence) -> str | None:
    if item.delivery_id is None or item.job_id is None or item.verdict is Verdict.REFUSED:
        return None
    return delivery_digest(item.job_id, item.delivery_id, item.body)


def _unread(limit: int, after: str) -> Work[Unread]:
    chosen: list[int] = []
    place, size, more = after, 0, False
    laps: list[tuple[str, str | None]] = [(after, None)] + ([("", after)] if after else [])
    for start, last in laps:
        cursor, ended = start, False
        while not ended:
            rows = yield FetchWide(_UNREAD_SIZES, _UNREAD, (cursor, limit))
            rows = sorted(rows, key=lambda row: (row[0], row[1]))
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
    rows = yield FetchWide(_CODEC.columns, _UNREAD_ROWS, (ids,), blobs=frozenset({"body"}))
    return [_CODEC.from_row(row) for row in sorted(rows, key=lambda row: int(row[_ID]))]
