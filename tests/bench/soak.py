"""
`python -m tests.bench soak [--minutes 10]`: a receiver under steady work; its memory, descriptors and threads by time.

Jobs of a sandbox, callbacks to them and to nobody, a subscriber that answers and one that fails, 12 event streams that
come and go. Caches fill for the first part (a third of the time, five minutes at most), that of SQLite's pages by 32 MB
above all: memory was at 163 MB from minute 2.5 on. All three must be flat; the exit status is 1 if they are not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import psutil

from receiver.domain.tokens import Tokens
from submitter.sandbox import API_KEYS, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.processes import LiveReceiver, live, submit

KEY = "a-key-of-the-soak"
STREAMS = 12
SENDERS = 4
CALLBACKS_A_SECOND = 50
"""Of each sender, at most."""
JOBS_A_SECOND = 2
MOST_GROWTH = 0.05
MOST_MORE_DESCRIPTORS = 30
MOST_MORE_THREADS = 8


@dataclass(frozen=True)
class Sample:
    """The resources of the receiver at one time."""

    seconds: float
    rss_mb: float
    descriptors: int
    threads: int


async def soak(
    seconds: float, every_seconds: float = 5.0, *, senders: int = SENDERS
) -> tuple[list[Sample], Counter[str]]:
    """Work for *seconds*; returns what was sampled, and what was done."""
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as where:
        environment = {"RECEIVER_SECRET_KEYS": KEY, "RECEIVER_RETRY_SCHEDULE": "0,1,5"}
        sandbox = Sandbox(seed=1, turnaround_seconds=(0.2, 2.0))
        async with (
            live(Path(where), sandbox=sandbox, environment=environment) as (receiver, _),
            subscriber(done) as (good, failing),
            receiver.client() as client,
        ):
            for url in (good, failing):
                (await client.post("/v1/endpoints", json={"url": url})).raise_for_status()
            jobs: list[tuple[str, str]] = []
            work = [submit_jobs(client, jobs, done)]
            work += [send_callbacks(client, jobs, done) for _ in range(senders)]
            work += [listen(receiver, done) for _ in range(STREAMS)]
            tasks = [asyncio.create_task(again_and_again(each)) for each in work]
            try:
                samples = await sampled(receiver, seconds, every_seconds)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    return samples, done


async def again_and_again(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        with contextlib.suppress(httpx.HTTPError):
            await work()


async def sampled(receiver: LiveReceiver, seconds: float, every_seconds: float) -> list[Sample]:
    assert receiver.process is not None
    process = psutil.Process(receiver.process.pid)
    samples, began = [], time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        with process.oneshot():
            rss = process.memory_info().rss / (1 << 20)
            samples.append(Sample(passed, rss, process.num_fds(), process.num_threads()))
        await asyncio.sleep(every_seconds)
    return samples


def submit_jobs(
    client: httpx.AsyncClient, jobs: list[tuple[str, str]], done: Counter[str]
) -> Callable[[], Awaitable[None]]:
    picture, dice = picture_bytes(160, 120), random.Random(1)

    async def work() -> None:
        provider = dice.choice(sorted(API_KEYS))
        jobs.append(((await submit(client, provider, picture))["id"], provider))
        del jobs[:-1000]
        done["jobs"] += 1
        await asyncio.sleep(1 / JOBS_A_SECOND)

    return work


def send_callbacks(
    client: httpx.AsyncClient, jobs: list[tuple[str, str]], done: Counter[str]
) -> Callable[[], Awaitable[None]]:
    """Unsigned, forged and malformed ones, to jobs of all ages."""
    tokens, dice = Tokens([KEY]), random.Random(2)

    async def work() -> None:
        if jobs:
            job_id, _ = dice.choice(jobs)
            provider = dice.choice(("novita", "apixo", "freepik"))
            path = f"/callbacks/{provider}/{tokens.callback(job_id, provider)}"
            body = dice.choice((b"{}", b"nonsense", b'{"x": "' + b"x" * dice.randrange(20_000) + b'"}'))
            answer = await client.post(path, content=body)
            done[f"callbacks answered {answer.status_code}"] += 1
        await asyncio.sleep(1 / CALLBACKS_A_SECOND)

    return work


def listen(receiver: LiveReceiver, done: Counter[str]) -> Callable[[], Awaitable[None]]:
    """An event stream that is left after a while, and opened anew."""
    dice = random.Random(3)

    async def work() -> None:
        until = time.monotonic() + dice.uniform(5, 60)
        async with (
            receiver.client() as client,
            client.stream("GET", "/v1/events", headers={"accept": "text/event-stream"}) as stream,
        ):
            async for line in stream.aiter_lines():
                done["events on streams"] += line.startswith("id:")
                if time.monotonic() > until:
                    return

    return work


@contextlib.asynccontextmanager
async def subscriber(done: Counter[str]) -> AsyncIterator[tuple[str, str]]:
    """Two URLs of a server: one answers 200, one 500 or not at all."""
    dice = random.Random(4)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-len"))
                await reader.readexactly(length)
                failing = head.startswith(b"POST /failing")
                if failing and dice.random() < 0.3:
                    break
                done["deliveries answered 500" if failing else "deliveries answered 200"] += 1
                status = b"500 Internal Server Error" if failing else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 20)
    async with server:
        origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield f"{origin}/good", f"{origin}/failing"


def verdict(samples: list[Sample]) -> list[str]:
    """Return figures that still grow once caches are full: medians of the first and last quarter of that time."""
    full = [sample for sample in samples if sample.seconds >= min(samples[-1].seconds / 3, 300)]
    quarter = max(len(full) // 4, 1)
    first, last = full[:quarter], full[-quarter:]
    found = []
    rss = [median(sample.rss_mb for sample in part) for part in (first, last)]
    if rss[1] > rss[0] * (1 + MOST_GROWTH):
        found.append(f"RSS grew from {rss[0]:.0f} to {rss[1]:.0f} MB")
    for name, most in (("descriptors", MOST_MORE_DESCRIPTORS), ("threads", MOST_MORE_THREADS)):
        counts = [median(getattr(sample, name) for sample in part) for part in (first, last)]
        if counts[1] > counts[0] + most:
            found.append(f"{name} grew from {counts[0]:g} to {counts[1]:g}")
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args(argv).minutes
    samples, done = asyncio.run(soak(minutes * 60))
    print("| minute | RSS, MB | descriptors | threads |", "|---|---|---|---|", sep="\n")
    for sample in samples[:: max(len(samples) // 20, 1)]:
        row = f"{sample.seconds / 60:.1f} | {sample.rss_mb:.0f} | {sample.descriptors} | {sample.threads}"
        print(f"| {row} |")
    print(", ".join(f"{count} {name}" for name, count in sorted(done.items())))
    found = verdict(samples)
    print("; ".join(found) or f"flat at {median(sample.rss_mb for sample in samples[-len(samples) // 4 :]):.0f} MB")
    sys.exit(1 if found else 0)
