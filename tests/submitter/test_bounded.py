"""Clients of ours hold no more of an answer than they allow, whatever it swells to."""

from __future__ import annotations

import gzip
import tracemalloc

import httpx
import pytest

from submitter.bounded import BoundedTransport
from tests.receiver.net.test_client import saying, serving
from tests.support.bombs import mebibytes


@pytest.mark.parametrize("label", ["gzip", "gzip, gzip"])
async def test_a_swelling_answer_breaks_off_at_the_limit(label: str) -> None:
    body = mebibytes(200) if label == "gzip" else gzip.compress(mebibytes(200))
    async with (
        serving(saying("200 OK", body, Content_Encoding=label)) as (url, _),
        httpx.AsyncClient(transport=BoundedTransport(max_bytes=4 << 20)) as client,
    ):
        tracemalloc.start()
        try:
            with pytest.raises(httpx.TransportError, match="can't be read"):
                await client.get(url)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 16 << 20


async def test_an_ordinary_compressed_answer_is_read() -> None:
    async with (
        serving(saying("200 OK", gzip.compress(b'{"a":1}'), Content_Encoding="gzip")) as (url, _),
        httpx.AsyncClient(transport=BoundedTransport()) as client,
    ):
        assert (await client.get(url)).json() == {"a": 1}


@pytest.mark.parametrize(("kind", "fits"), [("image/png", True), ("text/event-stream", True), ("text/plain", False)])
async def test_images_and_event_streams_may_be_longer(kind: str, fits: bool) -> None:
    async with (
        serving(saying("200 OK", bytes(5000), Content_Type=kind)) as (url, _),
        httpx.AsyncClient(transport=BoundedTransport(max_bytes=1000)) as client,
    ):
        if fits:
            assert len((await client.get(url)).content) == 5000
        else:
            with pytest.raises(httpx.TransportError):
                await client.get(url)
