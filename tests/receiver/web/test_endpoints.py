"""`/v1/endpoints`: what may be set, what is refused in words, and how an endpoint is tried out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.events import EVENT_TYPES
from receiver.net.guard import Guard
from submitter.signatures import new_secret, verify
from tests.receiver.net.test_client_hostile import HOSTILE, Connector, guarded, names
from tests.support.delivery_stack import delivery_stack
from tests.support.subscriber import Subscriber

URL = "http://127.0.0.1:8099/hook"


async def test_an_endpoint_is_made_read_changed_and_removed(tmp_path: Path) -> None:
    async with delivery_stack(tmp_path) as made, made.client() as client:
        answer = await client.post("/v1/endpoints", json={"url": URL, "event_types": ["job.failed"]})
        assert answer.status_code == 201
        endpoint = answer.json()
        assert endpoint["secret"].startswith("whsec_")
        assert answer.headers["location"].endswith(f"/v1/endpoints/{endpoint['id']}")
        path = f"/v1/endpoints/{endpoint['id']}"

        shown = (await client.get(path)).json()
        assert "secret" not in shown
        assert shown == {name: value for name, value in endpoint.items() if name != "secret"}

        change = {"description": "mine", "concurrency": 3, "rate": "5/1", "timeout_seconds": 2}
        changed = (await client.patch(path, json=change)).json()
        assert {**shown, **change} == changed

        put = (await client.put(path, json={"url": URL, "providers": ["novita"]})).json()
        assert (put["providers"], put["event_types"], put["concurrency"], put["rate"]) == (["novita"], [], 10, None)

        assert (await client.delete(path)).status_code == 204
        for method in ("GET", "PATCH", "DELETE"):
            gone = await client.request(method, path, json={} if method == "PATCH" else None)
            assert (gone.status_code, gone.json()["code"]) == (404, "no_such_endpoint")


async def test_the_list_has_pages(tmp_path: Path) -> None:
    async with delivery_stack(tmp_path) as made, made.client() as client:
        ids = [(await client.post("/v1/endpoints", json={"url": URL})).json()["id"] for _ in range(5)]
        seen, cursor = [], None
        while True:
            params = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
            page = (await client.get("/v1/endpoints", params=params)).json()
            seen += [item["id"] for item in page["items"]]
            assert all("secret" not in item for item in page["items"])
            if (cursor := page["next"]) is None:
                break
    assert seen == ids


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "url"),
        ({"url": 5}, "url"),
        ({"url": ""}, "url"),
        ({"url": "not a url"}, "url"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"url": "https://user:password@example.com/"}, "url"),
        ({"url": "http://93.184.216.34/"}, "url"),
        ({"url": URL, "event_types": ["job.exploded"]}, "event_types.0"),
        ({"url": URL, "event_types": "job.failed"}, "event_types"),
        ({"url": URL, "providers": ["nobody"]}, "providers.0"),
        ({"url": URL, "timeout_seconds": 0}, "timeout_seconds"),
        ({"url": URL, "timeout_seconds": 1e9}, "timeout_seconds"),
        ({"url": URL, "concurrency": 0}, "concurrency"),
        ({"url": URL, "concurrency": True}, "concurrency"),
        ({"url": URL, "rate": "fast"}, "rate"),
        ({"url": URL, "secret": "whsec_short"}, "secret"),
        ({"url": URL, "colour": "red"}, "colour"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_what_can_not_be_set_is_refused_with_its_field(
    tmp_path: Path, document: dict[str, Any], field: str
) -> None:
    async with delivery_stack(tmp_path) as made, made.client() as client:
        answer = await client.post("/v1/endpoints", json=document)
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["field"] == field
        assert answer.json()["remedy"]
        if field == "event_types.0":
            assert answer.json()["detail"] == "event_types.0: there is no event 'job.exploded'"
        assert await made.endpoints.all() == []


@pytest.mark.parametrize(
    ("document", "remedy"),
    [
        ({}, "add url: text of at most 2000 characters (https, or http inside RECEIVER_ALLOW_NETWORKS)"),
        (
            {"url": URL, "timeout_seconds": 0},
            "change timeout_seconds: a number from 0.1 to 60 (For a whole attempt)",
        ),
        ({"url": URL, "enabled": "yes"}, "change enabled: true or false"),
        ({"url": URL, "providers": ["nobody"]}, "each one of freepik, apixo, novita, upscayl, pixelcut"),
        (
            {"url": URL, "rate": "fast"},
            "change rate: text of at most 40 characters such as 20/60 or null (Limit on attempts",
        ),
        ({"url": URL, "secret": "x"}, "text of at most 200 characters or null (Your own secret"),
        ({"url": "https://10.1.2.3/"}, "use a public https URL, or, if the address is yours, add its network to"),
        ({"url": "https://169.254.169.254/"}, "use a public https URL: metadata addresses stay closed"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_a_refusal_says_what_the_field_takes(tmp_path: Path, document: dict[str, Any], remedy: str) -> None:
    async with delivery_stack(tmp_path) as made, made.client() as client:
        problem = (await client.post("/v1/endpoints", json=document)).json()
        assert remedy in problem["remedy"], problem
        assert "RECEIVER_ALLOW_NETWORKS" not in problem["detail"]


@pytest.mark.parametrize("url", HOSTILE, ids=ascii)
async def test_no_hostile_url_becomes_an_endpoint_or_is_dialled_by_its_test(tmp_path: Path, url: str) -> None:
    """
    The API refuses each, but names that don't resolve just now; put past the API, the test button refuses it just the
    same, and nobody is dialled.
    """
    guard, connector = Guard(resolver=names), Connector()
    async with (
        guarded(connector) as outbound,
        delivery_stack(tmp_path, schedule=(0,), guard=guard, connect=lambda: outbound) as made,
        made.client() as client,
    ):
        unresolved = "nowhere" in url or "unheard" in url
        answer = await client.post("/v1/endpoints", json={"url": url})
        if not unresolved:
            assert (answer.status_code, answer.json()["field"]) == (422, "url")
        endpoint = await made.endpoint(url)
        delivery_id = await made.log.send_example(endpoint.id, "job.succeeded", {}, endpoint.created_at)
        made.wake()
        (shown,) = await made.settled()
        assert (shown.id, shown.state) == (delivery_id, "given_up")
        assert shown.fault == ("theirs" if unresolved else "ours")
        assert connector.asked == []


@pytest.mark.parametrize("event_type", EVENT_TYPES)
async def test_a_test_sends_a_signed_example_by_the_way_of_real_ones(tmp_path: Path, event_type: str) -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made, made.client() as client:
        endpoint = (await client.post("/v1/endpoints", json={"url": f"{origin}/hook"})).json()
        answer = await client.post(f"/v1/endpoints/{endpoint['id']}/test", json={"event_type": event_type})
        assert answer.status_code == 202
        await made.settled()
        shown = (await client.get(f"/v1/deliveries/{answer.json()['id']}")).json()
        listed = (await client.get("/v1/deliveries")).json()["items"]
    (seen,) = subscriber.seen
    verify(seen.headers, seen.body, endpoint["secret"])
    body = json.loads(seen.body)
    assert body["type"] == event_type
    assert body["data"]
    assert (shown["state"], shown["example"], shown["event_id"]) == ("delivered", True, seen.id)
    assert [(attempt["status"], attempt["answer"]) for attempt in shown["attempts"]] == [(200, "answer 200")]
    assert [item["id"] for item in listed] == [shown["id"]]


async def test_a_failed_test_is_tried_once_and_does_not_count_against_the_endpoint(tmp_path: Path) -> None:
    subscriber = Subscriber({"/hook": [410]})
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made, made.client() as client:
        endpoint = (await client.post("/v1/endpoints", json={"url": f"{origin}/hook"})).json()
        await client.post(f"/v1/endpoints/{endpoint['id']}/test")
        (delivery,) = await made.settled()
        after = await made.endpoints.get(endpoint["id"])
    assert (delivery.state, delivery.last_status, len(subscriber.seen)) == ("given_up", 410, 1)
    assert after is not None
    assert after.enabled
    assert after.failing_since is None


async def test_a_disabled_endpoint_can_be_tested_and_hears_nothing_else(tmp_path: Path) -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made, made.client() as client:
        asked = {"url": f"{origin}/hook", "enabled": False}
        endpoint = (await client.post("/v1/endpoints", json=asked)).json()
        assert (endpoint["enabled"], bool(endpoint["disabled_reason"])) == (False, True)
        await made.write_events("job.succeeded")
        await client.post(f"/v1/endpoints/{endpoint['id']}/test")
        await made.settled()
        enabled = (await client.patch(f"/v1/endpoints/{endpoint['id']}", json={"enabled": True})).json()
        assert (enabled["enabled"], enabled["disabled_reason"]) == (True, None)
        await made.write_events("job.succeeded")
        await made.settled()
    assert len(subscriber.seen) == 2


async def test_filters_by_type_and_provider_choose_what_an_endpoint_hears(tmp_path: Path) -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made:
        await made.endpoint(f"{origin}/all")
        await made.endpoint(f"{origin}/failed", event_types=("job.failed",))
        await made.endpoint(f"{origin}/novita", providers=("novita",))
        await made.write_events("job.failed", "job.succeeded", provider="freepik")
        await made.write_events("job.failed", "job.succeeded", provider="novita")
        await made.settled()
    assert [len(subscriber.at(path)) for path in ("/all", "/failed", "/novita")] == [4, 2, 2]


async def test_your_own_secret_is_accepted_and_signs(tmp_path: Path) -> None:
    subscriber, own = Subscriber(), new_secret()
    async with subscriber.serve() as origin, delivery_stack(tmp_path) as made, made.client() as client:
        asked = {"url": f"{origin}/hook", "secret": own}
        assert (await client.post("/v1/endpoints", json=asked)).json()["secret"] == own
        await made.write_events("job.succeeded")
        await made.settled()
    verify(subscriber.seen[0].headers, subscriber.seen[0].body, own)
