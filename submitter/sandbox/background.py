"""The background work of a sandbox: running tasks, callbacks and their retries, delayed answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from submitter.sandbox.tasks import RemoteTask


class Background:
    """Holds all work that runs apart from the answers, so that it can be awaited and ended."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[None], RemoteTask | None] = {}
        self._closing = asyncio.Event()

    def spawn(self, work: Coroutine[Any, Any, None], task: RemoteTask | None = None) -> asyncio.Task[None]:
        """Run *work*, which belongs to *task*."""
        running = asyncio.get_running_loop().create_task(work)
        self._running[running] = task
        running.add_done_callback(lambda done: self._running.pop(done, None))
        return running

    async def idle(self) -> None:
        """Return once nothing runs any more: no task, no callback, no retry."""
        while self._running:
            await asyncio.wait(list(self._running))

    async def halt(self, task: RemoteTask | None = None) -> None:
        """End the work of *task*, or all of it."""
        mine = [running for running, owner in self._running.items() if task is None or owner is task]
        for running in mine:
            running.cancel()
        await asyncio.gather(*mine, return_exceptions=True)

    async def until(self, event: asyncio.Event, seconds: float | None) -> bool:
        """Wait for *event*; False if *seconds* passed or the sandbox was closed or reset first."""
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._closing.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return event.is_set()

    def open(self) -> None:
        """Be ready again after `close`."""
        if self._closing.is_set():
            self._closing = asyncio.Event()

    async def close(self) -> None:
        """End all work and every answer that still waits. Idempotent."""
        self._closing.set()
        await self.halt()
