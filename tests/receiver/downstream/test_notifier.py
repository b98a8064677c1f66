"""Deliveries to real servers: signed, by the schedule, each lane for itself, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import standardwebhooks
import svix.webhooks
from starlette.responses import Response

from receiver.domain.deliveries import DeliveryView
from receiver.domain.endpoints import DISABLE_AFTER, Endpoint
from receiver.net.guard import Guard
from submitter.signatures import verify
from tests.support.clock import Clock
from tests.support.delivery_stack import DeliveryStack, delivery_stack
from tests.support.engines import database_of
from tests.support.subscriber import Seen, Subscriber
from tests.support.waiting import PATIENCE_SECONDS, eventually


def check_with_both(secret: str, seen: Seen) -> None:
    """The official packages of both find the signature good; raises if one does not."""
    assert standardwebhooks.Webhook(secret).verify(seen.body, dict(seen.headers)) == json.loads(seen.body)
    svix.webhooks.Webhook(secret).verify(seen.body, dict(seen.headers))
    verify(seen.headers, seen.body, secret)


def refused_by_both(secret: str, seen: Seen) -> bool:
    try:
        standardwebhooks.Webhook(secret).verify(seen.body, dict(seen.headers))
    except standardwebhooks.WebhookVerificationError:
        with pytest.raises(svix.webhooks.WebhookVerificationError):
            svix.webhooks.Webhook(secret).verify(seen.body, dict(seen.headers))
        return True
    return False


async def test_deliveries_verify_with_the_official_packages_before_during_and_after_a_rotation(tmp_path: Path) -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made, made.client() as client:
        answer = await client.post("/v1/endpoints", json={"url": f"{origin}/hook"})
        old = answer.json()["secret"]
        await made.write_events("job.succeeded")
        await made.settled()
        check_with_both(old, subscriber.seen[-1])

        path = f"/v1/endpoints/{answer.json()['id']}/rotate-secret"
        new = (await client.post(path, json={"overlap_seconds": 60})).json()["secret"]
        await made.write_events("job.succeeded")
        await made.settled()
        check_with_both(old, subscriber.seen[-1])
        check_with_both(new, subscriber.seen[-1])

        newest = (await client.post(path, json={"overlap_seconds": 0})).json()["secret"]
        await made.write_events("job.succeeded")
        await made.settled()
        check_with_both(newest, subscriber.seen[-1])
        assert refused_by_both(old, subscriber.seen[-1])
        assert refused_by_both(new, subscriber.seen[-1])


async def test_an_old_secret_stops_signing_when_its_time_is_over(tmp_path: Path) -> None:
    async with delivery_stack(tmp_path) as made:
        endpoint = await made.endpoint("http://127.0.0.1:1/")
        now = datetime.now(UTC)
        rotated = endpoint.rotated("whsec_new", now, overlap=timedelta(hours=24))
        assert rotated.signing(now + timedelta(hours=23)) == ["whsec_new", endpoint.secrets[0].secret]
        assert rotated.signing(now + timedelta(hours=25)) == ["whsec_new"]
        again = rotated.rotated("whsec_newer", now, overlap=timedelta(days=7))
        assert again.signing(now + timedelta(hours=25)) == ["whsec_newer", "whsec_new"]


async def test_two_failures_a_timeout_and_a_success_are_four_attempts_by_the_schedule(tmp_path: Path) -> None:
    schedule, clock = (0, 5, 300, 1800), Clock()
    subscriber = Subscriber({"/hook": [500, 500, asyncio.Event(), 200]})
    async with (
        subscriber.serve() as origin,
        delivery_stack(tmp_path, schedule=schedule, clock=clock) as made,
        made.client() as client,
    ):
        endpoint = await made.endpoint(f"{origin}/hook", timeout_seconds=60)
        await made.write_events("job.succeeded")
        for tries, pause in enumerate(schedule[1:], 1):
            delivery = await tried(made, tries)
            assert delivery.next_at is not None
            assert pause <= (delivery.next_at - clock.now).total_seconds() <= pause * 1.1
            hangs = tries + 1 == 3
            changed = {"timeout_seconds": 0.3 if hangs else 60}
            assert (await client.patch(f"/v1/endpoints/{endpoint.id}", json=changed)).is_success
            clock.now = delivery.next_at
            made.wake()
        (delivery,) = await made.settled()
        found = await made.log.get(delivery.id)
    assert found is not None
    shown, attempts = found
    assert (shown.state, shown.tries) == ("delivered", 4)
    assert [attempt.status for attempt in attempts] == [500, 500, None, 200]
    assert [attempt.answer for attempt in attempts] == [b"answer 500", b"answer 500", None, b"answer 200"]
    assert "within 0.3 s" in (attempts[2].error or "")
    assert {seen.id for seen in subscriber.seen} == {delivery.event_id}


async def tried(made: DeliveryStack, times: int) -> DeliveryView:
    """The only delivery, once it was tried *times* times."""

    async def enough() -> bool:
        return (await made.deliveries())[0].tries == times

    await eventually(enough)
    return (await made.deliveries())[0]


async def test_retry_after_is_waited_for_where_it_is_longer_than_the_schedule(tmp_path: Path) -> None:
    clock = Clock()
    busy = Response("", 503, headers={"retry-after": "100"})
    subscriber = Subscriber({"/hook": [busy, busy, 200]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path, schedule=(0, 50, 200), clock=clock) as made:
        await made.endpoint(f"{origin}/hook")
        await made.write_events("job.succeeded")
        delivery = await tried(made, 1)
        assert delivery.next_at == clock.now + timedelta(seconds=100)
        clock.now = delivery.next_at
        made.wake()
        delivery = await tried(made, 2)
        assert delivery.next_at is not None
        assert delivery.next_at >= clock.now + timedelta(seconds=200)
        clock.now = delivery.next_at
        made.wake()
        (delivery,) = await made.settled()
    assert delivery.state == "delivered"


async def test_an_endpoint_that_answers_410_is_disabled_and_the_others_are_reported(tmp_path: Path) -> None:
    subscriber = Subscriber({"/gone": [410]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made, made.client() as client:
        gone = await made.endpoint(f"{origin}/gone", concurrency=1)
        await made.endpoint(f"{origin}/other", event_types=("endpoint.disabled",))
        await made.write_events("job.succeeded", "job.failed", "job.failed")
        deliveries = await made.settled()
        shown = (await client.get(f"/v1/endpoints/{gone.id}")).json()
        lost = (await client.get("/v1/deliveries", params={"undelivered": "true", "endpoint": gone.id})).json()["items"]
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "it answered 410 Gone")
    assert len(subscriber.at("/gone")) == 1
    assert [item["state"] for item in lost] == ["given_up"] * 3
    assert {item["fault"] for item in lost} == {"theirs"}
    (reported,) = subscriber.at("/other")
    assert json.loads(reported.body)["data"]["id"] == gone.id
    assert len(deliveries) == 4


@pytest.mark.parametrize("ended_by", ["PATCH", "DELETE"])
async def test_a_try_during_which_its_endpoint_was_disabled_or_removed_is_counted(
    tmp_path: Path, ended_by: str
) -> None:
    subscriber = Subscriber({"/slow": [asyncio.Event()]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made, made.client() as client:
        endpoint = await made.endpoint(f"{origin}/slow", timeout_seconds=0.5)
        await made.write_events("job.succeeded")
        await eventually(lambda: bool(subscriber.seen))
        ended = await client.request(
            ended_by, f"/v1/endpoints/{endpoint.id}", json={"enabled": False} if ended_by == "PATCH" else None
        )
        assert ended.is_success
        (delivery,) = await made.settled()

        async def attempts() -> int:
            return len((await client.get(f"/v1/deliveries/{delivery.id}")).json()["attempts"])

        await eventually(attempts)
        shown = (await client.get(f"/v1/deliveries/{delivery.id}")).json()
    assert (shown["state"], shown["tries"]) == ({"PATCH": "given_up", "DELETE": "dropped"}[ended_by], 1)
    assert len(shown["attempts"]) == 1


async def test_failing_is_reported_once_a_period_and_again_in_the_next(tmp_path: Path) -> None:
    subscriber = Subscriber({"/bad": [500, 500, 500, 200, 500]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path, schedule=(0,)) as made:
        await made.endpoint(f"{origin}/bad", event_types=("job.failed",))
        reported = []
        for _ in range(5):
            await made.write_events("job.failed")
            await made.settled()
            found = await made.events()
            reported.append(sum(event.type == "endpoint.failing" for event in found))
    assert reported == [1, 1, 1, 1, 2]


async def test_an_endpoint_that_failed_for_days_is_disabled_at_its_next_failure(tmp_path: Path) -> None:
    subscriber = Subscriber({"/bad": [500]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made:
        since = datetime.now(UTC) - DISABLE_AFTER - timedelta(minutes=1)
        endpoint = await made.endpoint(f"{origin}/bad", failing_since=since, failure_reported_at=since)
        await made.write_events("job.failed")
        await made.settled()
        found = await made.endpoints.get(endpoint.id)
        events = await made.events()
    assert found is not None
    assert not found.enabled
    assert "failed since" in (found.disabled_reason or "")
    assert [event.type for event in events] == ["job.failed", "endpoint.disabled"]


async def test_a_notify_url_is_reported_the_end_and_signed_with_the_notify_secret(tmp_path: Path) -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made:
        await made.write_events("job.queued", "job.running", "job.succeeded", notify_url=f"{origin}/mine?job=1")
        await made.settled()
    (seen,) = subscriber.seen
    assert json.loads(seen.body)["type"] == "job.succeeded"
    check_with_both(made.notify_secret, seen)


async def test_calls_to_notify_urls_are_bounded_over_all_of_them_and_all_are_reported(tmp_path: Path) -> None:
    gate = asyncio.Event()
    subscriber = Subscriber({f"/{n}": [gate] for n in range(20)})
    async with subscriber.serve() as origin, delivery_stack(tmp_path, most_notify_calls=5) as made:
        for n in range(20):
            await made.write_events("job.succeeded", notify_url=f"{origin}/{n}")
        await eventually(lambda: len(subscriber.seen) == 5)
        gate.set()
        await made.settled()
    assert sorted(seen.path for seen in subscriber.seen) == sorted(f"/{n}" for n in range(20))
    assert subscriber.most_open[""] == 5


async def test_a_crowd_of_endpoints_has_one_slot_each_and_holds_nobody_up(tmp_path: Path) -> None:
    gate = asyncio.Event()
    subscriber = Subscriber({f"/{n}": [gate] for n in range(3)})
    async with subscriber.serve() as origin, delivery_stack(tmp_path, most_calls=5) as made:
        for n in range(3):
            await made.endpoint(f"{origin}/{n}", event_types=("job.failed",), timeout_seconds=PATIENCE_SECONDS)
        await made.write_events(*["job.failed"] * 20)
        await eventually(lambda: len({seen.path for seen in subscriber.seen}) == 3)
        await made.endpoint(f"{origin}/well", event_types=("job.succeeded",))
        await made.write_events(*["job.succeeded"] * 20)
        await eventually(lambda: len(subscriber.at("/well")) == 20)
        assert subscriber.most_open["/well"] == 1
        assert subscriber.most_open[""] <= 5 + 3, "one more for each endpoint that comes while five are under way"
        gate.set()
        await made.settled()
    assert [len(subscriber.at(f"/{n}")) for n in range(3)] == [20] * 3


@pytest.mark.sqlite(reason="another program locks the file")
async def test_an_attempt_is_booked_however_long_the_database_is_held(tmp_path: Path) -> None:
    gate = asyncio.Event()
    subscriber = Subscriber({"/hook": [gate]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made:
        await made.endpoint(f"{origin}/hook", event_types=("job.failed",), timeout_seconds=PATIENCE_SECONDS)
        await made.write_events("job.failed")
        await eventually(lambda: subscriber.at("/hook"))
        with contextlib.closing(sqlite3.connect(database_of(tmp_path), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            gate.set()
            await asyncio.sleep(2.5)
            other.execute("ROLLBACK")
        (delivery,) = await made.settled()
    assert (delivery.state, delivery.tries) == ("delivered", 1)
    assert len(subscriber.at("/hook")) == 1


async def test_redirects_are_not_followed(tmp_path: Path) -> None:
    subscriber = Subscriber({"/hook": [Response("", 307, headers={"location": "/elsewhere"})]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path, schedule=(0,)) as made:
        await made.endpoint(f"{origin}/hook", event_types=("job.failed",))
        await made.write_events("job.failed")
        (delivery,) = await made.settled()
    assert (delivery.state, delivery.last_status, delivery.last_error) == ("given_up", 307, "answered 307")
    assert subscriber.at("/elsewhere") == []


async def test_what_the_guard_refuses_is_our_fault_and_listed_apart(tmp_path: Path) -> None:
    subscriber = Subscriber({"/bad": [500]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path, schedule=(0,)) as made, made.client() as client:
        await made.endpoint("https://10.0.0.1/hook", event_types=("job.failed",))
        await made.endpoint(f"{origin}/bad", event_types=("job.failed",))
        await made.write_events("job.failed")
        await made.settled()
        for fault, error in (("ours", "must not be reached"), ("theirs", "answered 500")):
            (item,) = (await client.get("/v1/deliveries", params={"fault": fault})).json()["items"]
            assert error in item["last_error"]


async def test_healthy_endpoints_are_served_while_another_hangs_in_all_its_slots(tmp_path: Path) -> None:
    gate = asyncio.Event()
    subscriber = Subscriber({"/hangs": [gate]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made:
        healthy = [await made.endpoint(f"{origin}/{n}", event_types=("job.succeeded",)) for n in range(9)]
        await made.endpoint(f"{origin}/hangs", timeout_seconds=PATIENCE_SECONDS)
        await made.write_events(*["job.failed"] * 40)
        await eventually(lambda: len(subscriber.at("/hangs")) == 10)
        for _ in range(20):
            await made.write_events("job.succeeded")

        async def all_served() -> bool:
            each = [await made.deliveries(endpoint_id=endpoint.id) for endpoint in healthy]
            return all([delivery.state for delivery in lane] == ["delivered"] * 20 for lane in each)

        await eventually(all_served)
        assert len(subscriber.at("/hangs")) == 10, "none of its calls has ended"
        gate.set()
        await made.settled()


async def test_first_tries_are_not_held_up_by_later_ones_that_hang(tmp_path: Path) -> None:
    """Sixty old failures are due again and each hangs; a new event is still tried at once."""
    gate, clock = asyncio.Event(), Clock()
    subscriber = Subscriber({"/hook": [500]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path, schedule=(0, 60), clock=clock) as made:
        await made.endpoint(f"{origin}/hook", concurrency=4, timeout_seconds=PATIENCE_SECONDS)
        await made.write_events(*["job.failed"] * 60)

        async def all_failed() -> bool:
            return all(delivery.tries == 1 for delivery in await made.deliveries())

        await eventually(all_failed)
        subscriber.answers["/hook"] = [gate]
        clock.advance(70)
        made.wake()
        await eventually(lambda: len(subscriber.seen) == 63)
        await made.write_events("job.succeeded")
        await eventually(lambda: b"job.succeeded" in subscriber.seen[-1].body)
        assert len(subscriber.seen) == 64, "none of the others has ended"
        gate.set()
        await made.settled()


async def test_concurrency_and_rate_of_an_endpoint_hold(tmp_path: Path) -> None:
    gate = asyncio.Event()
    subscriber = Subscriber({"/narrow": [gate]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made:
        narrow = await made.endpoint(f"{origin}/narrow", concurrency=2)
        paced = await made.endpoint(f"{origin}/paced", rate="5/86400")
        await made.write_events(*["job.succeeded"] * 12)
        await eventually(lambda: len(subscriber.at("/narrow")) == 2 and len(subscriber.at("/paced")) == 5)
        gate.set()

        async def states(endpoint: Endpoint) -> Counter[str]:
            return Counter(delivery.state for delivery in await made.deliveries(endpoint_id=endpoint.id))

        async def narrow_served() -> bool:
            return await states(narrow) == {"delivered": 12}

        await eventually(narrow_served)
        assert subscriber.most_open["/narrow"] == 2
        assert await states(paced) == {"delivered": 5, "pending": 7}


async def test_a_removed_endpoint_hears_nothing_more(tmp_path: Path) -> None:
    gate = asyncio.Event()
    subscriber = Subscriber({"/slow": [gate]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made, made.client() as client:
        endpoint = await made.endpoint(f"{origin}/slow", concurrency=1)
        await made.write_events(*["job.succeeded"] * 10)
        await eventually(lambda: bool(subscriber.seen))
        assert (await client.delete(f"/v1/endpoints/{endpoint.id}")).status_code == 204
        gate.set()
        deliveries = await made.settled()
        await made.endpoint(f"{origin}/other")
        await made.write_events("job.succeeded")
        await made.settled()
    assert len(subscriber.at("/slow")) == 1
    assert subscriber.seen[-1].path == "/other"
    assert {delivery.state for delivery in deliveries} <= {"dropped", "delivered"}


async def test_an_attempt_that_dies_of_our_own_error_is_booked_and_the_schedule_goes_on(tmp_path: Path) -> None:
    calls = 0

    async def at_the_limit_of_threads(host: str, port: int) -> list[str]:
        nonlocal calls
        calls += 1
        raise RuntimeError("can't start new thread")

    async with delivery_stack(tmp_path, schedule=(0, 0, 0)) as made:
        made.guard = Guard(resolver=at_the_limit_of_threads)
        await made.endpoint("https://subscriber.example/hook")
        await made.write_events("job.succeeded")
        (delivery,) = await made.settled()
        assert delivery.state == "given_up"
        assert calls == 3, "as many tries as the schedule has, and none beyond it"
