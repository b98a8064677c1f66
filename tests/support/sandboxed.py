"""`receiver serve --sandbox` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from submitter import tls
from tests.support import forking
from tests.support.cli import bare_environment
from tests.support.engines import secrets_of
from tests.support.ports import free_port
from tests.support.processes import is_ready
from tests.support.waiting import eventually


@contextlib.asynccontextmanager
async def sandboxed(
    directory: Path, *, log: Path | None = None, end: signal.Signals = signal.SIGTERM
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of one with nothing set, but that polling is as quick as a test. It is stopped by *end*."""
    port = free_port()
    with open(log or os.devnull, "wb") as out:
        process = await forking.fork(
            "receiver",
            *("serve", "--sandbox", "--port", str(port)),
            environment=bare_environment(RECEIVER_POLL_INTERVAL="0.3"),
            directory=directory,
            out=out,
            err=out,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False, verify=tls.context(), timeout=30) as client:
            await eventually(lambda: is_ready(client))
            token = secrets_of(directory / "data")["api_token"]
            client.headers["authorization"] = f"Bearer {token}"
            yield client
    finally:
        process.send_signal(end)
        assert await process.wait() == (0 if end == signal.SIGTERM else -end)
