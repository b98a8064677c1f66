"""`/v1/deliveries`: the lists, the log of attempts, and replays."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from receiver.store.blobs import Blobs
from receiver.store.deliveries import AGENDA, Deliveries
from receiver.store.retention import Pruning, Retention
from tests.support.delivery_stack import delivery_stack
from tests.support.rows import execute_many
from tests.support.subscriber import Subscriber


async def test_what_was_not_delivered_is_one_list_and_every_filter_chooses(tmp_path: Path) -> None:
    subscriber = Subscriber({"/bad": [500], "/slow": [500]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path, schedule=(0,)) as made, made.client() as client:
        good = await made.endpoint(f"{origin}/good", event_types=("job.succeeded", "job.failed"))
        bad = await made.endpoint(f"{origin}/bad", event_types=("job.succeeded", "job.failed"))
        await made.write_events("job.succeeded", "job.failed", job_id="job_1")
        await made.write_events("job.succeeded", job_id="job_2")
        await made.settled()

        async def count(**params: str) -> int:
            return len((await client.get("/v1/deliveries", params=params)).json()["items"])

        assert await count() == 6
        assert await count(undelivered="true") == await count(state="given_up") == 3
        assert await count(state="delivered,given_up") == 6
        assert await count(endpoint=good.id) == await count(endpoint_id=bad.id) == 3
        assert await count(job="job_1") == 4
        assert await count(type="job.failed") == 2
        assert await count(fault="theirs") == 3
        assert await count(fault="ours") == 0
        events = await made.events()
        assert await count(event=events[0].id) == 2
        for name, value in (("state", "lost"), ("fault", "nobody"), ("type", "x"), ("undelivered", "maybe")):
            answer = await client.get("/v1/deliveries", params={name: value})
            assert (answer.status_code, answer.json()["field"]) == (422, name)

        seen, cursor = [], None
        while True:
            page = await client.get("/v1/deliveries", params={"limit": "4"} | ({"cursor": cursor} if cursor else {}))
            seen += [item["id"] for item in page.json()["items"]]
            if (cursor := page.json()["next"]) is None:
                break
        assert len(seen) == len(set(seen)) == 6
        assert seen == sorted(seen, reverse=True)


async def test_one_delivery_is_replayed_with_its_event_id_and_its_earlier_attempts_stay(tmp_path: Path) -> None:
    subscriber = Subscriber({"/hook": [500, 500, 200]})
    async with (
        subscriber.serve() as origin,
        delivery_stack(tmp_path, schedule=(0, 0.01)) as made,
        made.client() as client,
    ):
        await made.endpoint(f"{origin}/hook", event_types=("job.failed",))
        await made.write_events("job.failed")
        (lost,) = await made.settled()
        assert lost.state == "given_up"
        answer = await client.post(f"/v1/deliveries/{lost.id}/replay")
        assert (answer.status_code, answer.json()["id"]) == (202, lost.id)
        await made.settled()
        shown = (await client.get(f"/v1/deliveries/{lost.id}")).json()
    assert (shown["state"], shown["tries"]) == ("delivered", 1)
    assert [attempt["status"] for attempt in shown["attempts"]] == [500, 500, 200]
    assert {seen.id for seen in subscriber.seen} == {lost.event_id}


async def test_a_delivered_one_may_be_replayed_too(tmp_path: Path) -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made, made.client() as client:
        await made.endpoint(f"{origin}/hook")
        await made.write_events("job.failed")
        (delivery,) = await made.settled()
        await client.post(f"/v1/deliveries/{delivery.id}/replay")
        await made.settled()
    assert [seen.id for seen in subscriber.seen] == [delivery.event_id] * 2


async def test_all_failures_of_an_endpoint_are_replayed_and_a_dry_run_only_counts(tmp_path: Path) -> None:
    subscriber = Subscriber({"/a": [500], "/b": [500]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path, schedule=(0,)) as made, made.client() as client:
        a = await made.endpoint(f"{origin}/a", event_types=("job.failed",))
        await made.endpoint(f"{origin}/b", event_types=("job.failed",))
        await made.write_events(*["job.failed"] * 7)
        await made.settled()
        subscriber.answers = {}
        counted = await client.post("/v1/deliveries/replay", json={"endpoint_id": a.id, "dry_run": True})
        assert (counted.status_code, counted.json()["replayed"], counted.json()["dry_run"]) == (200, 7, True)
        assert len(await made.deliveries(states=("given_up",))) == 14

        replayed = await client.post("/v1/deliveries/replay", json={"endpoint_id": a.id})
        assert (replayed.status_code, replayed.json()["replayed"]) == (202, 7)
        await made.settled()
        assert len(await made.deliveries(endpoint_id=a.id, states=("delivered",))) == 7
        assert len(await made.deliveries(states=("given_up",))) == 7


async def test_everything_since_a_moment_is_replayed_with_what_was_missed_while_disabled(tmp_path: Path) -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made, made.client() as client:
        endpoint = await made.endpoint(f"{origin}/hook", event_types=("job.failed",))
        path = f"/v1/endpoints/{endpoint.id}"
        await made.write_events("job.failed")
        await made.settled()
        await client.patch(path, json={"enabled": False})
        await made.write_events("job.failed", "job.failed", "job.succeeded")
        await client.patch(path, json={"enabled": True})
        asked = {"endpoint_id": endpoint.id, "since": (datetime.now(UTC) - timedelta(minutes=1)).isoformat()}
        counted = (await client.post("/v1/deliveries/replay", json={**asked, "dry_run": True})).json()
        assert (counted["again"], counted["never_queued"], counted["replayed"]) == (1, 2, 3)
        assert (await client.post("/v1/deliveries/replay", json=asked)).json()["replayed"] == 3
        await made.settled()
        late = {**asked, "since": (datetime.now(UTC) + timedelta(minutes=1)).isoformat()}
        assert (await client.post("/v1/deliveries/replay", json=late)).json()["replayed"] == 0
        events = await made.events()
    failed = [event.id for event in events if event.type == "job.failed"]
    assert sorted(seen.id for seen in subscriber.seen) == sorted([failed[0], *failed])


async def test_pending_deliveries_of_an_endpoint_that_is_switched_off_are_listed_and_replayable(tmp_path: Path) -> None:
    subscriber = Subscriber({"/hook": [500]})
    async with (
        subscriber.serve() as origin,
        delivery_stack(tmp_path, schedule=(0, 60)) as made,
        made.client() as client,
    ):
        endpoint = await made.endpoint(f"{origin}/hook", event_types=("job.failed",))
        await made.write_events("job.failed")
        while not (waiting := [delivery for delivery in await made.deliveries() if delivery.tries]):
            pass
        refused = await client.patch(f"/v1/endpoints/{endpoint.id}", json={"enabled": False})
        assert refused.status_code == 200
        (lost,) = await made.deliveries()
        assert (lost.id, lost.state, lost.fault) == (waiting[0].id, "given_up", "theirs")
        answer = await client.post(f"/v1/deliveries/{lost.id}/replay")
        assert (answer.status_code, answer.json()["code"]) == (409, "endpoint_disabled")
        bulk = await client.post("/v1/deliveries/replay", json={"endpoint_id": endpoint.id})
        assert (bulk.status_code, bulk.json()["code"]) == (409, "endpoint_disabled")
        subscriber.answers = {}
        await client.patch(f"/v1/endpoints/{endpoint.id}", json={"enabled": True})
        await client.post("/v1/deliveries/replay", json={})
        assert [delivery.state for delivery in await made.settled()] == ["delivered"]


async def test_a_delivery_whose_endpoint_was_removed_can_not_be_replayed(tmp_path: Path) -> None:
    async with delivery_stack(tmp_path, schedule=(60,)) as made, made.client() as client:
        endpoint = await made.endpoint("http://127.0.0.1:9/")
        await made.write_events("job.failed")
        await client.delete(f"/v1/endpoints/{endpoint.id}")
        (dropped,) = await made.settled()
        answer = await client.post(f"/v1/deliveries/{dropped.id}/replay")
        assert (answer.status_code, answer.json()["code"]) == (409, "endpoint_gone")
        assert (await client.post("/v1/deliveries/replay", json={})).json()["replayed"] == 0


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"endpoint_id": "ep_none"}, "endpoint_id"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"since": 5}, "since"),
        ({"state": "pending"}, "state"),
        ({"dry_run": "yes"}, "dry_run"),
        ({"all": True}, "all"),
    ],
)
async def test_a_replay_that_can_not_be_is_refused_with_its_field(
    tmp_path: Path, document: dict[str, object], field: str
) -> None:
    async with delivery_stack(tmp_path) as made, made.client() as client:
        answer = await client.post("/v1/deliveries/replay", json=document)
        assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_a_delivery_that_is_not_there_is_404(tmp_path: Path) -> None:
    async with delivery_stack(tmp_path) as made, made.client() as client:
        for answer in (await client.get("/v1/deliveries/dlv_x"), await client.post("/v1/deliveries/dlv_x/replay")):
            assert (answer.status_code, answer.json()["code"]) == (404, "no_such_delivery")


async def test_attempts_are_forgotten_oldest_first_once_they_are_too_old(tmp_path: Path) -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made:
        await made.endpoint(f"{origin}/hook")
        for _ in range(2):
            await made.write_events("job.failed", "job.failed")
            await made.settled()
        first, *_, last = await made.deliveries()
        found = await made.log.get(last.id)
        assert found is not None
        between = found[1][0].started_at
        blobs = Blobs(tmp_path)
        await asyncio.to_thread(blobs.prepare)
        pruning = Pruning(
            made.database, blobs, keep=Retention(timedelta(days=30)), clock=lambda: between + timedelta(days=30)
        )
        assert (await pruning.prune()).attempts >= 2
        assert (await pruning.prune()).attempts == 0
        for delivery, count in ((first, 0), (last, 1)):
            found = await made.log.get(delivery.id)
            assert found is not None
            assert len(found[1]) == count


@pytest.mark.sqlite(reason="counts steps of SQLite's machine")
async def test_the_agenda_does_not_cost_more_where_much_is_pending(tmp_path: Path) -> None:
    """Its statements are counted in steps of SQLite's machine: a walk over all that waits would show at once."""
    async with delivery_stack(tmp_path) as made:
        steps: list[int] = []
        for count in (2, 2000):
            await execute_many(made.database, _PENDING, _rows(count))
            agenda = await Deliveries(made.database).agenda(datetime.now(UTC))
            assert sorted(agenda.first) == ["lane0", "lane1"]
            with contextlib.closing(sqlite3.connect(tmp_path / "receiver.db")) as database:
                ticks = itertools.count()
                database.set_progress_handler(lambda ticks=ticks: next(ticks) < 0, 1)  # type: ignore[misc]
                database.execute(AGENDA, (2**62, 2**62)).fetchall()
                steps.append(next(ticks))
    assert steps[1] < 2 * steps[0]


_PENDING = (
    "INSERT OR REPLACE INTO deliveries (id, event_id, event_type, lane, state, tries, retry, example, next_at,"
    " created_at) VALUES (?, 'evt_1', 'job.failed', ?, 'pending', 0, 0, 0, 9000000000000000, 1)"
)


def _rows(count: int) -> list[tuple[str, str]]:
    return [(f"dlv_{n:05}", f"lane{n % 2}") for n in range(count)]
