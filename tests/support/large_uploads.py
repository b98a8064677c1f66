"""Large pictures on their way through a receiver, and what they cost its process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import psutil

from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.ports import free_port
from tests.support.processes import ROOT, TOKEN, LiveReceiver, provider_environment

MB = 1_000_000
SIZES = {"freepik": 30 * MB, "novita": 30 * MB, "upscayl": 30 * MB, "pixelcut": 25 * MB}
KEY = "a-key-that-signs-links"


@asynccontextmanager
async def receiver_beside_a_sandbox(tmp_path: Path) -> AsyncIterator[LiveReceiver]:
    """A receiver whose sandbox is a process of its own, so that neither memory nor time of it counts."""
    port = free_port()
    command = (sys.executable, "-m", "submitter.sandbox", "--port", str(port))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    sandbox = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.DEVNULL)
    wiring = provider_environment(Sandbox.base_urls(f"http://127.0.0.1:{port}"))
    receiver = LiveReceiver(tmp_path / "data", {**wiring, "RECEIVER_SECRET_KEYS": KEY})
    try:
        await receiver.start()
        yield receiver
    finally:
        await receiver.stop()
        with suppress(ProcessLookupError):
            sandbox.kill()
        await sandbox.wait()


def large_picture(path: Path, size: int) -> Path:
    """A picture with a tail, as large as wanted: what is inside is the provider's business."""
    head = picture_bytes(640, 480)
    with path.open("wb") as file:
        file.write(head)
        file.write(os.urandom(size - len(head)))
    return path


POST = """
import http.client, os, sys
port, token, provider, path = sys.argv[1:]
part = '--x\\r\\ncontent-disposition: form-data; name="%s"\\r\\n\\r\\n'
head = (part % "job" + '{"provider": "' + provider + '"}\\r\\n' + part % 'image"; filename="in.jpg').encode()
tail = b"\\r\\n--x--\\r\\n"
connection = http.client.HTTPConnection("127.0.0.1", int(port))
connection.putrequest("POST", "/v1/jobs")
connection.putheader("authorization", "Bearer " + token)
connection.putheader("content-type", "multipart/form-data; boundary=x")
connection.putheader("content-length", str(len(head) + os.path.getsize(path) + len(tail)))
connection.endheaders(head)
with open(path, "rb") as file:
    connection.sock.sendfile(file)
connection.send(tail)
sys.stdout.buffer.write(connection.getresponse().read())
"""


async def post_picture(receiver: LiveReceiver, provider: str, path: Path) -> str:
    """Posted by another process: a client's own work must not delay what is measured."""
    command = (sys.executable, "-I", "-S", "-c", POST, str(receiver.port), TOKEN, provider, str(path))
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return str(json.loads(out)["id"])


class Watch:
    """Samples a process's memory, and how long its event loop makes a tiny request wait."""

    def __init__(self, receiver: LiveReceiver) -> None:
        assert receiver.process is not None
        self._receiver = receiver
        self._process = psutil.Process(receiver.process.pid)
        self.idle = self.peak = self._process.memory_info().rss
        self.waits_seconds: list[float] = []

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._memory()), asyncio.create_task(self._probe())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _memory(self) -> None:
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss)
            await asyncio.sleep(0.01)

    async def _probe(self) -> None:
        async with httpx.AsyncClient(base_url=self._receiver.url, trust_env=False) as client:
            while True:
                began = time.perf_counter()
                await client.get("/healthz")
                self.waits_seconds.append(time.perf_counter() - began)
                await asyncio.sleep(0.005)
