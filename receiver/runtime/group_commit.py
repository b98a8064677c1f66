"""
Group commit: many callers, one transaction.

Callers hand in an item and wait; items that gather while a commit runs go into the next one. The queue can be bounded
in length, in weight and in time: beyond that `Overloaded` is raised, so overload shows as 503 and not as memory. Where
callers are bounded themselves and nobody waits for an answer, it needs no bounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Done = Callable[[BaseException | None], None]
"""Called once: with None when the item is committed, else with the error."""

_GATHER_SECONDS = 0.003


class Overloaded(Exception):
    """Too much waits, or has waited for too long. Try again later; the item may still be committed."""


class _Waiting(Generic[Item]):
    """An item whose caller waits for its commit."""

    __slots__ = ("_done", "item")

    def __init__(self, item: Item, done: Done) -> None:
        self.item = item
        self._done: Done | None = done

    def end(self, error: BaseException | None) -> None:
        """Report the outcome, once."""
        done, self._done = self._done, None
        if done is not None:
            done(error)


class GroupCommit(Generic[Item]):
    """
    Runs *commit* over batches of at most *batch* items, one batch at a time, in order of arrival.

    A batch is begun *linger_seconds* after its first item, for others to join it. At most *limit* items wait, and none
    for longer than twice *patience_seconds* (None: no bound). The weights, by *weigh*, of all uncommitted items may add
    up to *weight_limit*; a single item may be heavier.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Awaitable[None]],
        *,
        batch: int = 256,
        limit: int | None = 4096,
        patience_seconds: float | None = 2.0,
        weigh: Callable[[Item], int] = lambda item: 0,
        weight_limit: int = 64 << 20,
        linger_seconds: float = 0.0,
    ) -> None:
        self._commit = commit
        self._batch = batch
        self._limit = limit
        self._patience = patience_seconds
        self._weigh = weigh
        self._weight_limit = weight_limit
        self._linger = linger_seconds
        self._weight = 0
        self._waiting: list[_Waiting[Item]] = []
        self._committing = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def unanswered(self) -> int:
        """The number of items that wait for their commit, those being committed included."""
        return len(self._waiting) + self._committing

    @property
    def busy(self) -> bool:
        """Return whether any item waits or is being committed."""
        return self._task is not None and not self._task.done()

    async def add(self, item: Item) -> None:
        """Return once *item* is committed; raises the commit's error, or `Overloaded`."""
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: BaseException | None) -> None:
            if committed.done():
                return
            if error is None:
                committed.set_result(None)
            else:
                committed.set_exception(error)

        self.put(item, done)
        await committed

    def put(self, item: Item, done: Done) -> None:
        """Hand in *item*; *done*, which must not raise, is called with the outcome. Raises `Overloaded`."""
        if self._limit is not None and len(self._waiting) >= self._limit:
            raise Overloaded
        weight = self._weigh(item)
        if self._weight and self._weight + weight > self._weight_limit:
            raise Overloaded
        self._weight += weight
        self._waiting.append(_Waiting(item, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def drain(self) -> None:
        """Wait until no items are left."""
        while self._task is not None and not self._task.done():
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await self._gather(loop)
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            self._committing = len(batch)
            watch = self._watch(batch, loop)
            error: BaseException | None = None
            try:
                await self._commit([waiting.item for waiting in batch])
            except Exception as exc:  # noqa: BLE001 (every caller of the batch gets it)
                error = exc
            if watch is not None:
                watch.cancel()
            self._committing = 0
            self._weight -= sum([self._weigh(waiting.item) for waiting in batch])
            for waiting in batch:
                waiting.end(error)

    async def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let requests that have arrived hand in their items, or every second commit would hold a single item."""
        if self._linger and len(self._waiting) < self._batch:
            await asyncio.sleep(self._linger)
        until, before = loop.time() + _GATHER_SECONDS, 0
        while before < len(self._waiting) < self._batch and loop.time() < until:
            before = len(self._waiting)
            await asyncio.sleep(0)

    def _watch(self, batch: Sequence[_Waiting[Item]], loop: asyncio.AbstractEventLoop) -> asyncio.TimerHandle | None:
        if self._patience is None:
            return None
        return loop.call_later(self._patience, self._lose_patience, batch, loop)

    def _lose_patience(self, batch: Sequence[_Waiting[Item]], loop: asyncio.AbstractEventLoop) -> None:
        """Answer the callers of a commit that hangs, and later those that arrived meanwhile."""
        for waiting in batch:
            waiting.end(Overloaded())
        if self.busy:
            self._watch(list(self._waiting), loop)
