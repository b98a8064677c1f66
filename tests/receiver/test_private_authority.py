"""Servers whose certificates a company signs itself: `SSL_CERT_FILE` names the authority, as everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from submitter.sandbox import test_picture as picture_bytes
from tests.support import forking
from tests.support.certificates import self_signed
from tests.support.cli import bare_environment
from tests.support.processes import ROOT, live, submit
from tests.support.waiting import eventually


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return self_signed(tmp_path, "localhost")


@contextlib.asynccontextmanager
async def https_server(authority: Path) -> AsyncIterator[str]:
    """Answers every request with an empty list."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)
    body = json.dumps({"items": [], "next": None}).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            writer.write(head.encode() + b"connection: close\r\n\r\n" + body)
            await writer.drain()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}"


async def test_an_endpoint_with_a_certificate_of_its_companys_authority_gets_events(
    tmp_path: Path, authority: Path
) -> None:
    async with (
        https_server(authority) as url,
        live(tmp_path, environment={"SSL_CERT_FILE": str(authority)}) as (receiver, _),
        receiver.client() as client,
    ):
        answer = await client.post("/v1/endpoints", json={"url": url, "event_types": ["job.succeeded"]})
        endpoint = answer.json()["id"]
        await submit(client, "freepik", picture_bytes(64, 48))

        async def delivered() -> bool:
            found = (await client.get("/v1/deliveries", params={"endpoint": endpoint})).json()["items"]
            return [delivery["state"] for delivery in found] == ["delivered"]

        await eventually(delivered)


async def test_a_receiver_with_a_certificate_of_its_companys_authority_is_reached(authority: Path) -> None:
    async with https_server(authority) as url:
        assert await listed(url, SSL_CERT_FILE=str(authority)) == (0, '{ "items": [] }')
        status, said = await listed(url)
        assert status == 1
        assert "certificate" in said
        status, said = await listed(url, SSL_CERT_FILE=str(authority.parent / "none.pem"))
        assert status == 1
        assert "SSL_CERT_FILE" in said


async def listed(url: str, **environment: str) -> tuple[int, str]:
    """The exit status of `submitter list`, and what it said."""
    status, out, err = await forking.run(
        "submitter",
        *("--receiver", url, "list", "--json"),
        environment=bare_environment(SUBMITTER_TOKEN="token", **environment),
        directory=ROOT,
    )
    return status, " ".join((out + err).decode().split())
