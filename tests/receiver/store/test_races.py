"""Many at once on one database: what is done once stays done once, on every engine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from receiver.domain.endpoints import Endpoint
from receiver.domain.events import NewEvent
from receiver.domain.evidence import Evidence
from receiver.domain.ids import new_id
from receiver.domain.jobs import Job, Source, Verdict
from receiver.domain.lifecycle import Update
from receiver.domain.pauses import Pause
from receiver.domain.polling import Timing
from receiver.downstream.sequencer import Sequencer
from receiver.store.codecs import us
from receiver.store.deliveries import Deliveries
from receiver.store.delivery_log import DeliveryLog
from receiver.store.endpoints import Endpoints
from receiver.store.events import Events
from receiver.store.jobs import JobStore, KeyReused
from receiver.store.outbox import write_events
from receiver.store.providers import ProviderTable
from receiver.store.settling import JobUpdate, Settled
from submitter.vocabulary import Image, Report, State, Trust
from tests.support.rows import execute, fetch
from tests.support.waiting import patience

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LEASE = timedelta(seconds=10)


def queued(job_id: str | None = None, **fields: Any) -> Job:
    return Job(job_id or new_id("job"), "novita", State.QUEUED, 1, NOW, retry_at=NOW, input_name="x", **fields)


async def running(database: Any, count: int = 1) -> list[str]:
    """Jobs that were sent and are running, with their task ids."""
    store = JobStore(database)
    made = [queued() for _ in range(count)]
    for job in made:
        await store.add_job(job)
        sent = "UPDATE jobs SET state = 'running', remote_id = ?, retry_at = NULL, sent_at = ? WHERE id = ?"
        await execute(database, sent, f"task-{job.id}", 1, job.id)
    return [job.id for job in made]


def done(job_id: str, *, images: int = 1) -> Update:
    found = tuple(Image(f"https://cdn.example/{n}.png") for n in range(images))
    report = Report(f"task-{job_id}", State.SUCCEEDED, images=found)
    return Update(report, Source.CALLBACK, believed=True, received_at=NOW)


async def settle(database: Any, items: Sequence[JobUpdate], closed: Any = ()) -> Settled:
    return await JobStore(database).settle(items, NOW, lambda _: Timing(1, 1, 1), closed)


async def record(database: Any, job_id: str) -> int:
    piece = Evidence(Source.CALLBACK, "novita", job_id, NOW, "[]", b"{}", trust=Trust.SIGNED_BODY)
    await JobStore(database).evidence.record([piece])
    ((number,),) = await fetch(database, "SELECT max(id) FROM evidence")
    return int(number)


async def types_of(database: Any, job_id: str) -> Counter[str]:
    rows = await fetch(database, "SELECT type FROM events WHERE job_id = ?", job_id)
    return Counter(row[0] for row in rows)


async def test_evidence_that_another_process_has_read_keeps_its_verdict(database: Any) -> None:
    (job_id,) = await running(database)
    number = await record(database, job_id)
    first = await settle(database, [JobUpdate(job_id, done(job_id), number)])
    second = await settle(database, [JobUpdate(job_id, done(job_id), number)])
    assert await fetch(database, "SELECT verdict FROM evidence") == [(Verdict.BELIEVED.value,)]
    assert (first.events, second.events) == (1, 0)
    assert (set(second.overtaken), second.changes) == ({number}, [None])
    again = await settle(database, [], [(number, Verdict.UNREADABLE, "no")])
    assert again.overtaken == {number}
    assert await fetch(database, "SELECT verdict, note FROM evidence") == [(Verdict.BELIEVED.value, None)]


async def test_readers_that_take_the_same_evidence_settle_each_job_once(database: Any) -> None:
    job_ids = await running(database, 20)
    numbers = [await record(database, job_id) for job_id in job_ids]
    items = [JobUpdate(job_id, done(job_id), number) for job_id, number in zip(job_ids, numbers, strict=True)]
    await asyncio.gather(*(settle(database, part) for part in (items, items[::-1], items[:10], items[5:15])))
    rows = await fetch(database, "SELECT type, count(*) FROM events WHERE type = 'job.succeeded' GROUP BY type")
    assert rows == [("job.succeeded", 20)]
    assert await fetch(database, "SELECT count(*) FROM evidence WHERE read_at IS NULL") == [(0,)]
    assert {row[0] for row in await fetch(database, "SELECT verdict FROM evidence")} == {Verdict.BELIEVED.value}


async def test_claimers_share_the_queue_without_taking_a_job_twice(database: Any) -> None:
    store = JobStore(database)
    for _ in range(60):
        await store.add_job(queued())

    async def claim(owner: str) -> list[str]:
        taken: list[str] = []
        for _ in range(40):
            claimed = await store.leases.claim_queued("novita", NOW, owner=owner, lease=LEASE, limit=5)
            taken += [job.id for job in claimed.jobs]
        return taken

    taken = await asyncio.gather(*(claim(f"owner-{n}") for n in range(6)))
    everything = [job_id for owned in taken for job_id in owned]
    assert len(everything) == len(set(everything)) == 60
    for number, owned in enumerate(taken):
        rows = await fetch(database, "SELECT count(*) FROM jobs WHERE lease_owner = ?", f"owner-{number}")
        assert rows == [(len(owned),)]


async def test_deliveries_are_claimed_once(database: Any) -> None:
    await Endpoints(database).add(Endpoint("ep_1", "https://hooks.example", NOW, ()))
    await database.write(lambda: write_events([NewEvent("job.failed", {"id": n}) for n in range(50)], NOW))
    deliveries = Deliveries(database)

    async def claim(owner: str) -> list[str]:
        taken: list[str] = []
        for _ in range(30):
            found = await deliveries.claim({("ep_1", False): 5}, NOW, owner=owner, lease=LEASE)
            taken += [delivery.id for delivery in found]
        return taken

    taken = [job for owned in await asyncio.gather(*(claim(f"o{n}") for n in range(4))) for job in owned]
    assert len(taken) == len(set(taken)) == 50


async def test_the_end_of_a_jobs_images_is_reported_once(database: Any) -> None:
    store = JobStore(database)
    for _ in range(10):
        (job_id,) = await running(database)
        await settle(database, [JobUpdate(job_id, done(job_id, images=2))])
        claimed = await store.images.claim(NOW, lease=LEASE, limit=2)
        kept = [replace(image, sha256="0" * 64, bytes=1) for image, _ in claimed]
        await asyncio.gather(*(store.images.kept([(image, NOW)]) for image in kept))
        assert (await types_of(database, job_id))["job.images_kept"] == 1


async def test_an_image_whose_lease_another_process_took_over_is_ended_by_that_one_alone(database: Any) -> None:
    stalled, other = JobStore(database).images, JobStore(database).images
    (job_id,) = await running(database)
    await settle(database, [JobUpdate(job_id, done(job_id))])
    ((image, _),) = await stalled.claim(NOW, lease=LEASE, limit=1)
    later = NOW + LEASE
    assert len(await other.claim(later, lease=LEASE, limit=1)) == 1
    await stalled.renew([image], later + LEASE, lease=LEASE)
    await stalled.later(image, next_at=later, last_error="it hung")
    await stalled.lost(image, later, last_error="it hung")
    assert await fetch(database, "SELECT state, tries, lease_until FROM images") == [("wanted", 0, us(later + LEASE))]
    await other.kept([(replace(image, sha256="0" * 64, bytes=1), later)])
    assert await fetch(database, "SELECT state FROM images") == [("kept",)]
    assert (await types_of(database, job_id))["job.images_lost"] == 0


async def test_one_key_makes_one_job(database: Any) -> None:
    store = JobStore(database)
    for number in range(10):
        wanted = [queued() for _ in range(6)]
        key = ("token", f"key-{number}", "digest")
        found = await asyncio.gather(*(store.add_job(job, idempotency=key) for job in wanted))
        assert len({job.id for job, _ in found}) == 1
        assert sum(is_new for _, is_new in found) == 1
    assert await fetch(database, "SELECT count(*) FROM jobs") == [(10,)]


async def test_a_key_with_other_content_is_refused_until_it_has_expired(database: Any) -> None:
    store, first = JobStore(database), queued()
    await store.add_job(first, idempotency=("token", "key", "digest"))
    with pytest.raises(KeyReused):
        await store.add_job(queued(), idempotency=("token", "key", "other"))
    later = replace(queued(), created_at=NOW + timedelta(hours=24))
    made, is_new = await store.add_job(later, idempotency=("token", "key", "other"))
    assert (made.id, is_new) == (later.id, True)
    assert await store.job_of_key("token", "key", later.created_at) == ("other", later.id)


async def test_a_job_that_is_canceled_while_it_settles_ends_once(database: Any) -> None:
    store = JobStore(database)
    for _ in range(10):
        (job_id,) = await running(database)
        update = JobUpdate(job_id, done(job_id))
        await asyncio.gather(settle(database, [update]), *(store.cancel(job_id, NOW, abandon=True) for _ in range(3)))
        reported = await types_of(database, job_id)
        assert reported["job.succeeded"] + reported["job.canceled"] == 1, reported


async def test_a_pause_is_reported_once(database: Any) -> None:
    table = ProviderTable(database)
    for number in range(10):
        now = NOW + timedelta(minutes=number)
        pause = Pause("402: empty", now, now + timedelta(seconds=30), 0)
        began = await asyncio.gather(*(table.pause("novita", pause, now) for _ in range(4)))
        assert began.count(None) == 1
        assert sum(await asyncio.gather(*(table.resume("novita", now) for _ in range(4)))) == 1
    rows = dict(await fetch(database, "SELECT type, count(*) FROM events GROUP BY type"))
    assert rows == {"provider.paused": 10, "provider.resumed": 10}


async def test_an_endpoint_that_is_added_while_events_are_written_misses_none_that_come_later(database: Any) -> None:
    endpoints = Endpoints(database)
    for number in range(10):
        endpoint_id = f"ep_{number}"
        await asyncio.gather(
            endpoints.add(Endpoint(endpoint_id, "https://hooks.example", NOW, ())),
            *(database.write(lambda: write_events([NewEvent("job.failed", {"id": "x"})], NOW)) for _ in range(4)),
        )
        await database.write(lambda: write_events([NewEvent("job.failed", {"id": "last"})], NOW))
        rows = await fetch(database, "SELECT count(*) FROM deliveries WHERE endpoint_id = ?", endpoint_id)
        assert rows[0][0] >= 1
        await endpoints.remove(endpoint_id, NOW)


async def test_readers_of_positions_miss_no_event_while_many_write(database: Any) -> None:
    events = Events(database)
    sequencers = [Sequencer(database, written=asyncio.Event(), numbered=asyncio.Event()) for _ in range(2)]
    writers, each = 4, 25
    written = asyncio.Event()

    async def write(number: int) -> None:
        for n in range(each):
            new_events = [NewEvent("job.failed", {"id": f"{number}-{n}-{k}"}) for k in range(3)]
            await database.write(lambda new_events=new_events: write_events(new_events, NOW))

    async def number(sequencer: Sequencer) -> None:
        while not written.is_set():
            await sequencer.step()
            await asyncio.sleep(0)

    async def read() -> list[int]:
        seen: list[int] = []
        position = 0
        while len(seen) < 3 * writers * each:
            found, position = await events.after(position, limit=50)
            seen += [event.position for event in found]
            await asyncio.sleep(0)
        return seen

    async with patience():
        readers = [asyncio.create_task(read()) for _ in range(2)]
        numbering = [asyncio.create_task(number(sequencer)) for sequencer in sequencers]
        await asyncio.gather(*(write(n) for n in range(writers)))
        for seen in await asyncio.gather(*readers):
            assert seen == list(range(1, 3 * writers * each + 1))
        written.set()
        await asyncio.gather(*numbering)


async def test_a_test_event_never_gets_a_position(database: Any) -> None:
    await Endpoints(database).add(Endpoint("ep_1", "https://hooks.example", NOW, ()))
    await DeliveryLog(database).send_example("ep_1", "job.failed", {}, NOW)
    await database.write(lambda: write_events([NewEvent("job.failed", {"id": "x"})], NOW))
    await Sequencer(database, written=asyncio.Event(), numbered=asyncio.Event()).step()
    assert await fetch(database, "SELECT position FROM events WHERE example = 0") == [(1,)]
    assert await fetch(database, "SELECT position FROM events WHERE example = 1") == [(None,)]


async def test_endpoints_are_listed_whole_and_by_pages(database: Any) -> None:
    endpoints = Endpoints(database)
    ids = sorted(new_id("ep") for _ in range(5))
    for endpoint_id in ids:
        await endpoints.add(Endpoint(endpoint_id, "https://hooks.example", NOW, ()))
    assert [endpoint.id for endpoint in await endpoints.all()] == ids
    assert [endpoint.id for endpoint in await endpoints.page(after=ids[1], limit=2)] == ids[2:4]


async def test_text_that_one_engine_cannot_hold_stops_nothing(database: Any) -> None:
    """Providers' words may contain any character; PostgreSQL has no NUL."""
    (job_id,) = await running(database)
    report = Report(f"task-{job_id}", State.RUNNING, remote_status="odd\0status")
    await settle(database, [JobUpdate(job_id, Update(report, Source.POLL))])
    found = await JobStore(database).job(job_id)
    assert found is not None
    assert (found[0].remote_status or "").startswith("odd")
