"""
The table of result hosts' behaviours, run and printed: what became of the image, how often its host was asked for it,
the most memory that was allocated meanwhile, and why an image was lost.

The rows are those of tests/receiver/upstream/test_result_hosts.py, where they are asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import structlog

from tests.receiver.upstream.test_result_hosts import KEPT, LOST, Row, outcome


def main(argv: list[str]) -> None:
    options = argparse.ArgumentParser(prog="python -m tests.bench hosts", description=__doc__)
    options.add_argument("--json", action="store_true", help="one object a line")
    as_json = options.parse_args(argv).json
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if not as_json:
        print(f"{'host':34} {'image':5} requests  memory  why")
    for row in (*KEPT, *LOST):
        found = asyncio.run(measure(row))
        if as_json:
            print(json.dumps(found))
        else:
            print(
                f"{found['host']:34} {found['image']:5} {found['requests']:8} {found['megabytes']:5.1f} MB"
                f"  {found['why'] or ''}"
            )


async def measure(row: Row) -> dict[str, Any]:
    """The figures of *row*."""
    with tempfile.TemporaryDirectory() as made:
        found = await outcome(Path(made), row)
    return {
        "host": row.name,
        "image": found.image.state,
        "requests": found.fetches,
        "megabytes": round(found.peak_bytes / 2**20, 1),
        "why": found.image.last_error if found.image.state == "lost" else None,
    }
