"""
One event for many endpoints: `python -m tests.bench fanout [--rounds 5] [--endpoints 100] [--events 100]`.

What 10,000 endpoints cost an event that they don't want (CPU of settling a job); for how long 10,000 that do want one
keep another writer waiting at most; and at which rate the deliveries of *events* for each of *endpoints* drain to one
subscriber in the first and in the last tenth. The form with a million deliveries: `--endpoints 1000 --events 1000`.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from receiver.domain.endpoints import Endpoint, SigningSecret
from receiver.domain.ids import new_id
from receiver.domain.jobs import Source
from receiver.domain.lifecycle import Update
from receiver.domain.polling import Timing
from receiver.store.database import Database, open_database
from receiver.store.deliveries import Deliveries
from receiver.store.endpoints import Endpoints
from receiver.store.jobs import JobStore
from receiver.store.settling import JobUpdate
from submitter.signatures import new_secret
from submitter.vocabulary import Image, Report, State
from tests.bench.figures import Figure, parser, present
from tests.bench.filling import add_running
from tests.bench.subscriber import seen, subscriber
from tests.support.delivery_stack import DeliveryStack, delivery_stack

_JOBS = 100
_WANTED = ("job.succeeded",)
_UNWANTED = ("provider.paused",)


def main(argv: list[str]) -> None:
    options = parser("fanout", __doc__)
    options.add_argument("--many", type=int, default=10_000, help="endpoints that do or don't want an event")
    options.add_argument("--endpoints", type=int, default=100, help="endpoints whose deliveries drain")
    options.add_argument("--events", type=int, default=100, help="events for each of them")
    given = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        figures = uvloop.run(settled(Path(directory), given.rounds, given.many))
    with tempfile.TemporaryDirectory() as directory, subscriber() as origin:
        figures += uvloop.run(drained(Path(directory), origin, given.endpoints, given.events))
    conditions = f"{given.many:,} endpoints; {given.endpoints} x {given.events} deliveries"
    present("fanout", conditions, figures, as_json=given.json)


async def settled(directory: Path, rounds: int, many: int) -> list[Figure]:
    """Measure the cost of settling without endpoints, and with *many* that don't want its events, or do."""
    alone = Figure("an event for nobody", "µs of CPU")
    unwanted = Figure(f"an event that {many:,} endpoints don't want", "µs of CPU", baseline=alone.what)
    waits = Figure(f"longest wait of another writer during an event for {many:,} endpoints", "ms")
    databases = [await open_database(directory / f"{n}.db") for n in range(3)]
    await _subscribe(databases[1], many, _UNWANTED)
    await _subscribe(databases[2], many, _WANTED)
    for n in range(rounds + 1):
        figures = [
            (await _settle(databases[i], _reports(directory / f"{i}.db", _JOBS)), f)
            for i, f in ((0, alone), (1, unwanted))
        ]
        if n:  # the first round fills caches
            for seconds, figure in figures:
                figure.values.append(1e6 * seconds / _JOBS)
            waits.values.append(1000 * await _longest_wait(databases[2], _reports(directory / "2.db", 1)))
    for database in databases:
        await database.close()
    return [alone, unwanted, waits]


async def drained(directory: Path, origin: str, endpoints: int, events: int) -> list[Figure]:
    """Deliveries a second, tenth by tenth."""
    count = endpoints * events
    at: list[float] = []
    async with delivery_stack(directory) as made:
        await _queue(made, origin, endpoints, events)
        made.notifier.endpoints_changed()
        while len(at) < count:
            await asyncio.sleep(0.5)
            at += [when for _, when in await asyncio.to_thread(seen, origin)]
    at.sort()
    tenth = count // 10
    first = Figure("deliveries drained, first tenth", "per s", [tenth / (at[tenth] - at[0])])
    last = Figure("deliveries drained, last tenth", "per s", [tenth / (at[-1] - at[-1 - tenth])], baseline=first.what)
    return [first, last]


async def _queue(made: DeliveryStack, origin: str, endpoints: int, events: int) -> None:
    await _subscribe(made.database, endpoints, _WANTED, origin)
    for start in range(0, events, 5):
        names = ["job.succeeded"] * min(5, events - start)
        await made.write_events(*names)


async def _subscribe(
    database: Database, count: int, types: tuple[str, ...], origin: str = "https://example.com"
) -> None:
    now, secret = datetime.now(UTC), SigningSecret(new_secret())
    table = Endpoints(database)
    for n in range(count):
        await table.add(Endpoint(new_id("ep"), f"{origin}/{n}", now, (secret,), event_types=types))


def _reports(path: Path, count: int) -> list[JobUpdate]:
    """Return reports of success of *count* new running jobs."""
    report = Report(None, State.SUCCEEDED, images=(Image(url="https://images.example.com/result.png"),))
    return [JobUpdate(job, Update(report, Source.CALLBACK)) for job, _ in add_running(path, count)]


async def _settle(database: Database, items: list[JobUpdate]) -> float:
    """Return the seconds of CPU that settling jobs takes, in one batch."""
    began = time.process_time()
    settled = await JobStore(database).settle(items, datetime.now(UTC), lambda _: Timing(1, 1, 1))
    took = time.process_time() - began
    assert settled.events == len(items)
    return took


async def _longest_wait(database: Database, items: list[JobUpdate]) -> float:
    """Return the seconds that another writer waited at most while a job was settled and its deliveries written."""

    async def work() -> None:
        await _settle(database, items)
        while await Deliveries(database).fan_out(datetime.now(UTC), first_delay_seconds=0):
            pass

    longest, working = 0.0, asyncio.create_task(work())
    while not working.done():
        began = time.monotonic()
        await database.check_writable()
        longest = max(longest, time.monotonic() - began)
        await asyncio.sleep(0)
    await working
    return longest
