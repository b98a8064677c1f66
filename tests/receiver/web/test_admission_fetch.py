"""An input that is fetched by its URL: whatever ends the fetch, no part of it stays behind."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from receiver.web.job_request import JobRequest
from tests.support.running_receiver import running_receiver
from tests.support.serving import serving


async def test_a_fetch_that_is_cancelled_leaves_no_file(tmp_path: Path) -> None:
    asked, over = asyncio.Event(), asyncio.Event()

    async def some_of_it() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        asked.set()
        await over.wait()

    async def picture(request: Request) -> Response:
        return StreamingResponse(some_of_it())

    source = Starlette(routes=[Route("/in.jpg", picture)])
    parts = tmp_path / "data" / "parts"
    async with serving(source) as origin, running_receiver(tmp_path, allow_networks="127.0.0.0/8") as receiving:
        ask = JobRequest({"provider": "novita"}, f"{origin}/in.jpg", None, None)
        fetching = asyncio.create_task(receiving.receiver.admissions.admit(ask, token_id="t", key=None))
        await asked.wait()
        assert len(list(parts.iterdir())) == 1
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert list(parts.iterdir()) == []
        over.set()


async def test_a_private_address_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as receiving:
        asked = {"provider": "novita", "image": {"url": "https://10.1.2.3/in.jpg"}}
        problem = (await receiving.client.post("/v1/jobs", json=asked)).json()
    assert (problem["code"], problem["field"]) == ("image_url_refused", "image.url")
    assert problem["remedy"].startswith("send the image itself, or use a public https URL, or, if the address is yours")
    assert "RECEIVER_ALLOW_NETWORKS" not in problem["detail"]
