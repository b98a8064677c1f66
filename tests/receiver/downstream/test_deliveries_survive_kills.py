"""SIGKILL while events are delivered: none is lost, and few come twice."""

from __future__ import annotations

import os
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from receiver.domain.endpoints import Endpoint, SigningSecret
from receiver.domain.ids import new_id
from receiver.store.database import open_database
from receiver.store.endpoints import Endpoints
from receiver.store.events import Events
from submitter.signatures import new_secret
from tests.support.engines import database_of
from tests.support.processes import LiveReceiver
from tests.support.rows import fetch
from tests.support.streams import record_events
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually

ROUNDS = int(os.environ.get("KILL_ROUNDS", "2"))
EVENTS = 1000
CONCURRENCY = 10


@pytest.mark.slow
async def test_every_event_arrives_through_kills_and_each_kill_repeats_at_most_the_slots(tmp_path: Path) -> None:
    subscriber, luck = Subscriber(), random.Random(4)
    repeated = []
    async with subscriber.serve() as origin:
        for n in range(ROUNDS):
            subscriber.seen.clear()
            receiver = LiveReceiver(tmp_path / f"data{n}")
            reported = await _events_written(receiver.data_dir, f"{origin}/hook")
            await receiver.start(ready=False)
            wanted = luck.randrange(EVENTS // 20, EVENTS * 3 // 4)
            await eventually(lambda wanted=wanted: len(subscriber.seen) >= wanted)  # type: ignore[misc]
            await receiver.kill()
            assert len({seen.id for seen in subscriber.seen}) < EVENTS
            await receiver.start(ready=False)
            await eventually(
                lambda: len({seen.id for seen in subscriber.seen}) == EVENTS,
                what=lambda: f"{len({seen.id for seen in subscriber.seen})} of {EVENTS} arrived",
            )
            await eventually(lambda receiver=receiver: nothing_pending(receiver.data_dir))  # type: ignore[misc]
            await receiver.stop()
            counts = Counter(seen.id for seen in subscriber.seen)
            assert set(counts) == reported
            repeated.append(sum(count - 1 for count in counts.values()))
    print("repeated after each kill:", repeated)
    assert max(repeated) <= CONCURRENCY


async def nothing_pending(data_dir: Path) -> bool:
    database = await open_database(database_of(data_dir))
    try:
        return await fetch(database, "SELECT count(*) FROM deliveries WHERE state = 'pending'") == [(0,)]
    finally:
        await database.close()


async def _events_written(data_dir: Path, url: str) -> set[str]:
    """A database with events that wait for one endpoint. Returns their ids."""
    data_dir.mkdir(parents=True)
    database = await open_database(database_of(data_dir))
    endpoint = Endpoint(new_id("ep"), url, datetime.now(UTC), (SigningSecret(new_secret()),), concurrency=CONCURRENCY)
    await Endpoints(database).add(endpoint)
    await record_events(database, ["job.succeeded"] * EVENTS)
    found, _ = await Events(database).after(0, limit=EVENTS + 1)
    await database.close()
    return {event.id for event in found}
