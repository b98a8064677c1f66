"""
The cost of large pictures: memory of the process, stalls of its event loop, the wait of callbacks meanwhile.

`each`: one picture at a time to each provider. `ten`: ten at once while callbacks come one after the other. Sandbox and
clients are processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from receiver.domain.tokens import Tokens
from submitter.sandbox import test_picture as picture_bytes
from tests.support.large_uploads import KEY, MB, SIZES, Watch, large_picture, post_picture, receiver_beside_a_sandbox
from tests.support.processes import submit, wait_for_state

_SENT = ("running", "succeeded", "failed", "unconfirmed")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench upload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(asyncio.run(measure(Path(directory), options.rounds)), indent=2))


async def measure(directory: Path, rounds: int) -> dict[str, Any]:
    """All numbers."""
    async with receiver_beside_a_sandbox(directory) as receiver, receiver.client() as client:
        job = await submit(client, "apixo", picture_bytes(64, 64))
        url = f"/callbacks/apixo/{Tokens([KEY]).callback(job['id'], 'apixo')}"
        each: dict[str, Any] = {}
        for provider, size in SIZES.items():
            path = large_picture(directory / "large.jpg", size)
            watches = []
            for _ in range(rounds):
                watch = Watch(receiver)
                async with watch.watching():
                    await wait_for_state(client, await post_picture(receiver, provider, path), *_SENT)
                watches.append(watch)
            each[provider] = _figures(watches)
        path = large_picture(directory / "large.jpg", 30 * MB)
        watches, p99s = [], []
        for _ in range(rounds):
            watch, waits = Watch(receiver), []
            async with watch.watching():
                posting = [asyncio.create_task(post_picture(receiver, "freepik", path)) for _ in range(10)]
                while not all(task.done() for task in posting):
                    began = time.perf_counter()
                    answer = await client.post(url, json={"code": 200, "data": {"taskId": "x", "state": "processing"}})
                    answer.raise_for_status()
                    waits.append(time.perf_counter() - began)
                    await asyncio.sleep(0.005)
                for task in posting:
                    await wait_for_state(client, task.result(), *_SENT)
            watches.append(watch)
            p99s.append(round(1000 * sorted(waits)[int(len(waits) * 0.99)], 1))
    return {"each": each, "ten": {**_figures(watches), "callback_p99_ms": p99s}}


def _figures(watches: list[Watch]) -> dict[str, Any]:
    return {
        "memory_mb": [round((watch.peak - watch.idle) / MB) for watch in watches],
        "longest_stall_ms": [round(1000 * max(watch.waits_seconds), 1) for watch in watches],
    }
