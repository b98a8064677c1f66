"""One event for many endpoints: who gets it is looked up, and its deliveries are written in pieces."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.endpoints import Endpoint, SigningSecret
from receiver.domain.ids import new_id
from receiver.store.codecs import Codec
from receiver.store.database import Database, open_database
from receiver.store.deliveries import Deliveries
from receiver.store.delivery_log import DeliveryLog
from receiver.store.endpoints import Endpoints
from receiver.store.engines.sqlite import SqliteDatabase
from receiver.store.outbox import MOST_AT_ONCE
from receiver.store.statements import Fetch, alone
from submitter.signatures import new_secret
from tests.support.delivery_stack import delivery_stack
from tests.support.engines import database_of
from tests.support.processes import ROOT
from tests.support.streams import record_events
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually

_CODEC = Codec(Endpoint)
_MANY = 2 * MOST_AT_ONCE + 100


async def subscribe(database: Database, count: int, *, url: str = "https://example.com", **more: Any) -> list[Endpoint]:
    now, secrets = datetime.now(UTC), (SigningSecret(new_secret()),)
    made = [Endpoint(new_id("ep"), f"{url}/{n}", now, secrets, **more) for n in range(count)]
    await database.append("endpoints", _CODEC.columns, [_CODEC.to_row(endpoint) for endpoint in made[1:]])
    await Endpoints(database).add(made[0])
    return made


async def deliveries(database: Database) -> Counter[str]:
    """Count the deliveries of each endpoint."""
    return Counter(row[0] for row in await database.read(alone(Fetch("SELECT endpoint_id FROM deliveries"))))


async def fan_out(database: Database) -> bool:
    return await Deliveries(database).fan_out(datetime.now(UTC), first_delay_seconds=0)


async def test_an_event_for_many_endpoints_is_written_in_pieces_of_a_bounded_size(database: Any) -> None:
    endpoints = await subscribe(database, _MANY)
    await record_events(database, ["job.failed", "job.succeeded"])
    sizes = [(await deliveries(database)).total()]
    while await fan_out(database):
        sizes.append((await deliveries(database)).total())
    assert not await Deliveries(database).fans_out()
    assert all(after - before <= MOST_AT_ONCE for before, after in itertools.pairwise([0, *sizes]))
    assert await deliveries(database) == {endpoint.id: 2 for endpoint in endpoints}


async def test_endpoints_that_are_disabled_between_two_pieces_get_none_and_a_replay_doubles_none(database: Any) -> None:
    began = datetime.now(UTC)
    endpoints = await subscribe(database, _MANY)
    await record_events(database, ["job.failed"])
    last = endpoints[-1].id
    await Endpoints(database).change(last, lambda endpoint: endpoint.switched(on=False), datetime.now(UTC))
    assert (await DeliveryLog(database).replay_many(datetime.now(UTC), since=began)).missing == 0
    while await fan_out(database):
        pass
    assert await deliveries(database) == {endpoint.id: 1 for endpoint in endpoints[:-1]}


async def test_the_notifier_writes_and_delivers_what_one_transaction_does_not(tmp_path: Path) -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made:
        await subscribe(made.database, MOST_AT_ONCE + 20, url=origin)
        await made.write_events("job.failed")
        await eventually(lambda: len(subscriber.seen) == MOST_AT_ONCE + 20)
        assert {seen.path for seen in subscriber.seen} == {f"/{n}" for n in range(MOST_AT_ONCE + 20)}


_DYING = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from receiver.store.deliveries import Deliveries
from tests.support.crashing import MortalConnection, open_mortal

async def run():
    deliveries = Deliveries(await open_mortal(Path(sys.argv[1])))
    while await deliveries.fan_out(datetime.now(UTC), first_delay_seconds=0):
        pass

MortalConnection.die_at, MortalConnection.before = int(sys.argv[2]), sys.argv[3] == "BEFORE"
asyncio.run(run())
"""


@pytest.mark.sqlite(reason="dies at a commit of SQLite's connection")
@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
@pytest.mark.parametrize("commit", [1, 2])
async def test_a_process_that_is_killed_between_two_pieces_leaves_the_rest_to_the_next(
    tmp_path: Path, commit: int, when: str
) -> None:
    path = tmp_path / "receiver.db"
    database = await open_database(path)
    endpoints = await subscribe(database, _MANY)
    await record_events(database, ["job.failed"])
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _DYING, str(path), str(commit), when, cwd=ROOT)
    assert await process.wait() == -9
    written = await deliveries(database)
    assert MOST_AT_ONCE <= written.total() <= _MANY
    assert max(written.values()) == 1
    while await fan_out(database):
        pass
    assert await deliveries(database) == {endpoint.id: 1 for endpoint in endpoints}
    await database.close()


async def test_a_change_of_subscriptions_by_another_process_counts_at_once(tmp_path: Path) -> None:
    here, there = [await open_database(database_of(tmp_path)) for _ in range(2)]
    await record_events(here, ["job.failed"])
    (endpoint,) = await subscribe(there, 1)
    await record_events(here, ["job.failed"])
    assert (await deliveries(here)).total() == 1
    await Endpoints(there).change(endpoint.id, lambda found: found.switched(on=False), datetime.now(UTC))
    await record_events(here, ["job.failed"])
    await Endpoints(there).change(endpoint.id, lambda found: found.switched(on=True), datetime.now(UTC))
    await Endpoints(there).remove(endpoint.id, datetime.now(UTC))
    await record_events(here, ["job.failed"])
    assert (await deliveries(here)).total() == 1
    await here.close()
    await there.close()


class CountingConnection(sqlite3.Connection):
    """Counts the steps of SQLite's machine, of all connections."""

    steps = itertools.count()

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.set_progress_handler(lambda: next(CountingConnection.steps) < 0, 1)


@pytest.mark.sqlite(reason="counts steps of SQLite's machine")
async def test_endpoints_that_do_not_want_an_event_cost_it_nothing(tmp_path: Path) -> None:
    """Counted in steps of SQLite's machine: reading all endpoints would show at once."""
    database = await SqliteDatabase.open(tmp_path / "receiver.db", writer=CountingConnection)
    taken = []
    for count in (1, 1000):
        await subscribe(database, count, event_types=("provider.paused",))
        await record_events(database, ["job.failed"])
        began = next(CountingConnection.steps)
        await record_events(database, ["job.failed"])
        taken.append(next(CountingConnection.steps) - began)
    assert taken[1] <= taken[0] + 10
    await database.close()
