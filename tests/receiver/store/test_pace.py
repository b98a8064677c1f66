"""Rate limits over many processes: they share a provider's token buckets and its slots, on every engine."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

from receiver.domain.jobs import Job
from receiver.store.jobs import JobStore
from receiver.store.leases import Claimed
from receiver.store.pace import Allowance
from submitter.provider_settings import Rate
from tests.receiver.store.test_races import LEASE, NOW, queued, running
from tests.support.rows import execute, fetch

SUBMITS = Allowance("novita/submit", (Rate(5, 1), Rate(8, 60)))
OWNERS = ("a", "b", "c", "d")


async def claim(
    store: JobStore, owner: str, now: datetime, *, limit: int = 3, allowance: Allowance = SUBMITS
) -> Claimed:
    return await store.leases.claim_queued("novita", now, owner=owner, lease=LEASE, limit=limit, allowance=allowance)


async def all_claim(store: JobStore, now: datetime, **more: Any) -> list[Job]:
    """Return the claims of four processes at once."""
    claimed = await asyncio.gather(*(claim(store, owner, now, **more) for owner in OWNERS))
    return [job for each in claimed for job in each.jobs]


async def queue(database: Any, count: int) -> JobStore:
    store = JobStore(database)
    for _ in range(count):
        await store.add_job(queued())
    return store


async def test_processes_share_the_rates_of_a_provider_and_all_of_them_hold(database: Any) -> None:
    store = await queue(database, 20)
    assert len(await all_claim(store, NOW)) == 5, "the burst of 5/1"
    assert await all_claim(store, NOW + timedelta(seconds=0.19)) == []
    assert len(await all_claim(store, NOW + timedelta(seconds=1))) == 3, "the burst of 8/60"
    assert await all_claim(store, NOW + timedelta(seconds=2)) == []
    assert len(await all_claim(store, NOW + timedelta(seconds=7.5))) == 1, "60/8 seconds later"


async def test_a_claim_says_when_there_is_more_and_what_was_not_used_goes_back(database: Any) -> None:
    store = await queue(database, 20)
    rate = (Rate(4, 2),)
    claimed = await claim(store, "a", NOW, limit=9, allowance=Allowance("novita/submit", rate))
    assert (len(claimed.jobs), claimed.fills_in, claimed.crowded) == (4, (2.0,), False)
    back = Allowance("novita/submit", rate, unused=3)
    assert len((await claim(store, "b", NOW, limit=2, allowance=back)).jobs) == 2
    assert len((await claim(store, "b", NOW, limit=2, allowance=SUBMITS)).jobs) == 2, "a changed rate begins anew"
    assert len((await claim(store, "c", NOW, limit=2, allowance=Allowance("novita/submit", rate))).jobs) == 1


async def test_a_clock_that_was_set_back_empties_a_bucket_and_no_more(database: Any) -> None:
    store = await queue(database, 9)
    await claim(store, "a", NOW, limit=5)
    before = NOW - timedelta(hours=1)
    await execute(database, "UPDATE jobs SET retry_at = 0 WHERE lease_owner IS NULL")
    assert (await claim(store, "a", before)).jobs == []
    assert (await claim(store, "a", before)).fills_in == (1.0, 60.0)
    assert len((await claim(store, "a", before + timedelta(minutes=1))).jobs) == 3


async def test_processes_share_the_places_of_a_provider(database: Any) -> None:
    store = await queue(database, 20)
    four_places = Allowance("novita/submit", places=4)
    held = await all_claim(store, NOW, allowance=four_places)
    assert len(held) == 4
    assert (await claim(store, "e", NOW, allowance=four_places)).crowded
    for job in held[:2]:
        await execute(database, "UPDATE jobs SET state = 'sending', retry_at = NULL WHERE id = ?", job.id)
    await store.leases.hand_back([held[3].id], NOW, owner=await owner_of(database, held[3].id))
    assert len((await claim(store, "e", NOW, allowance=four_places)).jobs) == 1, "two are sent, one is prepared"
    assert len((await claim(store, "e", NOW + LEASE, limit=9, allowance=four_places)).jobs) == 4, "all leases lapsed"


async def test_polls_have_buckets_of_their_own(database: Any) -> None:
    await running(database, 9)
    await execute(database, "UPDATE jobs SET next_poll_at = 0")
    leases = JobStore(database).leases
    allowances = {"novita": Allowance("novita/poll", (Rate(5, 1),))}
    claimed = await asyncio.gather(
        *(
            leases.claim_due({"novita": 3, "apixo": 3}, NOW, owner=owner, lease=LEASE, allowances=allowances)
            for owner in OWNERS
        )
    )
    assert sum(len(each["novita"].jobs) for each in claimed) == 5


async def owner_of(database: Any, job_id: str) -> str:
    ((owner,),) = await fetch(database, "SELECT lease_owner FROM jobs WHERE id = ?", job_id)
    return str(owner)
