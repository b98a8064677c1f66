"""The queries of the dashboard, on every engine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from receiver.domain.ids import new_id
from receiver.domain.jobs import InputImage, Job, Source
from receiver.domain.rollups import Sums, hour_of
from receiver.store.attention import concerns, open_jobs
from receiver.store.changes import ChangeLog
from receiver.store.codecs import us
from receiver.store.delivery_log import DeliveryLog
from receiver.store.job_list import JobFilter
from receiver.store.jobs import JobStore
from receiver.store.rollups import DELIVERIES, RollupTable
from receiver.store.spent_tokens import SpentTokens
from submitter.parsing import NO_RESULT
from submitter.vocabulary import Cost, Failure, State
from tests.support.rows import execute

PROVIDERS = ("freepik", "novita")


def job(state: State, provider: str = "novita", **fields: Any) -> Job:
    now = datetime.now(UTC)
    return Job(new_id("job"), provider, state, 1, now, input_name="x", **fields)


async def test_a_page_passes_its_filters(database: Any) -> None:
    store = JobStore(database)
    named = job(State.FAILED, input=InputImage("Harbour.png"), metadata={"Größe": "50%"}, remote_id="task-7")
    jobs = [named, job(State.QUEUED), job(State.QUEUED, "freepik")]
    for made in jobs:
        await store.add_job(made)
    for wanted, expected in (
        (JobFilter(), jobs[::-1]),
        (JobFilter(states=("queued",)), [jobs[2], jobs[1]]),
        (JobFilter(providers=("novita",)), [jobs[1], named]),
        (JobFilter(states=("failed", "queued"), providers=("freepik",)), [jobs[2]]),
        (JobFilter(text="hARBOUR"), [named]),
        (JobFilter(text="Größe"), [named]),
        (JobFilter(text="50%"), [named]),
        (JobFilter(text="50_"), []),
        (JobFilter(text=jobs[1].id), [jobs[1]]),
        (JobFilter(text="task-7"), [named]),
        (JobFilter(text="task-7", states=("queued",)), []),
        (JobFilter(text="harbour", states=("queued",)), []),
        (JobFilter(until=named.created_at - timedelta(minutes=1)), []),
    ):
        page = await store.page(wanted, limit=10)
        assert [found.id for found, _ in page.jobs] == [made.id for made in expected], wanted
        assert page.next is None


async def test_an_hour_is_summed(database: Any) -> None:
    store, table = JobStore(database), RollupTable(database)
    now = datetime.now(UTC)
    ended: dict[str, Any] = {"sent_at": now - timedelta(seconds=3.21), "finished_at": now, "awaits_callback": True}
    await store.add_job(job(State.SUCCEEDED, settled_by=Source.POLL, cost=Cost(Decimal("0.5"), "USD"), **ended))
    await store.add_job(job(State.FAILED, settled_by=Source.CALLBACK, **ended))
    hour = hour_of(now)
    sums = await table.summed(hour, PROVIDERS)
    assert sums == {
        "novita": Sums(
            created=2,
            finished={"succeeded": 1, "failed": 1},
            turnaround={3200: 2},
            callbacks={"awaited": 2, "lost": 1},
            cost={"USD": Decimal("0.5")},
        ),
        DELIVERIES: Sums(),
    }
    for _ in range(2):
        await table.write(hour, sums)
    assert await table.newest() == hour
    assert [(name, its) for _, name, its in await table.between(hour, now)] == [
        (DELIVERIES, Sums()),
        ("novita", sums["novita"]),
    ]


async def test_what_needs_a_person_is_found(database: Any) -> None:
    store, now = JobStore(database), datetime.now(UTC)
    unconfirmed, overdue, fine = job(State.UNCONFIRMED), job(State.RUNNING, overdue_at=now), job(State.RUNNING)
    for made in (unconfirmed, overdue, fine):
        await store.add_job(made)
    await execute(
        database,
        "INSERT INTO images (job_id, n, state, tries, kept_at) VALUES (?, 0, 'lost', 1, ?)",
        fine.id,
        us(now),
    )
    found = await concerns(database, now)
    assert found.unconfirmed.ids == [unconfirmed.id]
    assert found.overdue.ids == [overdue.id]
    assert found.lost_images.ids == [fine.id]
    assert (found.undelivered.ids, found.undelivered.count) == ([], 0)
    assert (await open_jobs(database, PROVIDERS))["running"] == {"novita": 2}


async def test_jobs_whose_results_were_lost_pass_the_other_filters_too(database: Any) -> None:
    store, now = JobStore(database), datetime.now(UTC)
    nothing = Failure(NO_RESULT, "the task is done but its answer names no image", True)
    late, kept, failed = job(State.EXPIRED, "freepik"), job(State.SUCCEEDED), job(State.FAILED, error=nothing)
    two, other = job(State.SUCCEEDED), job(State.FAILED, error=Failure("x", "another reason", True))
    for made in (late, kept, failed, two, other):
        await store.add_job(made)
    for of, n, state in ((late, 0, "lost"), (kept, 0, "kept"), (two, 0, "lost"), (two, 1, "lost")):
        row = (of.id, n, state, us(now))
        await execute(database, "INSERT INTO images (job_id, n, state, tries, kept_at) VALUES (?, ?, ?, 1, ?)", *row)
    for wanted, expected in (
        (JobFilter(lost=True), [two, failed, late]),
        (JobFilter(lost=True, states=("failed",)), [failed]),
        (JobFilter(lost=True, providers=("novita",)), [two, failed]),
        (JobFilter(lost=True, states=("expired", "failed"), providers=("freepik",)), [late]),
        (JobFilter(lost=True, text=late.id), [late]),
        (JobFilter(lost=True, text=kept.id), []),
        (JobFilter(lost=True, text="nothing-has-this"), []),
        (JobFilter(lost=True, until=now - timedelta(days=1)), []),
    ):
        page = await store.page(wanted)
        assert [found.id for found, _ in page.jobs] == [each.id for each in expected], wanted
    first = await store.page(JobFilter(lost=True), limit=2)
    second = await store.page(JobFilter(lost=True), limit=2, before=first.next)
    assert [found.id for found, _ in (*first.jobs, *second.jobs)] == [two.id, failed.id, late.id]


async def test_changes_name_what_changed(database: Any) -> None:
    log = ChangeLog(database)
    place = await log.place()
    changed, place = await log.after(place)
    assert not changed
    delivery = await DeliveryLog(database).send_example("ep_x", "job.failed", {}, datetime.now(UTC))
    added = "INSERT INTO attempts (delivery_id, started_at, seconds) VALUES (?, ?, ?)"
    await execute(database, added, delivery, us(datetime.now(UTC)), 0.1)
    changed, place = await log.after(place)
    assert (changed.jobs, changed.deliveries, changed.providers) == (set(), True, False)
    changed, place = await log.after(place)
    assert not changed


async def test_a_token_is_spent_once_and_forgotten_when_it_would_end(database: Any) -> None:
    spent, now = SpentTokens(database), datetime.now(UTC)
    assert await spent.spend("one", now, until=now + timedelta(minutes=1))
    assert not await spent.spend("one", now, until=now + timedelta(minutes=1))
    assert await spent.spent("one") and not await spent.spent("two")
    await spent.spend("two", now + timedelta(hours=1), until=now + timedelta(hours=2))
    assert not await spent.spent("one")
