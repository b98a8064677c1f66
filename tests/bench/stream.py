"""
The cost of clients of the event stream: `python -m tests.bench stream [--rounds 5] [--clients 500] [--rate 50]`.

Signed callbacks are offered at a steady rate, in turn without clients and with so many that follow the stream; each
callback becomes an event that all of them get, which is checked. The clients are sockets of one process, which stands
for other machines: it only gets the CPU that nobody else wants, and reads what has arrived a few times a second. Its
CPU is shown.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.bench.figures import Figure, parser, present
from tests.bench.ingest import TOKEN, Bench

_COUNTED = b"event: job.succeeded\n"
_REST_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0


def main(argv: list[str]) -> None:
    options = parser("stream", __doc__)
    options.add_argument("--clients", type=int, default=500)
    options.add_argument("--rate", type=int, default=50, help="callbacks per second")
    options.add_argument("--seconds", type=float, default=20.0, help="how long they come in a round, each way")
    given = options.parse_args(argv)
    alone = _figures("alone")
    beside = _figures(f"beside {given.clients} clients", compared=alone)
    theirs = Figure("CPU of all clients for each callback", "ms")
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), 0)
        bench.prepare()
        with bench.serving("nothing", "ours"):
            bench.offered(given.rate, 2)
            for _ in range(given.rounds):
                _round(bench, given.rate, given.seconds, alone)
                with clients(bench.ports["ours"], given.clients, int(given.rate * given.seconds)) as pid:
                    before = _cpu_seconds(pid)
                    _round(bench, given.rate, given.seconds, beside)
                    theirs.values.append(1000 * (_cpu_seconds(pid) - before) / (given.rate * given.seconds))
    conditions = f"{given.rate} callbacks/s, each an event for every client"
    figures = [each for pair in zip(alone, beside, strict=True) for each in pair]
    present("stream", conditions, [*figures, theirs], as_json=given.json)


def _figures(where: str, compared: list[Figure] | None = None) -> list[Figure]:
    """Those of one way: acknowledged in the median and at p99, and the receiver's CPU for each callback."""
    names = ("acknowledged, p50", "acknowledged, p99", "CPU of the receiver for each callback")
    made = [Figure(f"{name}, {where}", "ms") for name in names]
    for figure, baseline in zip(made, compared or (), strict=False):
        figure.baseline = baseline.what
    return made


def _round(bench: Bench, rate: int, seconds: float, figures: list[Figure]) -> None:
    pid = bench.running["ours"].pid
    before = _cpu_seconds(pid)
    result = bench.offered(rate, seconds)
    took = (_cpu_seconds(pid) - before) / (rate * seconds)
    for figure, value in zip(figures, (result["p50"], result["p99"], took), strict=True):
        figure.values.append(1000 * value)


def _cpu_seconds(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


@contextlib.contextmanager
def clients(port: int, count: int, events: int) -> Iterator[int]:
    """
    *count* clients in a process whose id is yielded, all connected before the block begins.

    Each must get *events* by the end of the block, or soon after.
    """
    command = [sys.executable, "-m", "tests.bench.stream", str(port), str(count), str(events)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"connected\n":
            raise RuntimeError("the clients did not get the stream")
        time.sleep(0.5)
        yield process.pid
        if process.wait(_PATIENCE_SECONDS) != 0:
            raise RuntimeError("a client got an event more than once")
    finally:
        process.kill()
        process.wait()


class Client:
    """An open stream, and how many events of the counted type came."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        fields = f"host: localhost\r\naccept: text/event-stream\r\nauthorization: Bearer {TOKEN}\r\n"
        self.socket.sendall(f"GET /v1/events HTTP/1.1\r\n{fields}\r\n".encode())
        self.events = 0
        self._rest = self.socket.recv(65536)
        if not self._rest.startswith(b"HTTP/1.1 200"):
            sys.exit(self._rest.decode("latin-1"))
        self.socket.setblocking(False)

    def read(self) -> None:
        data = self._rest + self.socket.recv(1 << 20)
        self.events += data.count(_COUNTED)
        self._rest = data[1 - len(_COUNTED) :]


def _follow(port: int, count: int, events: int) -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    selector = selectors.DefaultSelector()
    made = [Client(port) for _ in range(count)]
    for client in made:
        selector.register(client.socket, selectors.EVENT_READ, client)
    print("connected", flush=True)
    while any(client.events < events for client in made):
        for key, _ in selector.select():
            key.data.read()
        time.sleep(_REST_SECONDS)
    if any(client.events > events for client in made):
        sys.exit("a client got an event twice")


if __name__ == "__main__":
    _follow(*map(int, sys.argv[1:]))
