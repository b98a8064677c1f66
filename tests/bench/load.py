"""
A lean load generator, run as a process of its own: `python -m tests.bench.load PORT FILE CONNECTIONS [RATE]`.

FILE holds whole HTTP requests, each behind its length (4 bytes). Without RATE every connection sends its next request
when the last request is answered (closed loop); with RATE requests leave at their times whether or not earlier ones are
answered, and a late answer counts from the time at which its request was due. Prints one JSON object; `began` is of the
clock that all processes of the machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import uvloop


def read_requests(path: Path) -> list[bytes]:
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def write_requests(path: Path, requests: list[bytes]) -> None:
    path.write_bytes(b"".join(len(request).to_bytes(4, "big") + request for request in requests))


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.buffer = b""
        self.index = -1
        self.began = 0.0
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.load.free(self)

    def send(self, index: int, began: float) -> None:
        self.index, self.began = index, began
        self.transport.write(self.load.requests[index])

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        at = self.buffer.lower().find(b"content-length:", 0, head_end)
        size = int(self.buffer[at + 15 : self.buffer.index(b"\r\n", at)]) if at >= 0 else 0
        if len(self.buffer) < head_end + 4 + size:
            return
        status, self.buffer = int(self.buffer[9:12]), b""
        self.load.answered(self, status)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lost(self)


class Load:
    """All requests once, over *connections* connections."""

    def __init__(self, requests: list[bytes], rate: float | None) -> None:
        self.requests = requests
        self.rate = rate
        self.next = 0
        self.left = len(requests)
        self.idle: deque[Connection] = deque()
        self.due: deque[tuple[int, float]] = deque()
        self.statuses: Counter[int] = Counter()
        self.acknowledged: list[int] = []
        self.seconds: list[float] = []
        self.done = asyncio.Event()
        self.clock = time.monotonic
        self.began = 0.0

    def free(self, connection: Connection) -> None:
        if self.rate is None:
            if self.next < len(self.requests):
                self.next += 1
                connection.send(self.next - 1, self.clock())
        elif self.due:
            connection.send(*self.due.popleft())
        else:
            self.idle.append(connection)

    def answered(self, connection: Connection, status: int) -> None:
        self.seconds.append(self.clock() - connection.began)
        self.statuses[status] += 1
        if status == 200:
            self.acknowledged.append(connection.index)
        connection.index = -1
        self.left -= 1
        if self.left == 0:
            self.done.set()
        self.free(connection)

    def lost(self, connection: Connection) -> None:
        """The server is gone (or ended the connection): what was on its way is not acknowledged."""
        if connection in self.idle:
            self.idle.remove(connection)
        if not self.done.is_set():
            self.statuses[0] += 1
            self.done.set()

    async def offer(self) -> None:
        """Let requests fall due at the rate, in steps of a millisecond at least."""
        assert self.rate is not None
        while self.next < len(self.requests) and not self.done.is_set():
            until = int((self.clock() - self.began) * self.rate) + 1
            while self.next < min(until, len(self.requests)):
                due = (self.next, self.began + self.next / self.rate)
                self.next += 1
                if self.idle:
                    self.idle.popleft().send(*due)
                else:
                    self.due.append(due)
            await asyncio.sleep(max(self.began + self.next / self.rate - self.clock(), 0.001))


async def run(port: int, requests: list[bytes], connections: int, rate: float | None) -> dict[str, Any]:
    load = Load(requests, rate)
    loop = asyncio.get_running_loop()
    load.began = load.clock()
    made = await asyncio.gather(
        *(loop.create_connection(lambda: Connection(load), "127.0.0.1", port) for _ in range(connections))
    )
    offering = None
    if rate is not None:
        load.began = load.clock()
        offering = asyncio.create_task(load.offer())
    await load.done.wait()
    elapsed = load.clock() - load.began
    if offering is not None:
        offering.cancel()
    for transport, _ in made:
        transport.abort()
    ordered = sorted(load.seconds) or [0.0]
    return {
        "began": load.began,
        "seconds": elapsed,
        "statuses": dict(load.statuses),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[int(len(ordered) * 0.99)],
        "max": ordered[-1],
        "acknowledged": load.acknowledged,
    }


if __name__ == "__main__":
    PORT, FILE, CONNECTIONS, *RATE = sys.argv[1:]
    print(
        json.dumps(
            uvloop.run(run(int(PORT), read_requests(Path(FILE)), int(CONNECTIONS), float(RATE[0]) if RATE else None))
        )
    )
