"""Items that are handed in together share a commit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from receiver.runtime.group_commit import GroupCommit


async def test_items_that_come_a_little_later_join_a_batch_that_lingers() -> None:
    batches: list[list[int]] = []

    async def commit(items: Sequence[int]) -> None:
        batches.append(list(items))

    group = GroupCommit(commit, linger_seconds=0.5)
    first = asyncio.create_task(group.add(1))
    for _ in range(10):
        await asyncio.sleep(0)
    await asyncio.gather(first, group.add(2))
    assert batches == [[1, 2]]


async def test_a_full_batch_does_not_linger() -> None:
    async def commit(items: Sequence[int]) -> None:
        pass

    group = GroupCommit(commit, batch=2, linger_seconds=3600)
    await asyncio.gather(group.add(1), group.add(2))
