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
from playwright.async_api import expect

from receiver.runtime.route_path import route_path
from submitter import AsyncClient, JobEvent
from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import State
from submitter.webhooks import unwrap
from tests.support.chromium import chromium, needs_chromium, watched
from tests.support.processes import TOKEN, LiveReceiver, provider_environment, wait_for_state
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
async def hosted(tmp_path: Path, **environment: str) -> AsyncIterator[Host]:
    sandbox = Sandbox(seed=7, turnaround_seconds=(0.1, 0.3))
    async with sandbox.serve() as origin:
        # Callbacks alone can settle the jobs: polls come too late for the test.
        wiring = {"RECEIVER_POLL_INTERVAL": "3600", "RECEIVER_CALLBACK_TIMEOUT": "3600", "RECEIVER_CONFIRM": "never"}
        host = Host(tmp_path / "data", {**provider_environment(sandbox.base_urls(origin)), **wiring, **environment})
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


async def test_without_a_public_url_addresses_are_paths_below_the_mount(tmp_path: Path) -> None:
    async with hosted(tmp_path, RECEIVER_PUBLIC_URL="", RECEIVER_POLL_INTERVAL="0.2") as host, host.client() as http:
        made = await http.post(
            "/v1/jobs", data={"job": '{"provider": "pixelcut"}'}, files={"image": ("in.png", picture_bytes(64, 64))}
        )
        job = await wait_for_state(http, made.json()["id"], "succeeded", kept=True)
        assert made.headers["location"] == f"/upscale/v1/jobs/{job['id']}"
        assert job["images"][0]["url"] == f"/upscale/v1/jobs/{job['id']}/images/0"
        endpoint = await http.post("/v1/endpoints", json={"url": f"http://127.0.0.1:{host.port}/"})
        assert endpoint.headers["location"] == f"/upscale/v1/endpoints/{endpoint.json()['id']}"


@needs_chromium
@pytest.mark.parametrize("public", [True, False])
async def test_the_dashboard_works_inside_a_host(tmp_path: Path, public: bool) -> None:
    picture = tmp_path / "harbour.png"
    picture.write_bytes(picture_bytes(64, 64))
    more = {} if public else {"RECEIVER_PUBLIC_URL": ""}
    async with (
        Subscriber().serve() as origin,
        hosted(tmp_path, RECEIVER_POLL_INTERVAL="0.2", **more) as host,
        chromium() as browser,
        watched(browser, host.url) as window,  # which asks for nothing outside of the mount
    ):
        async with host.client() as client:
            await client.post("/v1/endpoints", json={"url": f"{origin}/hooks"})
        page = await window.signed_in(TOKEN)
        (cookie,) = await window.context.cookies()
        assert (cookie.get("path"), cookie.get("httpOnly"), cookie.get("sameSite")) == ("/upscale", True, "Strict")
        await page.get_by_role("navigation").get_by_role("link", name="Send").click()
        await page.get_by_label("Image").set_input_files(picture)
        await page.get_by_label("Provider").select_option("pixelcut")
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("#summary .badge")).to_have_text("succeeded")  # by the stream of changes
        await expect(page.locator("#live-words")).to_have_text("Live")
        assert page.url.startswith(f"{host.url}/jobs/job_")
        for side in (".before", ".after"):
            await expect(page.locator(f"{side}")).to_have_js_property("naturalWidth", 64 if side == ".before" else 128)
        await page.get_by_role("article", name="job.succeeded").get_by_role("button", name="Replay").click()
        await expect(page.get_by_role("status")).to_have_text("The delivery goes out again.")
        for name in ("Overview", "Jobs", "Deliveries", "Endpoints", "Providers"):
            await page.get_by_role("navigation").get_by_role("link", name=name).click()
            await expect(page.get_by_role("heading", level=1)).to_have_text(name)
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
        await page.goto(f"{host.url}/jobs")
        await page.wait_for_url(f"{host.url}/login?next=jobs")


async def test_a_page_that_watches_does_not_keep_the_host_from_ending(tmp_path: Path) -> None:
    async with hosted(tmp_path) as host, httpx.AsyncClient(base_url=host.url, trust_env=False) as http:
        assert (await http.post("/login", data={"token": TOKEN})).headers["location"] == "./"
        async with patience(), http.stream("GET", "/live") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "retry: 2000"
            await host.stop()
    assert "host: lifespan ended" in host.log
    assert "Traceback" not in host.log


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
