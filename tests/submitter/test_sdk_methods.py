"""Every public method of `Client` and `AsyncClient`, called on a real receiver."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import submitter
from submitter import AsyncClient, Client, State
from submitter.sandbox import test_picture as picture_bytes
from tests.support.processes import TOKEN, LiveReceiver, live, submit, wait_for_state
from tests.support.subscriber import Subscriber
from tests.support.waiting import PATIENCE_SECONDS, patiently

POLLED_WHEN_ASKED = {"RECEIVER_POLL_INTERVAL": "600"}
"""What is never called back then runs until somebody polls it."""


@dataclass
class Stage:
    """What the calls of one client need: a picture, jobs in certain states, and what earlier calls returned."""

    url: str
    origin: str
    picture: Path
    out: Path
    queued: str
    canceled: str
    running: str
    given: dict[str, Any] = field(default_factory=dict)


Call = Callable[[Any, Stage], Any]
Check = Callable[[Any, Stage], object]

CALLS: Mapping[str, tuple[Call, Check]] = {
    "health": (lambda c, s: c.health(), lambda v, s: v.ready),
    "url": (lambda c, s: c.url, lambda v, s: v == s.url),
    "submit": (
        lambda c, s: c.submit("pixelcut", s.picture, options={"scale": 2}, metadata={"order": 7}),
        lambda v, s: (v.state, v.metadata, v.options) == (State.QUEUED, {"order": 7}, {"scale": 2}),
    ),
    "wait": (lambda c, s: c.wait(s.given["submit"], timeout=PATIENCE_SECONDS), lambda v, s: v.succeeded),
    "job": (lambda c, s: c.job(s.given["submit"].id), lambda v, s: v.id == s.given["submit"].id),
    "jobs": (lambda c, s: c.jobs(state="succeeded", q=s.given["submit"].id), lambda v, s: v.id == s.given["submit"].id),
    "save": (
        lambda c, s: c.save(s.given["submit"], s.out, stem="saved"),
        lambda v, s: [path.stem for path in v] == ["saved"] and v[0].stat().st_size,
    ),
    "image": (lambda c, s: c.image(s.given["submit"]), lambda v, s: v == s.given["save"][0].read_bytes()),
    "evidence": (
        lambda c, s: c.evidence(s.given["submit"]),
        lambda v, s: (v.source, v.verdict) == ("response", "believed"),
    ),
    "upscale": (
        lambda c, s: c.upscale("freepik", s.picture, out=s.out, timeout=PATIENCE_SECONDS),
        lambda v, s: [path.stem for path in v] == [s.picture.stem],
    ),
    "cancel": (lambda c, s: c.cancel(s.queued), lambda v, s: v.state is State.CANCELED),
    "resubmit": (lambda c, s: c.resubmit(s.canceled), lambda v, s: v.resubmit_of == s.canceled),
    "poll": (lambda c, s: c.poll(s.running), lambda v, s: v.id == s.running),
    "events": (lambda c, s: c.events(after=0), lambda v, s: (v.position, v.type) == (1, "provider.paused")),
    "providers": (
        lambda c, s: c.providers(),
        lambda v, s: {info.name for info in v if info.paused} == {"novita"},
    ),
    "resume": (lambda c, s: c.resume("novita"), lambda v, s: v is True),
    "pause": (lambda c, s: c.pause("novita", reason="by a test"), lambda v, s: "by a test" in v.reason),
    "endpoints.create": (
        lambda c, s: c.endpoints.create(f"{s.origin}/hooks", event_types=["job.expired"]),
        lambda v, s: v.secret.startswith("whsec_") and "whsec_" not in repr(v),
    ),
    "endpoints.get": (
        lambda c, s: c.endpoints.get(endpoint(s)),
        lambda v, s: v.id == endpoint(s).id and v.secret is None,
    ),
    "endpoints.list": (lambda c, s: c.endpoints.list(), lambda v, s: v.id == endpoint(s).id),
    "endpoints.update": (
        lambda c, s: c.endpoints.update(endpoint(s), description="second"),
        lambda v, s: (v.description, v.event_types) == ("second", ("job.expired",)),
    ),
    "endpoints.rotate_secret": (
        lambda c, s: c.endpoints.rotate_secret(endpoint(s), overlap_seconds=60),
        lambda v, s: v.secret != endpoint(s).secret,
    ),
    "endpoints.test": (lambda c, s: c.endpoints.test(endpoint(s)), lambda v, s: v.example),
    "deliveries.get": (
        lambda c, s: c.deliveries.get(delivery(s)),
        lambda v, s: (v.id, v.endpoint_id) == (delivery(s).id, endpoint(s).id),
    ),
    "deliveries.list": (lambda c, s: c.deliveries.list(endpoint=endpoint(s).id), lambda v, s: v.id == delivery(s).id),
    "deliveries.replay": (
        lambda c, s: c.deliveries.replay(delivery(s)),
        lambda v, s: v.id == delivery(s).id and v.state in ("pending", "delivered"),
    ),
    "deliveries.replay_many": (
        lambda c, s: c.deliveries.replay_many(endpoint=endpoint(s), dry_run=True),
        lambda v, s: v.dry_run,
    ),
    "endpoints.delete": (lambda c, s: c.endpoints.delete(endpoint(s).id), lambda v, s: v is None),
    "close": (lambda c, s: (c.aclose if isinstance(c, AsyncClient) else c.close)(), lambda v, s: v is None),
}
"""Each method with a call and what must be true of its result; of an iterator, of its first value. In order."""


def endpoint(stage: Stage) -> Any:
    return stage.given["endpoints.create"]


def delivery(stage: Stage) -> Any:
    return stage.given["endpoints.test"]


def methods(kind: type[Client] | type[AsyncClient]) -> set[str]:
    """Its public methods and properties by name; those of `endpoints` and `deliveries` begin with that."""
    client = kind("http://127.0.0.1:1", TOKEN)
    if isinstance(client, Client):
        client.close()
    parts = {"": kind, "endpoints.": type(client.endpoints), "deliveries.": type(client.deliveries)}
    names = {f"{prefix}{name}" for prefix, part in parts.items() for name in vars(part) if not name.startswith("_")}
    return {"close" if name == "aclose" else name for name in names}


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_each_public_method_is_in_the_table(kind: type[Client] | type[AsyncClient]) -> None:
    assert methods(kind) == CALLS.keys()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_each_public_method_does_on_a_receiver_what_it_says(
    tmp_path: Path, kind: type[Client] | type[AsyncClient]
) -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, live(tmp_path, environment=POLLED_WHEN_ASKED) as (receiver, _):
        stage = await prepared(receiver, origin, tmp_path)
        client = kind(receiver.url, TOKEN)
        for name, (call, check) in CALLS.items():
            if isinstance(client, Client):
                value = await asyncio.to_thread(first, client, call, stage)
            else:
                value = await patiently(first_of_async(client, call, stage))
            stage.given[name] = value
            assert check(value, stage), (name, value)


def first(client: Client, call: Call, stage: Stage) -> Any:
    """The result of *call*, or the first value of the iterator that it returns."""
    value = call(client, stage)
    if not isinstance(value, Iterator):
        return value
    (found,) = itertools.islice(value, 1)
    if inspect.isgenerator(value):
        value.close()
    return found


async def first_of_async(client: AsyncClient, call: Call, stage: Stage) -> Any:
    value = call(client, stage)
    if inspect.isawaitable(value):
        return await value
    if not isinstance(value, AsyncIterator):
        return value
    found = await anext(value)
    if inspect.isasyncgen(value):
        await value.aclose()
    return found


async def prepared(receiver: LiveReceiver, origin: str, tmp_path: Path) -> Stage:
    picture = tmp_path / "cat.jpg"
    picture.write_bytes(picture_bytes(96, 64))
    async with receiver.client() as client:
        assert (await client.post("/v1/providers/novita/pause", json={})).status_code == 200
        queued, canceled = [await submit(client, "novita", picture_bytes(64, 64)) for _ in range(2)]
        assert (await client.post(f"/v1/jobs/{canceled['id']}/cancel", json={})).status_code == 200
        running = await submit(client, "upscayl", picture_bytes(64, 64))
        await wait_for_state(client, running["id"], "running")
    out = tmp_path / "out"
    return Stage(receiver.url, origin, picture, out, queued["id"], canceled["id"], running["id"])


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in submitter.__all__ if getattr(submitter, name, None) is None] == []
    assert set(submitter.__all__) <= set(dir(submitter))
    assert len(set(submitter.__all__)) == len(submitter.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        submitter.nothing  # noqa: B018
