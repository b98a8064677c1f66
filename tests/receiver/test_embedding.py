"""`receiver.embed`: the whole story inside somebody's FastAPI application, under a prefix, in a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from receiver.runtime.route_path import route_path
from submitter import AsyncClient, JobEvent
from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import State
from submitter.webhooks import unwrap
from tests.support.processes import TOKEN, LiveReceiver, provider_environment
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually, patience

HOST = """
import sys
from contextlib import asynccontextmanager

import fastapi
import uvicorn

import receiver


@asynccontextmanager
async def lifespan(app):
    async with receiver.embed() as upscaling:
        app.mount("/upscale", upscaling)
        yield
    print("host: lifespan ended", flush=True)


app = fastapi.FastAPI(lifespan=lifespan)


@app.get("/")
def shop():
    return "a shop"


uvicorn.run(app, port=int(sys.argv[-1]))
print("host: ended by itself", flush=True)
"""


@dataclass
class Host(LiveReceiver):
    """An application of somebody else's that embeds a receiver under `/upscale`."""

    @property
    def program(self) -> Sequence[str]:
        path = self.data_dir.parent / "host.py"
        path.write_text(HOST)
        return (sys.executable, str(path))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/upscale"


@contextlib.asynccontextmanager
async def hosted(tmp_path: Path) -> AsyncIterator[Host]:
    sandbox = Sandbox(seed=7, turnaround_seconds=(0.1, 0.3))
    async with sandbox.serve() as origin:
        # Callbacks alone can settle the jobs: polls come too late for the test.
        wiring = {"RECEIVER_POLL_INTERVAL": "3600", "RECEIVER_CALLBACK_TIMEOUT": "3600", "RECEIVER_CONFIRM": "never"}
        host = Host(tmp_path / "data", {**provider_environment(sandbox.base_urls(origin)), **wiring})
        await host.start()
        try:
            yield host
        finally:
            await host.stop()


async def test_a_receiver_works_inside_a_host_under_a_prefix(tmp_path: Path) -> None:
    subscriber = Subscriber()
    async with subscriber.serve() as origin, hosted(tmp_path) as host, AsyncClient(host.url, TOKEN) as client:
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"http://127.0.0.1:{host.port}/")).json() == "a shop"
            assert (await http.get(f"{host.url}/callbacks/freepik/not-a-token")).status_code == 404
            assert (await http.get(f"{host.url}/openapi.json")).status_code == 200
        job = await client.submit("freepik", picture_bytes(64, 64), notify_url=f"{origin}/told")
        done = await client.wait(job)
        assert (done.state, done.settled_by) == (State.SUCCEEDED, "callback")
        (path,) = await client.save(done, tmp_path / "out")
        assert path.stat().st_size
        assert done.images[0].url == f"{host.url}/v1/jobs/{job.id}/images/0"
        await eventually(lambda: bool(subscriber.seen))
        event = unwrap(subscriber.seen[0].headers, subscriber.seen[0].body, host.notify_secret)
        assert isinstance(event, JobEvent)
        assert event.data.id == job.id
    log = host.log
    assert "/upscale/callbacks/freepik/[redacted]" in log
    assert log.count("/upscale/callbacks/") == log.count("[redacted]")


async def test_the_hosts_server_ends_cleanly_with_a_stream_open(tmp_path: Path) -> None:
    async with hosted(tmp_path) as host, AsyncClient(host.url, TOKEN) as client:
        await client.submit("freepik", picture_bytes(64, 64))
        seen = asyncio.Event()

        async def follow() -> None:
            async with contextlib.aclosing(client.events(after=0)) as events:
                async for _ in events:
                    seen.set()

        following = asyncio.create_task(follow())
        async with patience():
            await seen.wait()
            await host.stop()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert "host: lifespan ended" in host.log
    assert "Application shutdown complete" in host.log
    assert "Traceback" not in host.log


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        ("/v1/jobs", "", "/v1/jobs"),
        ("/upscale/v1/jobs", "/upscale", "/v1/jobs"),
        ("/v1/v1/jobs", "/v1", "/v1/jobs"),
        ("/upscaled/v1", "/upscale", "/upscaled/v1"),
        ("/v1/jobs", "/upscale", "/v1/jobs"),
        ("/upscale", "/upscale", ""),
    ],
)
def test_the_path_below_a_mount(path: str, root: str, below: str) -> None:
    assert route_path({"type": "http", "path": path, "root_path": root}) == below
