"""`Client` and `AsyncClient` against real receivers: through cuts, restarts and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from submitter import AsyncClient, Client, Conflict, Invalid, JobEvent, NoReceiver, NotFound, Unauthorized
from submitter.remote import Receiver, verify
from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.sdk.link import LONGEST_PAUSE_SECONDS
from submitter.vocabulary import State
from tests.support.ports import free_port
from tests.support.processes import TOKEN, live
from tests.support.submitter_cli import submitter
from tests.support.subscriber import Subscriber
from tests.support.waiting import PATIENCE_SECONDS, eventually, patience

LOST_SOON = {"RECEIVER_CALLBACK_TIMEOUT": "1"}
"""A callback that comes while the receiver is away is lost; it polls after a second then."""


class Relay:
    """
    A connection between two ports that can be cut, at once or when the next answer comes.

    *streams*: what becomes of requests for the event stream, `passed`, `refused` or `held back`.
    """

    def __init__(self, target: int, *, streams: str = "passed") -> None:
        self.target = target
        self.streams = streams
        self.port = free_port()
        self.requests = 0
        self.streams_asked = 0
        self.swallow_answers = 0
        self._open: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield f"http://127.0.0.1:{self.port}"
        finally:
            server.close()
            self.cut()

    @property
    def connections(self) -> int:
        """Count the open connections, on both sides."""
        return len(self._open)

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, there}
        held = asyncio.Event()
        try:
            await asyncio.gather(self._ask(reader, there, held), self._answer(there_reader, writer, held))
        finally:
            self._open -= {writer, there}
            writer.transport.abort()
            there.transport.abort()

    async def _ask(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, held: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if data.startswith(b"\x16"):
                    break  # a client that was cut off asks whether TLS is spoken here
                self.requests += data.count(b"POST /v1/jobs")
                if b"GET /v1/events" in data:
                    self.streams_asked += 1
                    if self.streams == "refused":
                        self.cut()
                        return
                    if self.streams == "held back":
                        held.set()
                to.write(data)
                await to.drain()
        to.close()

    async def _answer(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, held: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if held.is_set():
                    continue
                if self.swallow_answers:
                    self.swallow_answers -= 1
                    self.cut()
                    return
                to.write(data)
                await to.drain()
        to.close()


@pytest.mark.parametrize("how", ["path", "bytes"])
async def test_a_job_is_submitted_waited_for_and_saved(tmp_path: Path, how: str) -> None:
    picture = tmp_path / "in.jpg"
    picture.write_bytes(picture_bytes(160, 120))
    async with live(tmp_path) as (running, _), Receiver(running.url, TOKEN) as receiver:
        job = await receiver.submit(
            "freepik",
            picture if how == "path" else picture.read_bytes(),
            options={"scale_factor": "2x"},
            metadata={"order": 7},
        )
        assert (job.state, job.metadata, job.options) == (State.QUEUED, {"order": 7}, {"scale_factor": "2x"})
        done = await receiver.wait(job, timeout=PATIENCE_SECONDS)
        assert (done.state, done.settled_by, done.succeeded) == (State.SUCCEEDED, "callback", True)
        (path,) = await receiver.save(done, tmp_path / "out")
        assert path.read_bytes() == await receiver.image(done)
        assert path.stem == ("in" if how == "path" else job.id)
        assert list(path.parent.iterdir()) == [path]


async def test_the_same_key_gives_the_same_job_and_other_content_is_refused_in_words(tmp_path: Path) -> None:
    async with live(tmp_path) as (running, _), Receiver(running.url, TOKEN) as receiver:
        first = await receiver.submit("freepik", picture_bytes(64, 64), idempotency_key="k")
        assert (await receiver.submit("freepik", picture_bytes(64, 64), idempotency_key="k")).id == first.id
        with pytest.raises(Conflict) as conflict:
            await receiver.submit("freepik", picture_bytes(80, 64), idempotency_key="k")
        assert conflict.value.code == "idempotency_key_reused"
        with pytest.raises(Invalid) as invalid:
            await receiver.submit("freepik", picture_bytes(64, 64), options={"colour": "red"})
        assert (invalid.value.code, invalid.value.field) == ("unknown_option", "options.colour")
        assert "use one of" in (invalid.value.remedy or "")
        assert (invalid.value.request_id or "").startswith("req_")
        with pytest.raises(NotFound):
            await receiver.job("job_none")
    async with AsyncClient(running.url, "another-token", timeout=1) as stranger:
        with pytest.raises(NoReceiver, match="is it running"):
            await stranger.job("job_none")


async def test_a_submit_whose_answer_is_lost_is_tried_again_and_is_one_job(tmp_path: Path) -> None:
    async with live(tmp_path) as (running, _):
        relay = Relay(running.port)
        async with relay.running() as url, Receiver(url, TOKEN) as receiver:
            relay.swallow_answers = 2
            job = await receiver.submit("freepik", picture_bytes(64, 64))
            assert relay.requests == 3
        async with running.client() as client:
            items = (await client.get("/v1/jobs")).json()["items"]
    assert [item["id"] for item in items] == [job.id]


async def test_waiting_survives_cuts_and_a_restart_of_the_receiver(tmp_path: Path) -> None:
    slow = Sandbox(turnaround_seconds=(2.0, 2.0))
    async with live(tmp_path, sandbox=slow, environment=LOST_SOON) as (running, _):
        relay = Relay(running.port)
        async with relay.running() as url, Receiver(url, TOKEN) as receiver:
            job = await receiver.submit("freepik", picture_bytes(64, 64))

            async def accepted() -> bool:  # killed before, it would rightly be unconfirmed
                return (await receiver.job(job.id)).state is not State.QUEUED and bool(
                    (await receiver.job(job.id)).remote_id
                )

            await eventually(accepted)
            waiting = asyncio.create_task(receiver.wait(job, timeout=PATIENCE_SECONDS))
            await eventually(lambda: relay.streams_asked and relay.connections >= 2)
            relay.cut()
            await running.kill()
            await running.start()
            assert (await waiting).state is State.SUCCEEDED


@pytest.mark.parametrize("streams", ["refused", "held back"])
async def test_waiting_without_a_stream_falls_back_to_polling(tmp_path: Path, streams: str) -> None:
    async with live(tmp_path) as (running, _):
        relay = Relay(running.port, streams=streams)
        async with relay.running() as url, AsyncClient(url, TOKEN) as client:
            job = await client.submit("upscayl", picture_bytes(64, 64))
            assert (await client.wait(job, timeout=PATIENCE_SECONDS)).state is State.SUCCEEDED
            assert relay.streams_asked


async def test_wait_gives_up_in_time(tmp_path: Path) -> None:
    slow = Sandbox(turnaround_seconds=(5.0, 5.0))
    async with live(tmp_path, sandbox=slow) as (running, _), Receiver(running.url, TOKEN) as receiver:
        job = await receiver.submit("freepik", picture_bytes(64, 64))
        with pytest.raises(TimeoutError):
            await receiver.wait(job, timeout=0.3)


async def test_events_go_on_after_every_cut_without_a_gap_or_a_repetition(tmp_path: Path) -> None:
    async with live(tmp_path) as (running, _):
        relay = Relay(running.port)
        async with relay.running() as url, Receiver(url, TOKEN) as receiver, Receiver(running.url, TOKEN) as other:
            for _ in range(4):
                await other.submit("freepik", picture_bytes(64, 64))
            positions, types = [], set()
            async with patience(), contextlib.aclosing(receiver.events(after=0)) as events:
                async for event in events:
                    positions.append(event.position)
                    types.add(event.type)
                    assert isinstance(event, JobEvent)
                    assert event.job.model_extra == {}
                    assert event.id.startswith("evt_")
                    if len(positions) == 16:
                        break
                    if len(positions) % 3 == 0:
                        relay.cut()
    assert positions == list(range(1, 17))
    assert types == {"job.queued", "job.running", "job.succeeded", "job.images_kept"}


async def test_what_a_notify_url_is_sent_passes_verify(tmp_path: Path) -> None:
    subscriber = Subscriber()
    async with (
        subscriber.serve() as origin,
        live(tmp_path) as (running, _),
        Receiver(running.url, TOKEN) as receiver,
    ):
        job = await receiver.submit("pixelcut", picture_bytes(64, 64), notify_url=f"{origin}/told")
        await receiver.wait(job, timeout=PATIENCE_SECONDS)
        await eventually(lambda: bool(subscriber.seen))
        (seen,) = subscriber.seen
        verify(seen.headers, seen.body, running.notify_secret)
        assert json.loads(seen.body)["data"]["id"] == job.id


async def test_submitter_wait_ends_with_the_job_and_says_how(tmp_path: Path) -> None:
    async with live(tmp_path) as (running, _), Receiver(running.url, TOKEN) as receiver:
        async with AsyncClient(running.url, "another-token") as stranger:
            with pytest.raises(Unauthorized):
                await stranger.job("job_none")
        job = await receiver.submit("freepik", picture_bytes(64, 64))
        done = await submitter(running, "wait", job.id, "--json", "--out", str(tmp_path / "out"))
        assert done.status == 0, done.err
        assert (done.json["id"], done.json["state"]) == (job.id, "succeeded")
        assert all(Path(path).stat().st_size for path in done.json["saved"])
        done = await submitter(running, "wait", "job_none")
        assert (done.status, "no_such_job" in done.err) == (1, True)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://127.0.0.1/", "http://[::bad", "http://", ""])
def test_an_address_that_no_receiver_can_have_is_refused_in_words(url: str) -> None:
    with pytest.raises(NoReceiver, match="is not an http:// or https:// URL"):
        Receiver(url, TOKEN)


async def test_a_web_server_that_is_no_receiver_is_recognized() -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, AsyncClient(origin, TOKEN) as client:
        with pytest.raises(NoReceiver, match="is not a receiver"):
            await client.submit("freepik", b"picture")
        with pytest.raises(NoReceiver, match="is not a receiver"):
            await client.job("job_1")


async def test_an_answer_labeled_as_compressed_that_is_not_ends_the_call_with_the_reason() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, AsyncClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", TOKEN) as client:
        for call in (client.job("job_1"), client.wait("job_1"), anext(client.events())):
            with pytest.raises(NoReceiver, match="is compressed") as caught:
                await call
            assert caught.value.code == "answer_compressed"


def test_both_clients_have_the_same_methods_and_signatures() -> None:
    blocking, asynchronous = Client("http://127.0.0.1:1", TOKEN), AsyncClient("http://127.0.0.1:1", TOKEN)
    blocking.close()
    for here, there in [
        (Client, AsyncClient),
        (type(blocking.endpoints), type(asynchronous.endpoints)),
        (type(blocking.deliveries), type(asynchronous.deliveries)),
    ]:
        assert set(public(here)) == set(public(there))
        assert inspect.signature(here).parameters.keys() == inspect.signature(there).parameters.keys()
        for name, method in public(here).items():
            twin = public(there)[name]
            assert method.__doc__ == twin.__doc__, name
            if not isinstance(method, property):
                assert inspect.signature(method).parameters == inspect.signature(twin).parameters, name
                assert returned(method) == returned(twin), name


def public(kind: type) -> dict[str, Any]:
    """Methods and properties by name; `aclose` is `close`."""
    return {name.replace("aclose", "close"): value for name, value in vars(kind).items() if not name.startswith("_")}


def returned(method: Any) -> str:
    """Return the result of a method, asynchronous or not."""
    gives = str(inspect.signature(method).return_annotation)
    return gives.removeprefix("Async").replace(", None, None]", ", None]")


@pytest.mark.slow
async def test_wait_and_events_survive_restarts_and_see_every_event_once(tmp_path: Path) -> None:
    """SDK_RESTARTS and SDK_RESTART_SECONDS say how often the receiver goes and for how long: 20 and 15 were tried."""
    restarts, away_seconds = (
        int(os.environ.get("SDK_RESTARTS", "4")),
        float(os.environ.get("SDK_RESTART_SECONDS", "0.5")),
    )
    turnaround = restarts * (away_seconds + LONGEST_PAUSE_SECONDS)
    sandbox = Sandbox(turnaround_seconds=(turnaround, turnaround))
    async with (
        live(tmp_path, sandbox=sandbox, environment=LOST_SOON) as (running, _),
        AsyncClient(running.url, TOKEN) as client,
    ):
        seen: list[int] = []
        heard_of: set[str] = set()

        async def follow() -> None:
            async with contextlib.aclosing(client.events(after=0)) as events:
                async for event in events:
                    assert event.position is not None
                    assert isinstance(event, JobEvent)
                    seen.append(event.position)
                    heard_of.add(event.job.id)

        following = asyncio.create_task(follow())
        job = await client.submit("freepik", picture_bytes(64, 64))

        async def running_there() -> bool:
            return (await client.job(job)).state is State.RUNNING

        await eventually(running_there)  # killed before its answer is there, it would be unconfirmed
        waiting = asyncio.create_task(client.wait(job, timeout=turnaround + PATIENCE_SECONDS))
        for _ in range(restarts):
            await running.kill()
            await asyncio.sleep(away_seconds)
            await running.start()
            other = await client.submit("pixelcut", picture_bytes(64, 64))
            await eventually(lambda other=other: other.id in heard_of)  # type: ignore[misc]
        assert (await waiting).state is State.SUCCEEDED
        newest = 0
        async for found in client.jobs():
            await client.wait(found)  # a kill leaves those that were in flight unconfirmed
        async with running.client() as http:
            while (page := (await http.get("/v1/events", params={"after": newest, "limit": 500})).json())["items"]:
                newest = page["items"][-1]["position"]
        await eventually(lambda: bool(seen) and seen[-1] >= newest)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert seen == list(range(1, len(seen) + 1))
