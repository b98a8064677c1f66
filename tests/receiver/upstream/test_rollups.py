"""Hours are summed from the tables, and come out of `GET /v1/stats`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from receiver.domain.jobs import Source
from receiver.domain.rollups import Sums, hour_of, total
from receiver.store.database import Database
from receiver.store.rollups import RollupTable
from receiver.upstream.rollups import Rollups
from submitter.vocabulary import Cost, State
from tests.support.running_receiver import running_receiver
from tests.support.waiting import eventually


def test_percentiles_come_from_counts() -> None:
    sums = total([Sums(turnaround={1000: 50, 2000: 45}), Sums(turnaround={90_000: 5})])
    assert sums.turnaround_seconds(0.5) == 1.0
    assert sums.turnaround_seconds(0.95) == 2.0
    assert sums.turnaround_seconds(1.0) == 90.0
    assert Sums().turnaround_seconds(0.5) is None
    assert Sums.from_json(sums.to_json()) == sums


async def test_an_hour_is_what_its_jobs_and_callbacks_came_to(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        now = datetime.now(UTC)
        finished = {
            "awaits_callback": True,
            "sent_at": now - timedelta(seconds=12.34),
            "finished_at": now,
            "cost": Cost(Decimal("0.02"), "USD"),
        }
        await here.job("novita", State.SUCCEEDED, settled_by=Source.CALLBACK, **finished)
        await here.job("novita", State.SUCCEEDED, settled_by=Source.POLL, **finished)
        await here.job("freepik", State.FAILED, sent_at=now - timedelta(seconds=1), settled_by=Source.RESPONSE)
        job = await here.job("freepik")
        await here.post(job, b"{}", {"webhook-id": "x"})
        await here.read()
        sums = await RollupTable(here.receiver.parts.database).summed(hour_of(now), ("freepik", "novita"))
        assert sums["novita"].finished == {"succeeded": 2}
        assert sums["novita"].turnaround == {12_000: 2}
        assert sums["novita"].callbacks == {"awaited": 2, "lost": 1}
        assert sums["novita"].cost == {"USD": Decimal("0.04")}
        assert sums["freepik"].created == 2
        assert sums["freepik"].callbacks == {"received": 1, "refused": 1}

        async def shown() -> bool:
            items = (await here.client.get("/v1/stats")).json()["items"]
            return bool(items and items[0]["providers"].get("novita", {}).get("finished") == {"succeeded": 2})

        await eventually(shown)


async def test_hours_before_a_start_are_summed_one_after_the_other(database: Database) -> None:
    now = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    table = RollupTable(database)
    await table.write(hour_of(now - timedelta(hours=3)), {"": Sums()})
    rollups = Rollups(database, ("novita",), clock=lambda: now)
    for _ in range(4):
        await rollups.sum_next()
    hours = [hour for hour, name, _ in await table.between(now - timedelta(days=1), now) if name == ""]
    assert hours == [hour_of(now - timedelta(hours=n)) for n in (3, 2, 1, 0)]
