"""Explanations of waits: a paused provider, spent credit, a rate limit. Each is printed once while a command waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from submitter.errors import ReceiverError
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.values import Job, ProviderInfo
from submitter.vocabulary import State

_CHECK_SECONDS = 2.0
_WORTH_SAYING_SECONDS = 5.0
"""A shorter wait in a queue needs no explanation."""


class Waits:
    """Explains the waits of one provider's jobs through *say*, each reason once."""

    def __init__(self, client: AsyncClient, provider: str, say: Callable[[str], None]) -> None:
        self._client = client
        self._provider = provider
        self._say = say
        self._said: set[str] = set()
        self._checked_at = time.monotonic()

    @contextlib.asynccontextmanager
    async def explained(self, job: Job) -> AsyncIterator[None]:
        """Explain the waits of *job* while the block runs."""

        async def explain() -> None:
            while True:
                await asyncio.sleep(_CHECK_SECONDS)
                with contextlib.suppress(ReceiverError):
                    await self.explain(await self._client.job(job))

        explaining = asyncio.create_task(explain())
        try:
            yield
        finally:
            explaining.cancel()
            await asyncio.gather(explaining, return_exceptions=True)

    async def explain(self, *jobs: Job) -> None:
        """Explain why queued ones of *jobs* wait, if the reason is new. Queries at most every few seconds."""
        queued = [job for job in jobs if job.state is State.QUEUED]
        if not queued or time.monotonic() - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = time.monotonic()
        with contextlib.suppress(ReceiverError):
            for info in await self._client.providers(timeout=10.0):
                if info.name == self._provider and (reason := _reason(info, len(queued))) is not None:
                    key, text = reason
                    if key not in self._said:
                        self._said.add(key)
                        self._say(text)


def _reason(info: ProviderInfo, queued: int) -> tuple[str, str] | None:
    """Return a key of the wait, and the line about it."""
    if info.paused is not None:
        return (
            f"paused {info.paused.reason}",
            f"{info.name} is paused: {info.paused.reason}. {queued} of these jobs wait; they go on by themselves once "
            f"that is put right (`receiver providers resume {info.name}` tries at once)",
        )
    seconds = info.queue.done_in_seconds
    if seconds is not None and seconds > _WORTH_SAYING_SECONDS:
        return "queue", f"{info.queue.length} jobs wait for {info.name}'s rate limit, about {seconds:.0f} s in all"
    return None
