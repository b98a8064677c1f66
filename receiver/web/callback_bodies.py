"""
Bodies of callbacks, read within bounds: of size and time for each, of memory for each job and for all.

An incomplete body is the only thing that a stranger can make this process hold for long.
"""

from __future__ import annotations

import asyncio

from starlette.types import Receive

_DRAIN_BYTES = 64 * 1024 * 1024
_UNFINISHED_BYTES = 32 * 1024 * 1024
_UNFINISHED_BODIES_OF_JOB = 4
"""The memory for a job, in bodies of the largest size: one callback URL must not take the memory of all others."""


class BodyTooLarge(Exception):
    """The body is larger than allowed."""


class BodyTooSlow(Exception):
    """The body took too long to arrive."""


class SenderGone(Exception):
    """The sender hung up."""


class TooManyBodies(Exception):
    """Too many incomplete bodies are in memory to read this one; *of_job*: they belong to the same job."""

    def __init__(self, *, of_job: bool) -> None:
        super().__init__()
        self.of_job = of_job


class CallbackBodies:
    """
    Reads bodies, none for longer than *seconds*, by a shared clock: a timer for each would cost too much.

    The memory for incomplete bodies is bounded, for each job and in all.
    """

    def __init__(self, *, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._held = 0
        self._held_of: dict[str, int] = {}
        self._reading: dict[asyncio.Task[None], float] = {}
        self._too_slow: set[asyncio.Task[None]] = set()
        self._clock: asyncio.TimerHandle | None = None

    async def read(self, receive: Receive, limit: int, job_id: str) -> bytes:
        """Read the whole body; one that is too large, to its end within reason, so that its sender reads the answer."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._reading[task] = loop.time()
        if self._clock is None:
            self._clock = loop.call_later(self._seconds / 10, self._tick, loop)
        try:
            return await self._read(receive, limit, job_id)
        except asyncio.CancelledError:
            if task not in self._too_slow:
                raise
            task.uncancel()
            raise BodyTooSlow from None
        finally:
            del self._reading[task]
            self._too_slow.discard(task)

    async def _read(self, receive: Receive, limit: int, job_id: str) -> bytes:
        parts: list[bytes] = []
        size = held = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise SenderGone
                part = message.get("body", b"")
                size += len(part)
                if size <= limit:
                    parts.append(part)
                elif size > _DRAIN_BYTES:
                    raise BodyTooLarge
                if not message.get("more_body", False):
                    break
                if part and size <= limit:
                    self._hold(job_id, len(part), limit)
                    held += len(part)
        finally:
            if held:
                self._let_go(job_id, held)
        if size > limit:
            raise BodyTooLarge
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _hold(self, job_id: str, size: int, limit: int) -> None:
        of_job = self._held_of.get(job_id, 0) + size
        if of_job > _UNFINISHED_BODIES_OF_JOB * limit:
            raise TooManyBodies(of_job=True)
        if self._held + size > max(_UNFINISHED_BYTES, limit):
            raise TooManyBodies(of_job=False)
        self._held += size
        self._held_of[job_id] = of_job

    def _let_go(self, job_id: str, size: int) -> None:
        self._held -= size
        self._held_of[job_id] -= size
        if not self._held_of[job_id]:
            del self._held_of[job_id]

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        since = loop.time() - self._seconds
        for task, began in self._reading.items():
            if began < since and task not in self._too_slow:
                self._too_slow.add(task)
                task.cancel()
        self._clock = loop.call_later(self._seconds / 10, self._tick, loop) if self._reading else None
