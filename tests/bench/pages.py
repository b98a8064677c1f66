"""
The cost of open pages for a callback: `python -m tests.bench pages [--rounds 7] [--pages 50]`.

Callbacks come at 200 a second, in turn without and with pages that watch: each holds the stream of changes, and fetches
what it shows when something changed, as often as the module of the pages does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.bench.ingest import TOKEN, Bench

_PATHS = (
    "/?fragment=live_main",
    "/jobs?fragment=live_rows",
    "/jobs?state=succeeded&fragment=live_rows",
    "/deliveries?fragment=live_rows",
)
_REST_SECONDS = 1.5


async def _watch(origin: str, number: int, fetched: list[float]) -> None:
    """Hold the stream, and fetch a fragment after a change, at most as often as the module of the pages does."""
    async with httpx.AsyncClient(base_url=origin, timeout=60, trust_env=False) as client:
        assert (await client.post("/login", data={"token": TOKEN})).status_code == 303
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    changed = asyncio.Event()
    host, port = origin.removeprefix("http://").split(":")
    listening = asyncio.create_task(_listen(host, int(port), cookie, changed))
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        asked = _request(_PATHS[number % len(_PATHS)], host, cookie)
        while True:
            await changed.wait()
            changed.clear()
            began = time.monotonic()
            writer.write(asked)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
            took = time.monotonic() - began
            fetched.append(took)
            await asyncio.sleep(max(_REST_SECONDS, 10 * took))
    finally:
        listening.cancel()


async def _listen(host: str, port: int, cookie: str, changed: asyncio.Event) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(_request("/live", host, cookie))
    while line := await reader.readline():
        if line == b"event: change\n":
            changed.set()


def _request(path: str, host: str, cookie: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: {host}\r\ncookie: {cookie}\r\n\r\n".encode()


async def _watch_all(origin: str, count: int, seconds: float) -> None:
    """Print how many fragments were fetched, and how long that took."""
    fetched: list[float] = []
    watching = [asyncio.create_task(_watch(origin, number, fetched)) for number in range(count)]
    done, _ = await asyncio.wait(watching, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    for task in done:
        task.result()
    print(json.dumps({"fetched": len(fetched), "median": statistics.median(fetched or [0.0])}))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench pages")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--rows", type=int, default=50_000, help="evidence rows that are there before")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each measurement takes")
    parser.add_argument("--directory", type=Path, help="kept, so that the database is filled once")
    parser.add_argument("--watch", help="used by the benchmark itself: watch this origin")
    given = parser.parse_args(argv)
    if given.watch:
        os.nice(10)  # browsers are on machines of their own
        asyncio.run(_watch_all(given.watch, given.pages, given.seconds + 4))
        return
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(given.directory or Path(directory), given.rows)
        bench.prepare()
        with bench.serving("nothing", "ours"):
            _report(bench, given.rounds, given.pages, given.seconds)


def _report(bench: Bench, rounds: int, pages: int, seconds: float) -> None:
    bench.offered(200, 3)
    alone: list[float] = []
    watched: list[float] = []
    for number in range(rounds):
        for into, count in ((alone, 0), (watched, pages)):
            watcher = _watcher(bench, count, seconds) if count else None
            time.sleep(2.5)
            into.append(bench.offered(200, seconds)["p99"] * 1000)
            said = watcher.communicate()[0].decode().strip() if watcher else ""
        print(f"round {number + 1}: p99 {alone[-1]:.2f} ms alone, {watched[-1]:.2f} ms with {pages} pages {said}")
    ratio = statistics.median(watched) / statistics.median(alone)
    print(
        f"\nAt 200 callbacks/s: p99 {statistics.median(alone):.1f} ms, with {pages} open pages"
        f" {statistics.median(watched):.1f} ms ({ratio:.2f} times)."
    )


def _watcher(bench: Bench, pages: int, seconds: float) -> subprocess.Popen[bytes]:
    origin = f"http://127.0.0.1:{bench.ports['ours']}"
    asked = ["--watch", origin, "--pages", str(pages), "--seconds", str(seconds)]
    command = [sys.executable, "-m", "tests.bench", "pages", *asked]
    return subprocess.Popen(command, env=bench.environment, stdout=subprocess.PIPE)
