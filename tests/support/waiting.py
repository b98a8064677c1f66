"""
Waiting for a condition, never for a time.

A bound says only when a test that fails has failed; a machine that is merely busy must not reach it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 120.0


def patience() -> asyncio.Timeout:
    """A timeout for a block that waits for something that a working receiver does soon."""
    return asyncio.timeout(PATIENCE_SECONDS)


async def patiently(awaitable: Awaitable[T]) -> T:
    """The result of *awaitable*, which a working receiver gives soon."""
    async with patience():
        return await awaitable


async def eventually(
    condition: Callable[[], Any], *, what: Callable[[], str] = lambda: "it never came true", seconds: float = 0
) -> None:
    """
    Return when *condition* (plain or async) is true; fail with *what* after `PATIENCE_SECONDS`.

    *seconds* lengthens that for work whose size is chosen outside, and shortens nothing.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + max(seconds, PATIENCE_SECONDS)
    pause = 0.005
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return
        if loop.time() > until:
            raise AssertionError(what())
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.1)
