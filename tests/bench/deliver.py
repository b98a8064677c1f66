"""
How fast events reach a subscriber.

`events`: jobs settle in the store while the notifier delivers, from the first settled job to the last 200; against a
bare httpx client that posts the same bodies to the same subscriber with as many at once, in turns, median of the
rounds. `latency`: signed callbacks at a steady rate into a real receiver, from the moment each is sent to the moment
its notification is at the subscriber. The subscriber is a process of its own.
`slots`: from due to try at nine healthy endpoints, alone and beside one that hangs in all its slots.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvloop

from receiver.domain.deliveries import DeliveryView
from receiver.domain.endpoints import Endpoint, SigningSecret
from receiver.domain.ids import new_id
from receiver.domain.jobs import Source
from receiver.domain.lifecycle import Update
from receiver.domain.polling import Timing
from receiver.domain.tokens import Tokens
from receiver.downstream.notifier import DeliveryPolicy, Notifier
from receiver.net.client import Outbound
from receiver.net.guard import Guard
from receiver.runtime.metrics import Metrics
from receiver.runtime.wakes import Wakes
from receiver.settings import Settings
from receiver.store.database import Database, open_database
from receiver.store.deliveries import Deliveries
from receiver.store.endpoints import Endpoints
from receiver.store.events import Events
from receiver.store.jobs import JobStore
from receiver.store.settling import JobUpdate
from submitter.sandbox import FREEPIK_WEBHOOK_SECRET
from submitter.signatures import new_secret, sign
from submitter.vocabulary import Image, Report, State
from tests.bench.filling import add_running, callback_body
from tests.bench.subscriber import seen, subscriber
from tests.support.delivery_stack import DeliveryStack, delivery_stack
from tests.support.processes import LiveReceiver
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually

_SECRET_KEY = "a-key-of-the-bench"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench deliver", description=__doc__)
    parser.add_argument("--events", type=int, default=2000, help="events in a round")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=200.0, help="callbacks per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long callbacks come; 0 leaves it out")
    parser.add_argument("--events-of-each", type=int, default=20, help="for the slots; 0 leaves it out")
    options = parser.parse_args(argv)
    print(json.dumps(uvloop.run(measure(**vars(options))), indent=2))


async def measure(
    *, events: int, concurrency: int, rounds: int, rate: float, seconds: float, events_of_each: int
) -> dict[str, Any]:
    """All numbers."""
    result: dict[str, Any] = {}
    if rounds:
        ours, bare = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as directory:
                async with subscriber() as origin:
                    took, bodies = await delivered(Path(directory), origin, events, concurrency)
                    ours.append(events / took)
                    bare.append(events / await posted(origin, bodies, concurrency))
        ratios = [figure / other for figure, other in zip(ours, bare, strict=True)]
        result["events"] = {
            "delivered_per_second": round(statistics.median(ours)),
            "bare_httpx_per_second": round(statistics.median(bare)),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(figure, 3) for figure in ratios],
            "concurrency": concurrency,
            "events": events,
        }
    if seconds:
        with tempfile.TemporaryDirectory() as directory:
            result["latency"] = await latency(Path(directory), rate, seconds)
    if events_of_each:
        with tempfile.TemporaryDirectory() as directory:
            result["slots"] = await slots(Path(directory), events_of_each)
    return result


async def delivered(directory: Path, origin: str, count: int, concurrency: int) -> tuple[float, list[bytes]]:
    """Seconds from the first settled job to the last 200, and the bodies that were sent."""
    path = directory / "receiver.db"
    database = await open_database(path)
    made = add_running(path, count)
    endpoint = Endpoint(
        new_id("ep"),
        f"{origin}/hook",
        datetime.now(UTC),
        (SigningSecret(new_secret()),),
        event_types=("job.succeeded",),
        concurrency=concurrency,
    )
    await Endpoints(database).add(endpoint)
    async with _notifying(database) as notifier:
        store = JobStore(database, public_url=lambda: "https://hooks.example.com")
        clock = time.monotonic()
        for start in range(0, count, 200):
            items = [JobUpdate(job, Update(_done(task), Source.CALLBACK)) for job, task in made[start : start + 200]]
            await store.settle(items, datetime.now(UTC), lambda _: Timing(1, 1, 1))
            notifier.loop.wake()
        came: dict[str, float] = {}
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            while len(came) < count:
                await asyncio.sleep(0.2)
                came.update(await seen(client, origin))
    found, _ = await Events(database).after(0, limit=10 * count)
    await database.close()
    bodies = [event.body.encode() for event in found if event.type == "job.succeeded"]
    return max(came.values()) - clock, bodies


async def posted(origin: str, bodies: list[bytes], concurrency: int) -> float:
    """Seconds that a plain httpx client needs for the same."""
    waiting = iter(bodies)
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(trust_env=False, limits=limits, timeout=30) as client:

        async def work() -> None:
            for body in waiting:
                answer = await client.post(f"{origin}/hook", content=body, headers={"content-type": "application/json"})
                answer.raise_for_status()

        clock = time.monotonic()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return time.monotonic() - clock


async def latency(directory: Path, rate: float, seconds: float) -> dict[str, Any]:
    """Callback in, notification out, at *rate*."""
    receiver = LiveReceiver(
        directory / "data",
        {
            "FREEPIK_API_KEY": "a-key",
            "FREEPIK_BASE_URL": "http://127.0.0.1:9",
            "FREEPIK_WEBHOOK_SECRET": FREEPIK_WEBHOOK_SECRET,
            "RECEIVER_SECRET_KEYS": _SECRET_KEY,
        },
    )
    async with subscriber() as origin:
        await receiver.start()
        try:
            count = int(rate * seconds)
            async with receiver.client() as client:
                asked = {"url": f"{origin}/hook", "event_types": ["job.succeeded"], "concurrency": 32}
                (await client.post("/v1/endpoints", json=asked)).raise_for_status()
            made = await asyncio.to_thread(add_running, directory / "data" / "receiver.db", count)
            sent = await _send_callbacks(receiver, made, rate)
            came: dict[str, float] = {}
            async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False, timeout=30) as client:
                while len(came) < count:
                    await asyncio.sleep(0.2)
                    came.update(await seen(client, origin))
            jobs = await _jobs_of_events(receiver)
        finally:
            await receiver.stop()
    took = sorted(came[event] - sent[jobs[event]] for event in came)
    return {
        "callbacks_per_second": rate,
        "count": count,
        "p50_ms": round(1000 * took[len(took) // 2], 1),
        "p99_ms": round(1000 * took[int(len(took) * 0.99)], 1),
        "max_ms": round(1000 * took[-1], 1),
    }


async def slots(directory: Path, count: int) -> dict[str, Any]:
    """The wait for a slot at healthy endpoints, by what hangs beside them."""
    hanging = Subscriber({"/hangs": [asyncio.Event()]})
    async with hanging.serve() as origin, delivery_stack(directory) as made:
        healthy = [await made.endpoint(f"{origin}/{n}", event_types=("job.succeeded",)) for n in range(9)]
        alone = await _waits(made, healthy, count)
        await made.endpoint(f"{origin}/hangs", timeout_seconds=600)
        await made.write_events(*["job.failed"] * 40)
        await eventually(lambda: len(hanging.at("/hangs")) == 10)
        beside = await _waits(made, healthy, count)
    return {"p99_ms_alone": _p99_ms(alone), "p99_ms_beside_one_that_hangs": _p99_ms(beside)}


async def _waits(made: DeliveryStack, healthy: list[Endpoint], count: int) -> list[float]:
    before = {delivery.id for delivery in await made.deliveries()}
    for _ in range(count):
        await made.write_events("job.succeeded")
        await asyncio.sleep(0.05)

    async def new_ones() -> list[DeliveryView]:
        each = [await made.deliveries(endpoint_id=endpoint.id) for endpoint in healthy]
        return [delivery for lane in each for delivery in lane if delivery.id not in before]

    async def delivered() -> bool:
        return all(delivery.state == "delivered" for delivery in await new_ones())

    await eventually(delivered)
    waits = []
    for delivery in await new_ones():
        found = await made.log.get(delivery.id)
        assert found is not None
        waits.append((found[1][0].started_at - delivery.created_at).total_seconds())
    return waits


def _p99_ms(seconds: list[float]) -> float:
    return round(1000 * sorted(seconds)[int(len(seconds) * 0.99)], 1)


async def _send_callbacks(receiver: LiveReceiver, made: list[tuple[str, str]], rate: float) -> dict[str, float]:
    """When the callback of each job was sent."""
    tokens, sent = Tokens([_SECRET_KEY]), dict[str, float]()
    async with httpx.AsyncClient(base_url=receiver.url, trust_env=False, timeout=30) as client:

        async def send(job: str, task: str) -> None:
            now, message = datetime.now(UTC), new_id("msg")
            body = callback_body(task, "COMPLETED", "http://127.0.0.1:9/result.png")
            headers = {
                "content-type": "application/json",
                "webhook-id": message,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": sign(FREEPIK_WEBHOOK_SECRET.encode(), message, now, body),
            }
            url = f"/callbacks/freepik/{tokens.callback(job, 'freepik')}"
            sent[job] = time.monotonic()
            (await client.post(url, content=body, headers=headers)).raise_for_status()

        began, sending = time.monotonic(), []
        for n, (job, task) in enumerate(made):
            await asyncio.sleep(max(began + n / rate - time.monotonic(), 0))
            sending.append(asyncio.create_task(send(job, task)))
        await asyncio.gather(*sending)
    return sent


async def _jobs_of_events(receiver: LiveReceiver) -> dict[str, str]:
    found, cursor = {}, "0"
    async with receiver.client() as client:
        while cursor is not None:
            params = {"cursor": cursor, "limit": "500", "type": "job.succeeded"}
            page = (await client.get("/v1/events", params=params)).json()
            found.update({item["id"]: item["job_id"] for item in page["items"]})
            cursor = page["next"]
    return found


@contextlib.asynccontextmanager
async def _notifying(database: Database) -> AsyncIterator[Notifier]:
    guard, tls = Guard(Settings(allow_networks="127.0.0.0/8").allow_networks), httpx.create_ssl_context()
    notifier = Notifier(
        Deliveries(database),
        Endpoints(database),
        lambda: Outbound(guard, ssl_context=tls, max_connections=1),
        Metrics(),
        DeliveryPolicy((new_secret(),), (0.0,)),
        owner=f"bench-{os.getpid()}",
        wakes=Wakes(),
    )
    running = [asyncio.create_task(loop.run()) for loop in (notifier.loop, notifier.renewals)]
    try:
        yield notifier
    finally:
        await notifier.shutdown(grace_seconds=1)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _done(task: str) -> Report:
    return Report(task, State.SUCCEEDED, images=(Image(url="https://images.example.com/result.png"),))
