"""
`python -m tests.bench floods [NAME …]`: memory and stall of a receiver under each flood and bomb, as a table.

Each gets a receiver of its own. RSS is that of the receiver, sampled every 50 ms; the stall is the longest answer to
`GET /healthz`, asked for 50 times a second by a process of its own, so on a busy machine it counts the machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from receiver.domain.tokens import Tokens
from submitter.sandbox import test_picture as picture_bytes
from tests.support.ports import free_port
from tests.support.processes import TOKEN, LiveReceiver, submit

KEY = "a-key-of-the-floods"
MOST_MB, MOST_STALL_MS = 150, 500
MB = 1 << 20
PROBE = """
import http.client, sys, threading, time
stopped = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
connection, longest = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60), 0.0
while not stopped.is_set():
    began = time.perf_counter()
    try:
        connection.request("GET", "/healthz")
        connection.getresponse().read()
    except OSError:
        connection.close()
    longest = max(longest, time.perf_counter() - began)
    time.sleep(0.02)
print(longest)
"""


@dataclass
class Target:
    """The receiver under a flood, a job of it, and what was answered."""

    receiver: LiveReceiver
    job_id: str
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def callback_path(self) -> str:
        return f"/callbacks/novita/{Tokens([KEY]).callback(self.job_id, 'novita')}"

    async def send(self, *pieces: bytes, wait_seconds: float = 60.0, end: bool = True) -> bytes:
        """Send *pieces* on a connection of their own; counts the status that is answered."""
        answer = b""
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.receiver.port)
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                async with asyncio.timeout(wait_seconds):
                    answer = await reader.readuntil(b"\r\n\r\n")
            finally:
                if end:
                    writer.close()
        self.answers[answer[9:12].decode() or "cut"] += 1
        return answer

    def post(self, path: str, body: bytes, lines: str = "") -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{lines}Content-Length: {len(body)}"
        return f"{head}\r\n\r\n".encode() + body


Flood = Callable[[Target], Awaitable[None]]


async def headers_without_end(target: Target) -> None:
    start, more = b"GET / HTTP/1.1\r\n", [b"X-Flood: 1234567890\r\n" * 3000] * 1000
    await asyncio.gather(*(target.send(start, *more) for _ in range(8)))


async def one_header_of_80_mb(target: Target) -> None:
    await target.send(b"GET / HTTP/1.1\r\nX: ", *[b"x" * MB] * 80)


async def unfinished_bodies(target: Target) -> None:
    half = target.post(target.callback_path, b"x" * MB)[: -MB // 16]
    await asyncio.gather(*(target.send(half, wait_seconds=5) for _ in range(300)))


async def idle_connections(target: Target) -> None:
    await asyncio.gather(*(target.send(wait_seconds=5) for _ in range(800)))


async def pipelined_requests(target: Target) -> None:
    many = b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000
    await asyncio.gather(*(target.send(many, wait_seconds=5) for _ in range(50)))


async def one_url_for_ten_seconds(target: Target) -> None:
    until = time.monotonic() + 10

    async def post_on() -> None:
        while time.monotonic() < until:
            await target.send(target.post(target.callback_path, os.urandom(32 * 1024).hex().encode()))

    await asyncio.gather(*(post_on() for _ in range(8)))


async def one_webhook_id(target: Target) -> None:
    bodies = [json.dumps({"n": n, "x": "x" * 200_000}).encode() for n in range(200)]
    path = f"/callbacks/freepik/{Tokens([KEY]).callback(target.job_id, 'freepik')}"
    for at in range(0, 200, 20):
        posts = [target.post(path, body, "webhook-id: msg_1\r\n") for body in bodies[at : at + 20]]
        await asyncio.gather(*(target.send(post) for post in posts))


async def large_json(target: Target) -> None:
    text = base64.b64encode(picture_bytes(640, 480) + os.urandom(66 * MB))
    body = b'{"provider": "novita", "image": {"base64": "' + text + b'"}}'
    post = target.post("/v1/jobs", body, "Content-Type: application/json\r\n")
    pieces = [post[at : at + MB] for at in range(0, len(post), MB)]
    await asyncio.gather(*(target.send(*pieces) for _ in range(4)))


async def large_evidence(target: Target) -> None:
    for _ in range(60):
        await target.send(target.post(target.callback_path, json.dumps("x" * (MB - 100)).encode()))
    async with target.receiver.client() as client:
        cursor: str | None = ""
        while cursor is not None:
            query = f"?limit=200&cursor={cursor}" if cursor else "?limit=200"
            page = (await client.get(f"/v1/jobs/{target.job_id}/evidence{query}")).json()
            cursor = page["next"]
            target.answers["pages"] += 1


async def picture_of_chunks(target: Target) -> None:
    picture = bytearray(picture_png())
    at = picture.index(b"IDAT") - 4
    empty = b"\0\0\0\0tEXt" + zlib.crc32(b"tEXt").to_bytes(4, "big")
    picture[at:at] = empty * 8_000_000
    head = b'--b\r\nContent-Disposition: form-data; name="job"\r\n\r\n{"provider": "novita"}\r\n--b\r\n'
    head += b'Content-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n'
    post = target.post(
        "/v1/jobs", head + picture + b"\r\n--b--\r\n", "Content-Type: multipart/form-data; boundary=b\r\n"
    )
    await target.send(*[post[start : start + MB] for start in range(0, len(post), MB)])


def picture_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = (64).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    rows = zlib.compress(b"".join(b"\0" + os.urandom(192) for _ in range(64)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def malformed_requests(target: Target) -> None:
    for _ in range(100):
        await asyncio.gather(*(target.send(b"\x16\x03\x01 nonsense\r\n\r\n") for _ in range(50)))


async def answer_in_two_gzips(target: Target) -> None:
    """The provider's answer to the submit call of a job; see `bomb_provider`."""
    async with target.receiver.client() as client:
        job = await submit(client, "novita", picture_bytes(64, 64))
        for _ in range(100):
            shown = (await client.get(f"/v1/jobs/{job['id']}")).json()
            if shown["state"] not in ("queued", "sending"):
                break
            await asyncio.sleep(0.1)
        target.answers[shown["state"]] += 1


@contextlib.asynccontextmanager
async def bomb_provider() -> AsyncIterator[str]:
    """Answers every request with a gigabyte of zeros in two gzips."""
    bomb = gzip.compress(gzip.compress(bytes(1 << 30), 9), 9)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            head = f"content-encoding: gzip, gzip\r\ncontent-length: {len(bomb)}\r\nconnection: close\r\n\r\n"
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{head}".encode() + bomb)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 20)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


FLOODS: dict[str, Flood] = {
    "headers without end, 8 connections": headers_without_end,
    "one header of 80 MB": one_header_of_80_mb,
    "300 unfinished bodies of 1 MiB, one URL": unfinished_bodies,
    "800 connections that say nothing": idle_connections,
    "1,000,000 pipelined requests, 50 connections": pipelined_requests,
    "5,000 malformed requests": malformed_requests,
    "one URL for 10 s, bodies of 64 KiB": one_url_for_ten_seconds,
    "200 bodies of one webhook-id": one_webhook_id,
    "4 x 90 MB of JSON": large_json,
    "60 MB of evidence, asked for": large_evidence,
    "a picture of 8,000,000 chunks": picture_of_chunks,
    "a provider's answer of 1 GB in two gzips": answer_in_two_gzips,
}


@dataclass(frozen=True)
class Measured:
    """The effects of a flood on a receiver."""

    name: str
    before_mb: float
    peak_mb: float
    stall_ms: float
    disk_mb: float
    answers: str

    @property
    def held(self) -> bool:
        return self.peak_mb - self.before_mb <= MOST_MB and self.stall_ms <= MOST_STALL_MS

    def line(self) -> str:
        grown = f"+{self.peak_mb - self.before_mb:.0f}"
        return f"| {self.name} | {grown} | {self.stall_ms:.0f} | {self.disk_mb:.0f} | {self.answers} |"


async def measure(name: str, flood: Flood) -> Measured:
    with tempfile.TemporaryDirectory() as where:
        async with bomb_provider() as provider:
            bombed = flood is answer_in_two_gzips
            closed = f"http://127.0.0.1:{free_port()}"
            wiring = {"NOVITA_API_KEY": "key", "NOVITA_BASE_URL": provider if bombed else closed}
            limits = {"RECEIVER_SECRET_KEYS": KEY, "RECEIVER_POLL_INTERVAL": "60"}
            receiver = LiveReceiver(Path(where) / "data", {**wiring, **limits})
            await receiver.start()
            try:
                return await _measured(name, flood, receiver)
            finally:
                await receiver.kill()


async def _measured(name: str, flood: Flood, receiver: LiveReceiver) -> Measured:
    assert receiver.process is not None
    process = psutil.Process(receiver.process.pid)
    job_id = f"job_{0:026d}"
    if flood is large_evidence:
        async with receiver.client() as client:
            job_id = (await submit(client, "novita", picture_bytes(64, 64)))["id"]
    target = Target(receiver, job_id)
    await target.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    target.answers.clear()
    await asyncio.sleep(1)
    before = peak = process.memory_info().rss
    probe = subprocess.Popen(
        [sys.executable, "-c", PROBE, str(receiver.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    async def sample() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.05)

    sampling = asyncio.create_task(sample())
    await flood(target)
    await asyncio.sleep(2)
    sampling.cancel()
    printed, _ = await asyncio.to_thread(probe.communicate, "")
    disk = sum(path.stat().st_size for path in receiver.data_dir.rglob("*") if path.is_file())
    answers = ", ".join(f"{count} x {answer}" for answer, count in sorted(target.answers.items()))
    return Measured(name, before / MB, peak / MB, float(printed) * 1000, disk / MB, answers)


async def run(wanted: list[str]) -> bool:
    print("| flood | RSS, MB | longest /healthz, ms | on disk, MB | answered |")
    print("|---|---|---|---|---|")
    held = True
    for name, flood in FLOODS.items():
        if not wanted or any(word in name for word in wanted):
            measured = await measure(name, flood)
            print(measured.line(), "" if measured.held else "**beyond the limit**", flush=True)
            held = held and measured.held
    return held


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench floods", description=__doc__)
    parser.add_argument("names", nargs="*", help="only floods whose name holds one of these words")
    sys.exit(0 if asyncio.run(run(parser.parse_args(argv).names)) else 1)
