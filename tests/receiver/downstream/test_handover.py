"""Deliveries of what this process settles go to its notifier at once, and are lost with nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from receiver.domain.deliveries import Delivery
from receiver.domain.ids import new_id
from receiver.domain.jobs import Job, Source
from receiver.domain.lifecycle import Update
from receiver.domain.polling import Timing
from receiver.store.jobs import JobStore
from receiver.store.leases import LEASE
from receiver.store.settling import JobUpdate
from submitter.vocabulary import Report, State
from tests.support.clock import Clock
from tests.support.delivery_stack import DeliveryStack, delivery_stack
from tests.support.rows import fetch
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually


async def settled(store: JobStore, now: datetime) -> str:
    """A job that has succeeded just now, settled by the process of *store*."""
    job = Job(new_id("job"), "freepik", State.QUEUED, 1, now, retry_at=now + timedelta(days=1))
    await store.add_job(job)
    update = Update(Report(job.id, State.SUCCEEDED), Source.RESPONSE)
    await store.settle([JobUpdate(job.id, update)], now, lambda _: Timing(1, 1, 1))
    return job.id


async def leases(made: DeliveryStack) -> list[Any]:
    query = "SELECT lease_owner FROM deliveries WHERE state = 'pending' AND event_type = 'job.succeeded' ORDER BY id"
    return [row[0] for row in await fetch(made.database, query)]


async def test_a_delivery_is_written_with_a_lease_and_posted_once(tmp_path: Path) -> None:
    gate = asyncio.Event()
    subscriber = Subscriber({"/hook": [200, gate]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made:
        await made.endpoint(f"{origin}/hook", event_types=("job.succeeded",))
        await made.write_events("job.succeeded")
        assert len(await made.settled()) == 1

        async def is_leased_when_it_is_committed() -> bool:  # as soon as the notifier has caught up
            await settled(made.store, made.clock())
            return bool((await leases(made))[-1] == made.store.handover.owner)

        await eventually(is_leased_when_it_is_committed)
        gate.set()
        assert {delivery.tries for delivery in await made.settled()} == {1}
        assert len({seen.id for seen in subscriber.seen}) == len(subscriber.seen)


async def test_what_a_dead_process_was_handed_is_delivered_when_its_lease_has_lapsed(tmp_path: Path) -> None:
    subscriber, clock = Subscriber(), Clock()
    lost: list[Delivery] = []
    async with subscriber.serve() as origin, delivery_stack(tmp_path, clock=clock) as made:
        await made.endpoint(f"{origin}/hook", event_types=("job.succeeded",))
        dead = JobStore(made.database)
        dead.handover.open(lambda lane: 1, lost.extend)
        job_id = await settled(dead, clock())
        assert [(delivery.job_id, delivery.tries) for delivery in lost] == [(job_id, 0)]
        assert await leases(made) == [dead.handover.owner]
        clock.advance(LEASE.total_seconds() + 1)
        made.wake()
        [delivery] = await made.settled()
        assert (delivery.id, delivery.state, delivery.tries) == (lost[0].id, "delivered", 1)
        assert [seen.body.decode() for seen in subscriber.seen] == [lost[0].body]


async def test_nothing_is_handed_over_while_older_ones_wait_or_once_the_notifier_stops(tmp_path: Path) -> None:
    gate = asyncio.Event()
    subscriber = Subscriber({"/hook": [gate]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made:
        await made.endpoint(f"{origin}/hook", event_types=("job.succeeded",), concurrency=1)
        await made.write_events(*["job.succeeded"] * 100)
        await eventually(lambda: len(subscriber.seen) == 1)
        await settled(made.store, made.clock())
        assert (await leases(made))[-1] is None
        gate.set()
        deliveries = await made.settled()
        sent = [seen.id for seen in subscriber.seen]
        assert len(sent) == len(deliveries) == 101
        assert sent[-1] == deliveries[-1].event_id
        await made.notifier.shutdown(grace_seconds=0)
        assert made.store.handover.room(deliveries[-1].endpoint_id or "") == 0


async def test_what_could_not_be_committed_is_not_handed_over(tmp_path: Path) -> None:
    """The job moved between the plan and its transaction: it is planned again, and handed over once."""
    given: list[Sequence[Delivery]] = []
    async with delivery_stack(tmp_path) as made:
        await made.endpoint("http://127.0.0.1:9/hook", event_types=("job.succeeded",))
        store, now = JobStore(made.database), made.clock()
        store.handover.open(lambda lane: 5, given.append)
        job = Job(new_id("job"), "freepik", State.QUEUED, 1, now, retry_at=now + timedelta(days=1))
        await store.add_job(job)
        update = JobUpdate(job.id, Update(Report(job.id, State.SUCCEEDED), Source.RESPONSE))
        await asyncio.gather(*(store.settle([update], now, lambda _: Timing(1, 1, 1)) for _ in range(8)))
        assert [len(deliveries) for deliveries in given] == [1]
