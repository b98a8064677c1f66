"""Floods of callbacks to one URL: bounded on disk, and no other job waits behind them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from receiver.domain.evidence import Evidence
from receiver.domain.jobs import Job, Source
from receiver.store.database import open_database
from receiver.store.evidence import EvidenceLog
from receiver.store.statements import Run
from receiver.web.callback_budget import CallbackBudget
from submitter.vocabulary import State, Trust
from tests.support.running_receiver import RunningReceiver, novita_body, running_receiver
from tests.support.waiting import eventually


def piece(job_id: str, body: bytes = b"{}", **fields: object) -> Evidence:
    values = {"headers_json": "[]", "trust": Trust.CAPABILITY_TOKEN, **fields}
    return Evidence(Source.CALLBACK, "novita", job_id, datetime.now(UTC), body=body, **values)  # type: ignore[arg-type]


async def fill(here: RunningReceiver, job: Job) -> int:
    """Post until it is refused; returns how many were taken."""
    for n in range(100):
        body = json.dumps({"n": n, "x": "x" * 10_000}).encode()
        answer = await here.post(job, body)
        if answer.status_code == 429:
            assert answer.json()["code"] == "too_many_callbacks"
            assert int(answer.headers["retry-after"]) > 0
            return n
        assert answer.status_code == 200
    raise AssertionError("it was never refused")


async def test_one_url_fills_its_budget_and_no_more_and_a_poll_is_made_instead(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, callback_budget=100_000) as here:
        flooded, other, signed_job = await here.job("novita"), await here.job("novita"), await here.job("freepik")
        assert 7 <= await fill(here, flooded) <= 10
        for _ in range(20):
            assert (await here.post(flooded, b"x" * 10_000)).status_code == 429
        await eventually(lambda: flooded.remote_id in here.upstream.polls)
        assert len(await here.evidence(flooded)) < 30
        assert sum(len(one.body) for one in await here.evidence(flooded)) < 100_000
        answer = await here.post(other, novita_body(other.remote_id or "", "IN_PROGRESS"))
        assert answer.status_code == 200
        for n in range(20):
            answer = await here.write_events(signed_job, "IN_PROGRESS", url=f"https://x.example/{n}/{'x' * 10_000}")
            assert answer.status_code == 200
        metrics = (await here.client.get("/metrics", headers={"host": "127.0.0.1"})).text
        assert 'receiver_callbacks_total{provider="novita",verdict="over_budget"} 21.0' in metrics
        here.upstream.says[flooded.remote_id or ""] = "COMPLETED"
        await here.becomes(flooded, State.SUCCEEDED)
    async with running_receiver(tmp_path, callback_budget=100_000) as here:
        assert await fill(here, flooded) <= 1, "it holds after a restart"


async def test_posts_at_once_do_not_overrun_a_budget(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, callback_budget=100_000) as here:
        job = await here.job("novita")
        bodies = [json.dumps({"n": n, "x": "x" * 10_000}).encode() for n in range(60)]
        answers = Counter(answer.status_code for answer in await asyncio.gather(*(here.post(job, b) for b in bodies)))
        assert set(answers) == {200, 429}
        assert 5 <= answers[200] <= 10


async def test_a_budget_is_summed_up_in_steps_and_asked_for_again_when_spent() -> None:
    now, sums, stored = 0.0, 0, 0

    async def sum_up(job_id: str) -> int:
        nonlocal sums
        sums += 1
        return stored

    budget = CallbackBudget(8_000, sum_up, clock=lambda: now)
    while await budget.admits("job", 10):
        budget.written("job", 10)
        stored += 10
    assert 7_900 <= stored <= 8_000
    assert sums <= 10
    assert budget.may_hint("job")
    assert not budget.may_hint("job")
    assert not await budget.admits("job", 10)
    assert sums <= 10
    now, stored = 60.0, 0
    assert await budget.admits("job", 10), "old evidence was pruned"


async def test_no_job_waits_behind_anothers_flood(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "receiver.db")
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
        assert Counter(one.job_id for one in batch.evidence)[names[100]] <= 20
        assert [one.id for one in batch.evidence] == sorted(one.id or 0 for one in batch.evidence)
        seen.update(one.job_id or "" for one in batch.evidence)
        if batches == 3:
            assert all(seen[name] == 1 for name in names if name != names[100]), "all others in the first lap"
        ids = [one.id for one in batch.evidence]
        await database.write(lambda ids=ids: _read(ids))  # type: ignore[misc]
    assert seen == {**dict.fromkeys(names, 1), names[100]: 3000}
    await database.close()


def _read(ids: list[int | None]):  # type: ignore[no-untyped-def]
    return (yield Run("UPDATE evidence SET read_at = 1 WHERE id IN (??)", (list(ids),)))


async def test_batches_are_bounded_in_bytes(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "receiver.db")
    log = EvidenceLog(database)
    await log.record([piece(f"job_{n:026d}", b"x" * 1_000_000) for n in range(30)])
    batch = await log.unread(limit=100)
    assert 1 < len(batch.evidence) <= 6
    assert batch.more
    await database.close()


async def test_replays_are_told_from_news_whatever_is_there(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "receiver.db")
    log = EvidenceLog(database)
    job, other = (f"job_{n:026d}" for n in range(2))
    await log.record([piece(job, b"%d" % n, delivery_id="msg_1") for n in range(300)])
    await log.record([piece(job, b"7", delivery_id="msg_1"), piece(job, b"7", delivery_id="msg_2")])
    await log.record([piece(other, b"7", delivery_id="msg_1"), piece(job, b"7", delivery_id=None)])
    every = await log.of(job, limit=1000)
    elsewhere = await log.of(other)
    assert await log.repeats([*every, *elsewhere]) == {every[300].id}
    assert await log.repeats(every, also_later=True) == {every[7].id, every[300].id}
    await database.close()
