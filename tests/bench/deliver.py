"""
The speed of deliveries to a subscriber, end to end: `python -m tests.bench deliver [--rounds 5] [--burst 3000]`.

A burst of signed callbacks over 64 connections into a real receiver, until one subscriber with 64 slots has
acknowledged every delivery. In turns with it: the same number of requests to a Starlette route that does nothing (the
baseline), and of posts of the same size over 64 bare keep-alive connections to the same subscriber (the ceiling).
Servers, load and subscriber are processes of their own on one machine.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.bench.figures import Figure, parser, present
from tests.bench.ingest import Bench
from tests.bench.load import write_requests
from tests.bench.subscriber import seen, subscriber, wait_for

_BODY_BYTES = 1024


def main(argv: list[str]) -> None:
    options = parser("deliver", __doc__)
    options.add_argument("--burst", type=int, default=3000, help="callbacks in a round")
    options.add_argument("--rows", type=int, default=20_000, help="evidence rows that are there before")
    options.add_argument("--processes", type=int, default=1, help="processes of ours: all but the last answer")
    given = options.parse_args(argv)
    nothing = Figure("a route that does nothing", "requests/s")
    bare = Figure("bare keep-alive connections to the subscriber", "posts/s", baseline=nothing.what)
    ours = Figure("callback in to delivery acknowledged", "events/s", baseline=nothing.what)
    with tempfile.TemporaryDirectory() as directory, subscriber() as origin:
        bench = Bench(Path(directory), given.rows, processes=given.processes)
        bench.prepare()
        with bench.serving("nothing", "ours"):
            bench.subscribe(f"{origin}/hook")
            for name in ("nothing", "ours"):
                bench.load(name, 500)
            wait_for(origin, 500)
            for _ in range(given.rounds):
                nothing.values.append(bench.acknowledged("nothing", 4 * given.burst))
                bare.values.append(posted(bench, origin, given.burst))
                ours.values.append(delivered(bench, origin, given.burst))
    conditions = f"a burst of {given.burst:,}, one subscriber with 64 slots, {given.processes} of our processes"
    present("deliver", conditions, [nothing, bare, ours], as_json=given.json)


def delivered(bench: Bench, origin: str, count: int) -> float:
    began: float = bench.load("ours", count)["began"]
    came = wait_for(origin, count)
    bench.wait_drained()
    return count / (max(came.values()) - began)


def posted(bench: Bench, origin: str, count: int) -> float:
    """The same subscriber, posted to without anything behind it."""
    body = json.dumps({"data": {"id": "job_bare"}, "filler": "x" * _BODY_BYTES}, separators=(",", ":")).encode()
    head = f"POST /hook HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    path = bench.directory / "bare.requests"
    write_requests(path, [head + body] * count)
    seconds = bench.run_load(int(origin.rpartition(":")[2]), path)["seconds"]
    seen(origin)
    return count / float(seconds)
