"""The wait for a slot: from due to try at nine healthy endpoints, alone and beside one that hangs in all its slots."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from receiver.domain.deliveries import DeliveryView
from receiver.domain.endpoints import Endpoint
from tests.bench.figures import Figure, parser, present
from tests.support.delivery_stack import DeliveryStack, delivery_stack
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually


def main(argv: list[str]) -> None:
    options = parser("slots", __doc__)
    options.add_argument("--events", type=int, default=20, help="events in a round")
    given = options.parse_args(argv)
    alone = Figure("p99 of the wait for a slot", "ms")
    beside = Figure("beside an endpoint that hangs", "ms", baseline=alone.what)
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(_round(Path(directory), given.events, alone, beside))
    present("slots", f"{given.events} events, 9 healthy endpoints", [alone, beside], as_json=given.json)


async def _round(directory: Path, count: int, alone: Figure, beside: Figure) -> None:
    hanging = Subscriber({"/hangs": [asyncio.Event()]})
    async with hanging.serve() as origin, delivery_stack(directory) as made:
        healthy = [await made.endpoint(f"{origin}/{n}", event_types=("job.succeeded",)) for n in range(9)]
        alone.values.append(_p99_ms(await _waits(made, healthy, count)))
        await made.endpoint(f"{origin}/hangs", timeout_seconds=600)
        await made.write_events(*["job.failed"] * 40)
        await eventually(lambda: len(hanging.at("/hangs")) == 10)
        beside.values.append(_p99_ms(await _waits(made, healthy, count)))


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
    return 1000 * sorted(seconds)[int(len(seconds) * 0.99)]
