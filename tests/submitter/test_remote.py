"""The SDK against real receivers: through cuts, restarts and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from submitter.remote import NoReceiver, Receiver, RequestRefused, verify
from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import State
from tests.support.ports import free_port
from tests.support.processes import ROOT, TOKEN, live
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually, patience


class Relay:
    """A connection between two ports that can be cut, at once or when the next answer comes."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self.requests = 0
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

    def cut(self) -> int:
        """Break every connection; returns how many there were."""
        count = len(self._open)
        for writer in self._open:
            writer.transport.abort()
        return count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, there}
        try:
            await asyncio.gather(self._pass(reader, there), self._pass(there_reader, writer, answers=True))
        finally:
            self._open -= {writer, there}
            writer.transport.abort()
            there.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, answers: bool = False) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if answers and self.swallow_answers:
                    self.swallow_answers -= 1
                    self.cut()
                    return
                if not answers:
                    self.requests += data.count(b"POST /v1/jobs")
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
        done = await receiver.wait(job, timeout=20)
        assert (done.state, done.settled_by, done.succeeded) == (State.SUCCEEDED, "callback", True)
        (path,) = await receiver.save(done, tmp_path / "out")
        assert path.read_bytes() == await receiver.image(done)
        assert path.name == f"{job.id}-0{path.suffix}"
        assert list(path.parent.iterdir()) == [path]


async def test_the_same_key_gives_the_same_job_and_other_content_is_refused_in_words(tmp_path: Path) -> None:
    async with live(tmp_path) as (running, _), Receiver(running.url, TOKEN) as receiver:
        first = await receiver.submit("freepik", picture_bytes(64, 64), idempotency_key="k")
        assert (await receiver.submit("freepik", picture_bytes(64, 64), idempotency_key="k")).id == first.id
        with pytest.raises(RequestRefused) as refused:
            await receiver.submit("freepik", picture_bytes(80, 64), idempotency_key="k")
        assert (refused.value.status, refused.value.code) == (409, "idempotency_key_reused")
        with pytest.raises(RequestRefused) as refused:
            await receiver.submit("freepik", picture_bytes(64, 64), options={"colour": "red"})
        assert (refused.value.code, refused.value.field) == ("unknown_option", "options.colour")
        assert "use one of" in (refused.value.remedy or "")
        with pytest.raises(RequestRefused) as refused:
            await receiver.job("job_none")
        assert refused.value.status == 404
    async with Receiver("http://127.0.0.1:1", TOKEN) as stranger:
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
    async with live(tmp_path, sandbox=Sandbox(turnaround_seconds=(2.0, 2.0))) as (running, _):
        relay = Relay(running.port)
        async with relay.running() as url, Receiver(url, TOKEN) as receiver:
            job = await receiver.submit("freepik", picture_bytes(64, 64))
            waiting = asyncio.create_task(receiver.wait(job, timeout=30))
            await asyncio.sleep(0.3)
            assert relay.cut() >= 2
            await running.kill()
            await running.start()
            assert (await waiting).state is State.SUCCEEDED


async def test_waiting_without_a_stream_falls_back_to_polling(tmp_path: Path) -> None:
    async with live(tmp_path) as (running, _), Receiver(running.url, TOKEN) as receiver:
        inner = receiver._client._transport

        class Deaf(type(inner)):  # type: ignore[misc]
            async def handle_async_request(self, request):  # type: ignore[no-untyped-def]
                if request.url.path == "/v1/events":
                    request.headers["authorization"] = "Bearer nobody"
                return await inner.handle_async_request(request)

        receiver._client._transport = Deaf()
        job = await receiver.submit("upscayl", picture_bytes(64, 64))
        assert (await receiver.wait(job, timeout=20)).state is State.SUCCEEDED
        await inner.aclose()


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
                    assert event.job is not None
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
        await receiver.wait(job, timeout=20)
        await eventually(lambda: bool(subscriber.seen))
        (seen,) = subscriber.seen
        verify(seen.headers, seen.body, running.notify_secret)
        assert json.loads(seen.body)["data"]["id"] == job.id


async def test_submitter_wait_ends_with_the_job_and_says_how(tmp_path: Path) -> None:
    async with live(tmp_path) as (running, _), Receiver(running.url, TOKEN) as receiver:
        job = await receiver.submit("freepik", picture_bytes(64, 64))
        code = "from submitter.cli import main; main()"

        async def command(*args: str) -> tuple[int | None, str]:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                code,
                "wait",
                *args,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "SUBMITTER_RECEIVER_URL": running.url,
                    "SUBMITTER_TOKEN": TOKEN,
                },
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            out, _ = await process.communicate()
            return process.returncode, out.decode()

        status, text = await command(job.id, "--json", "--out", str(tmp_path / "out"))
        assert status == 0, text
        shown = json.loads(text)
        assert (shown["id"], shown["state"]) == (job.id, "succeeded")
        assert all(Path(path).stat().st_size for path in shown["saved"])
        status, text = await command("job_none")
        assert (status, "no_such_job" in text) == (1, True)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://127.0.0.1/", "http://[::bad", "http://", ""])
def test_an_address_that_no_receiver_can_have_is_refused_in_words(url: str) -> None:
    with pytest.raises(NoReceiver, match="is no http:// or https:// URL"):
        Receiver(url, TOKEN)


async def test_a_web_server_that_is_no_receiver_is_told_from_one() -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, Receiver(origin, TOKEN) as receiver:
        with pytest.raises(NoReceiver, match="is no receiver"):
            await receiver.submit("freepik", b"picture")
        with pytest.raises(RequestRefused, match="http_405"):
            await receiver.job("job_1")
