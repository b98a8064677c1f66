"""Costs of jobs, from their providers or from settings; statistics of turnaround and lost callbacks."""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.ids import lowest_id
from receiver.store.codecs import us
from receiver.store.database import Database, open_database
from receiver.upstream.statistics import ProviderStatistics
from submitter.sandbox import test_picture as picture_bytes
from tests.support.engines import database_of
from tests.support.processes import live, submit, wait_for_state
from tests.support.rows import fetch

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await open_database(database_of(tmp_path))
    yield database
    await database.close()


async def finished(
    database: Database, provider: str, count: int, *, at: datetime, settled_by: str = "callback", **more: Any
) -> list[str]:
    """Finished jobs, each 20 s after it was sent."""
    known = await _count(database)
    ids = [f"{lowest_id('job', at)[:-4]}{known + n:04}" for n in range(count)]
    values: Mapping[str, Any] = {
        "state": "succeeded",
        "version": 3,
        "options": "{}",
        "metadata": "{}",
        "awaits_callback": 1,
        "input_name": "x",
        "tries": 1,
        "polls": 0,
        "provider": provider,
        "settled_by": settled_by,
        "created_at": us(at),
        "sent_at": us(at),
        "finished_at": us(at + timedelta(seconds=20)),
        **more,
    }
    await database.append("jobs", ("id", *values), [(job_id, *values.values()) for job_id in ids])
    return ids


async def _count(database: Database) -> int:
    ((count,),) = await fetch(database, "SELECT count(*) FROM jobs")
    return int(count)


async def called_back(database: Database, ids: list[str], at: datetime) -> None:
    columns = ("job_id", "provider", "source", "verdict", "received_at", "headers", "body")
    rows = [(job_id, "novita", "callback", "late", us(at), "[]", b"") for job_id in ids]
    await database.append("evidence", columns, rows)


async def test_lost_callbacks_degrade_a_provider_and_are_reported_once(database: Database) -> None:
    statistics, other = ProviderStatistics(database), ProviderStatistics(database)
    await finished(database, "novita", 3, at=NOW, settled_by="poll")
    assert not await statistics.judge("novita", NOW)
    await finished(database, "novita", 1, at=NOW, settled_by="poll")
    assert await statistics.judge("novita", NOW)
    assert not await statistics.judge("novita", NOW)
    assert not await other.judge("novita", NOW)
    health = await statistics.health("novita")
    assert (health.lost_callbacks, health.degraded, health.turnaround_seconds) == (1.0, True, 20.0)
    assert await fetch(database, "SELECT type FROM events") == [("provider.callbacks_degraded",)]
    fresh = ProviderStatistics(database)
    await fresh.load()
    assert fresh.degraded == {"novita"}


async def test_callbacks_that_come_after_an_early_poll_are_not_lost_and_make_a_provider_well(
    database: Database,
) -> None:
    statistics = ProviderStatistics(database)
    await finished(database, "novita", 10, at=NOW, settled_by="poll")
    assert await statistics.judge("novita", NOW)
    later = NOW + timedelta(minutes=5)
    ids = await finished(database, "novita", 20, at=later, settled_by="poll")
    assert not await statistics.judge("novita", later)
    assert statistics.degraded == {"novita"}
    await called_back(database, ids[:16], later + timedelta(seconds=25))
    assert not await statistics.judge("novita", later)
    assert statistics.degraded == set()
    assert (await statistics.health("novita")).lost_callbacks == 0.2


async def test_many_jobs_that_awaited_no_callback_are_not_walked_over(database: Database) -> None:
    await finished(database, "novita", 10, at=NOW, settled_by="poll")
    await finished(database, "novita", 500, at=NOW + timedelta(hours=1), settled_by="poll", awaits_callback=0)
    statistics = ProviderStatistics(database)
    assert not await statistics.judge("novita", NOW)
    assert (await statistics.health("novita")).jobs == 20
    await finished(database, "novita", 4, at=NOW + timedelta(hours=2), settled_by="poll")
    assert await statistics.judge("novita", NOW)


async def test_spend_is_summed_again_after_half_a_minute(database: Database) -> None:
    seconds = 0.0
    statistics = ProviderStatistics(database, clock=lambda: seconds)
    await finished(database, "apixo", 1, at=NOW, cost_amount="1", cost_unit="USD")
    first = await statistics.spend(now=NOW)
    await finished(database, "apixo", 1, at=NOW, cost_amount="1", cost_unit="USD")
    seconds = 29.0
    assert await statistics.spend(now=NOW) == first
    seconds = 30.0
    assert (await statistics.spend(now=NOW))["apixo"][0]["amount"] == "2"


async def test_cost_is_summed_exactly_by_provider_day_and_unit(database: Database) -> None:
    yesterday = NOW - timedelta(days=1)
    await finished(database, "apixo", 3, at=NOW, cost_amount="0.01", cost_unit="USD")
    await finished(database, "apixo", 1, at=NOW, cost_amount="0.1", cost_unit="USD")
    await finished(database, "apixo", 1, at=yesterday, cost_amount="0.01", cost_unit="USD")
    await finished(database, "upscayl", 2, at=NOW, cost_amount="10", cost_unit="credits")
    await finished(database, "upscayl", 1, at=NOW - timedelta(days=9), cost_amount="10", cost_unit="credits")
    spend = await ProviderStatistics(database).spend(now=NOW)
    assert spend == {
        "apixo": [
            {"day": "2026-11-20", "amount": "0.13", "unit": "USD"},
            {"day": "2026-11-19", "amount": "0.01", "unit": "USD"},
        ],
        "upscayl": [{"day": "2026-11-20", "amount": "20", "unit": "credits"}],
    }


async def test_each_provider_tells_or_is_reported_what_a_job_costs(tmp_path: Path) -> None:
    prices = {"FREEPIK_PRICE": "0.10 USD", "NOVITA_PRICE": "0.005 USD", "PIXELCUT_PRICE": "5 credits"}
    expected = {
        "freepik": {"amount": "0.10", "unit": "USD"},
        "apixo": {"amount": "0.01", "unit": "USD"},
        "novita": {"amount": "0.005", "unit": "USD"},
        "upscayl": {"amount": "10", "unit": "credits"},
        "pixelcut": {"amount": "5", "unit": "credits"},
    }
    async with live(tmp_path, environment=prices) as (receiver, _), receiver.client() as client:
        for provider, cost in expected.items():
            job = await submit(client, provider, picture_bytes(64, 64))
            assert (await wait_for_state(client, job["id"]))["cost"] == cost
        shown = {item["name"]: item["spend"] for item in (await client.get("/v1/providers")).json()["items"]}
        assert {
            name: {"amount": days[0]["amount"], "unit": days[0]["unit"]} for name, days in shown.items()
        } == expected
        metrics = (await client.get("/metrics")).text
        assert 'receiver_spend_today{provider="upscayl",unit="credits"} 10.0' in metrics
