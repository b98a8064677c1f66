"""
The cost of clients of the event stream: `python -m tests.bench stream [--rounds 5] [--clients 500] [--rate 50]`.

Signed callbacks are offered at a steady rate, in turn without clients and with so many that follow the stream; each
callback becomes an event that all of them get. The clients are sockets of one process that throws away what comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import uvloop

from tests.bench.figures import Figure, parser, present
from tests.bench.ingest import TOKEN, Bench


def main(argv: list[str]) -> None:
    options = parser("stream", __doc__)
    options.add_argument("--clients", type=int, default=500)
    options.add_argument("--rate", type=int, default=50, help="callbacks per second")
    options.add_argument("--seconds", type=float, default=4.0, help="how long they come in a round, each way")
    given = options.parse_args(argv)
    p50 = Figure("acknowledged, p50", "ms")
    p50_with = Figure(f"acknowledged with {given.clients} clients, p50", "ms", baseline=p50.what)
    p99 = Figure("acknowledged, p99", "ms")
    p99_with = Figure(f"acknowledged with {given.clients} clients, p99", "ms", baseline=p99.what)
    cpu = Figure("CPU of the receiver for each callback", "ms")
    cpu_with = Figure(f"CPU with {given.clients} clients", "ms", baseline=cpu.what)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), 0)
        bench.prepare()
        with bench.serving("nothing", "ours"):
            bench.offered(given.rate, 2)
            for _ in range(given.rounds):
                _round(bench, given.rate, given.seconds, p50, p99, cpu)
                with clients(bench.ports["ours"], given.clients):
                    _round(bench, given.rate, given.seconds, p50_with, p99_with, cpu_with)
    conditions = f"{given.rate} callbacks/s, each an event for every client"
    present("stream", conditions, [p50, p50_with, p99, p99_with, cpu, cpu_with], as_json=given.json)


def _round(bench: Bench, rate: int, seconds: float, p50: Figure, p99: Figure, cpu: Figure) -> None:
    process = psutil.Process(bench.running["ours"].pid)
    before = process.cpu_times()
    result = bench.offered(rate, seconds)
    after = process.cpu_times()
    p50.values.append(1000 * result["p50"])
    p99.values.append(1000 * result["p99"])
    cpu.values.append(1000 * (after.user + after.system - before.user - before.system) / (rate * seconds))


@contextlib.contextmanager
def clients(port: int, count: int) -> Iterator[None]:
    """*count* clients that follow the stream, all of them connected before the block begins."""
    command = [sys.executable, "-m", "tests.bench.stream", str(port), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"connected\n":
            raise RuntimeError("the clients did not get the stream")
        time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait()


class Client(asyncio.Protocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(data)


async def _follow(port: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    fields = f"host: localhost\r\naccept: text/event-stream\r\nauthorization: Bearer {TOKEN}\r\n"
    for _ in range(count):
        transport, client = await loop.create_connection(Client, "127.0.0.1", port)
        transport.write(f"GET /v1/events HTTP/1.1\r\n{fields}\r\n".encode())
        answer = await client.answer
        if not answer.startswith(b"HTTP/1.1 200"):
            sys.exit(answer.decode("latin-1"))
    print("connected", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_follow(int(sys.argv[1]), int(sys.argv[2])))
