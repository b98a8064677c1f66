"""
The claim / work / wait loop, its wake-up and its shutdown.

A loop runs `step`, which does the due work and returns the seconds until it should run again (0: at once). `wake` cuts
the wait short. A step that raises is logged and run again after a growing pause: a loop never dies of an error, and a
loop that hangs shows in `beat_at`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger("receiver.loops")

DEAD_AFTER_SECONDS = 30.0
"""A loop that has not begun a step for this long counts as dead; alerts wait for twice as long."""
LONGEST_IDLE_SECONDS = 15.0
"""The longest wait of a loop that lives: nobody takes it for dead, however busy the machine is."""


class Loop:
    """
    A named loop around *step*. Setting *woken* ends its wait; *idle_seconds* bounds every wait, for work that another
    process wrote. Raises `ValueError` beyond `LONGEST_IDLE_SECONDS`.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[float]],
        *,
        woken: asyncio.Event | None = None,
        idle_seconds: float = 1.0,
    ) -> None:
        if idle_seconds > LONGEST_IDLE_SECONDS:
            raise ValueError(f"a loop that waits {idle_seconds:g} s would be taken for dead")
        self.name = name
        self.beat_at = time.monotonic()
        self.failures = 0
        self._step = step
        self._idle_seconds = idle_seconds
        self._woken = woken or asyncio.Event()

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._woken.clear()
            self.beat_at = time.monotonic()
            try:
                pause = min(await self._step(), self._idle_seconds)
                self.failures = 0
            except Exception as exc:  # noqa: BLE001 (a loop logs, backs off and goes on)
                self.failures += 1
                pause = min(0.1 * 2 ** min(self.failures, 8), 15.0)
                log.error("loop_failed", loop=self.name, error=type(exc).__name__, detail=str(exc)[:300], pause=pause)
                await asyncio.sleep(pause)
                continue
            if pause > 0:
                try:
                    async with asyncio.timeout(pause):
                        await self._woken.wait()
                except TimeoutError:
                    pass
            else:
                await asyncio.sleep(0)


class TaskPool:
    """Runs at most *size* tasks at once; each ends by itself or is cancelled when the pool is shut down."""

    def __init__(self, size: int, *, on_idle: Callable[[], None] | None = None) -> None:
        self.size = size
        self._tasks: dict[asyncio.Task[Any], str | None] = {}
        self._on_idle = on_idle

    @property
    def busy(self) -> int:
        return len(self._tasks)

    @property
    def free(self) -> int:
        return max(self.size - len(self._tasks), 0)

    def names(self) -> list[str]:
        return [task.get_name() for task in self._tasks]

    def start(self, work: Coroutine[Any, Any, None], *, name: str, job: str | None) -> None:
        """Start *work*. *job* is the id of the job that it is about, for the log line if it fails."""
        task = asyncio.create_task(work, name=name)
        self._tasks[task] = job
        task.add_done_callback(self._done)

    async def shutdown(self, *, grace_seconds: float) -> None:
        """Give running tasks *grace_seconds* to end, then cancel them and wait for that."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace_seconds)
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*set(self._tasks), return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        job = self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work_failed", work=task.get_name(), job=job, error=type(error).__name__, detail=str(error)[:300])
        if self._on_idle is not None:
            self._on_idle()
