"""A subscriber in a process of its own: answers 200 to every post and remembers when it got the events of which job."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from asyncio import Protocol, get_running_loop
from collections.abc import Iterator
from typing import Any, ClassVar

import uvloop

from tests.support.ports import free_port
from tests.support.processes import ROOT

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_SUBJECT = re.compile(rb'"data":\{"id":"([^"]+)"')


class Hook(Protocol):
    """Just enough of HTTP for posts with a length; `GET` shows what came since the last one."""

    seen: ClassVar[list[tuple[str, float]]] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data = self.data + data if self.data else data
        while (end := self.data.find(b"\r\n\r\n") + 4) >= 4:
            length = _LENGTH.search(self.data, 0, end)
            whole = end + (int(length[1]) if length else 0)
            if len(self.data) < whole:
                return
            posted, request, self.data = self.data.startswith(b"POST"), self.data[end:whole], self.data[whole:]
            body = b"ok"
            if posted:
                subject = _SUBJECT.search(request)
                self.seen.append((subject[1].decode() if subject else "", time.monotonic()))
            else:
                body = json.dumps(self.seen).encode()
                self.seen.clear()
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


@contextlib.contextmanager
def subscriber() -> Iterator[str]:
    """Its origin, as long as the block runs."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.subscriber", str(port)], cwd=ROOT)
    origin, until = f"http://127.0.0.1:{port}", time.monotonic() + 20
    try:
        while True:
            try:
                seen(origin)
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        yield origin
    finally:
        process.terminate()
        process.wait()


def seen(origin: str) -> list[tuple[str, float]]:
    """(id of the event's subject, monotonic second) of all posts since the last call."""
    with urllib.request.urlopen(f"{origin}/seen", timeout=30) as answer:
        return [(name, at) for name, at in json.load(answer)]


def wait_for(origin: str, count: int, *, seconds: float = 60) -> dict[str, float]:
    """Return when the first event of each of *count* subjects arrived."""
    came: dict[str, float] = {}
    until = time.monotonic() + seconds
    while len(came) < count:
        if time.monotonic() > until:
            raise RuntimeError(f"{len(came)} of {count} came within {seconds:g} s")
        time.sleep(0.1)
        for name, at in seen(origin):
            came.setdefault(name, at)
    return came


async def _main(port: int) -> None:
    server = await get_running_loop().create_server(Hook, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_main(int(sys.argv[1])))
