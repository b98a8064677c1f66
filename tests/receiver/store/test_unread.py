"""Unread evidence and replays beside a flood: no job waits behind another's, on either engine."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from receiver.domain.evidence import Evidence
from receiver.domain.jobs import Source
from receiver.store.database import Database
from receiver.store.evidence import EvidenceLog
from receiver.store.statements import Run
from submitter.vocabulary import Trust


def piece(job_id: str, body: bytes = b"{}", **fields: object) -> Evidence:
    values = {"headers_json": "[]", "trust": Trust.CAPABILITY_TOKEN, **fields}
    return Evidence(Source.CALLBACK, "novita", job_id, datetime.now(UTC), body=body, **values)  # type: ignore[arg-type]


async def test_no_job_waits_behind_anothers_flood(database: Database) -> None:
    log = EvidenceLog(database)
    names = [f"job_{n:026d}" for n in range(200)]
    for start in range(0, 3000, 500):
        await log.record([piece(names[100], b"%d" % n) for n in range(start, start + 500)])
    await log.record([piece(name) for name in names if name != names[100]])
    seen: Counter[str] = Counter()
    place, batches = "", 0
    while True:
        batch = await log.unread(limit=100, after=place)
        if not batch.evidence:
            break
        place, batches = batch.place, batches + 1
        assert len(batch.evidence) <= 100
        assert Counter(piece.job_id for piece in batch.evidence)[names[100]] <= 20
        assert [piece.id for piece in batch.evidence] == sorted(piece.id or 0 for piece in batch.evidence)
        seen.update(piece.job_id or "" for piece in batch.evidence)
        if batches == 3:
            assert all(seen[name] == 1 for name in names if name != names[100]), "all others in the first lap"
        ids = [piece.id for piece in batch.evidence]
        await database.write(lambda ids=ids: _read(ids))  # type: ignore[misc]
    assert seen == {**dict.fromkeys(names, 1), names[100]: 3000}


def _read(ids: list[int | None]):  # type: ignore[no-untyped-def]
    return (yield Run("UPDATE evidence SET read_at = 1 WHERE id IN (??)", (list(ids),)))


async def test_batches_are_bounded_in_bytes(database: Database) -> None:
    log = EvidenceLog(database)
    await log.record([piece(f"job_{n:026d}", b"x" * 1_000_000) for n in range(30)])
    batch = await log.unread(limit=100)
    assert 1 < len(batch.evidence) <= 6
    assert batch.more


async def test_replays_are_recognized_whatever_is_there(database: Database) -> None:
    log = EvidenceLog(database)
    job, other = (f"job_{n:026d}" for n in range(2))
    await log.record([piece(job, b"%d" % n, delivery_id="msg_1") for n in range(300)])
    await log.record([piece(job, b"7", delivery_id="msg_1"), piece(job, b"7", delivery_id="msg_2")])
    await log.record([piece(other, b"7", delivery_id="msg_1"), piece(job, b"7", delivery_id=None)])
    every = await log.of(job, limit=1000)
    elsewhere = await log.of(other)
    assert await log.repeats([*every, *elsewhere]) == {every[300].id}
    assert await log.repeats(every, also_later=True) == {every[7].id, every[300].id}


async def test_what_unsigned_callbacks_take_is_summed_up_for_a_job_alone(database: Database) -> None:
    log = EvidenceLog(database)
    job, other = (f"job_{n:026d}" for n in range(2))
    assert await log.unsigned_bytes(job) == 0
    signed = piece(job, b"x" * 5000, trust=Trust.SIGNED_BODY)
    await log.record([piece(job, b"x" * 1000), piece(job, b"x" * 2000), piece(other, b"x" * 9000), signed])
    assert 3000 <= await log.unsigned_bytes(job) <= 3000 + 2 * 600
