"""An https URL of a server without TLS, and an http URL of one with: a line at once, with the URL to use."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from submitter import AsyncClient, Client, NoReceiver
from submitter.sandbox import test_picture as picture_bytes
from tests.support import forking
from tests.support.certificates import self_signed
from tests.support.cli import bare_environment
from tests.support.processes import TOKEN, LiveReceiver
from tests.support.waiting import patiently

COMMANDS = (
    ("submitter", "list"),
    ("submitter", "whoami"),
    ("submitter", "send cat.jpg --provider freepik"),
    ("submitter", "batch in --provider freepik"),
    ("submitter", "wait job_none"),
    ("submitter", "cancel job_none"),
    ("submitter", "resubmit job_none"),
    ("receiver", "providers list"),
    ("receiver", "listen http://127.0.0.1:3000/hook"),
    ("receiver", "doctor"),
)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"), "localhost")


@contextlib.asynccontextmanager
async def with_tls(pem: Path, plain_answer: bytes) -> AsyncIterator[int]:
    """The port of a server that speaks TLS; to a request without it, it says *plain_answer* and hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(1)
        if first == b"\x16":  # a handshake: carried on by hand, as far as a client that trusts nobody comes
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            handshake = context.wrap_bio(incoming, outgoing, server_side=True)
            incoming.write(first)
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                while True:
                    with contextlib.suppress(ssl.SSLWantReadError):
                        handshake.do_handshake()
                        break
                    writer.write(outgoing.read())
                    await writer.drain()
                    if not (piece := await reader.read(65536)):
                        break
                    incoming.write(piece)
        else:
            writer.write(plain_answer)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def run(directory: Path, program: str, text: str, url: str) -> tuple[int, str]:
    """The exit status of a command with the receiver at *url*, and all that it said."""
    (directory / "in").mkdir(exist_ok=True)
    for path in (directory / "cat.jpg", directory / "in" / "cat.jpg"):
        path.write_bytes(picture_bytes(160, 120))
    environment = bare_environment(SUBMITTER_RECEIVER_URL=url, SUBMITTER_TOKEN=TOKEN, HOME=str(directory))
    status, out, err = await patiently(
        forking.run(program, *text.split(), environment=environment, directory=directory)  # type: ignore[arg-type]
    )
    return status, (out + err).decode()


async def test_https_to_a_receiver_without_tls_names_http(tmp_path: Path) -> None:
    receiver = LiveReceiver(tmp_path / "data")
    await receiver.start()
    try:
        url = receiver.url.replace("http:", "https:")
        for program, text in COMMANDS:
            status, said = await run(tmp_path, program, text, url)
            assert (status, f"use {receiver.url}" in said) == (1, True), (text, said)
            assert "does not speak TLS" in said
        status, said = await run(tmp_path, "submitter", "list --json", url)
        error = json.loads(said)["error"]
        assert (error["code"], error["remedy"]) == ("wrong_scheme", f"use {receiver.url}")
    finally:
        await receiver.stop()


@pytest.mark.parametrize(
    "plain_answer",
    [
        b"",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 56\r\nconnection: close\r\n\r\n"
        b"The plain HTTP request was sent to HTTPS port, that's it",
    ],
    ids=["hangs up", "a TLS alert", "as proxies do"],
)
async def test_http_to_a_server_with_tls_names_https(tmp_path: Path, pem: Path, plain_answer: bytes) -> None:
    async with with_tls(pem, plain_answer) as port:
        for program, text in COMMANDS:
            status, said = await run(tmp_path, program, text, f"http://127.0.0.1:{port}")
            assert (status, f"use https://127.0.0.1:{port}" in said) == (1, True), (text, said)
        async with AsyncClient(f"http://127.0.0.1:{port}", TOKEN) as client:
            with pytest.raises(NoReceiver, match="speaks TLS"):
                await client.jobs().__anext__()
            with pytest.raises(NoReceiver, match="speaks TLS"):
                await client.events(after=0).__anext__()
        with Client(f"http://127.0.0.1:{port}", TOKEN) as blocking, pytest.raises(NoReceiver, match="speaks TLS"):
            await asyncio.to_thread(blocking.providers)
