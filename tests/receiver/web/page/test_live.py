"""The stream of changes, which pages watch, and the slices in which what they fetch is rendered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from receiver.store.changes import ChangeLog
from receiver.web.page.live import Live
from receiver.web.page.rendering import SLICE_SECONDS, in_slices
from tests.support.running_receiver import RunningReceiver, running_receiver
from tests.support.waiting import patience, patiently

OPEN = b"retry: 2000\nevent: open\ndata: {}\n\n"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[RunningReceiver]:
    async with running_receiver(tmp_path) as receiver:
        yield receiver


async def lasts() -> bool:
    return True


def jobs_in(frame: bytes) -> list[str] | None:
    jobs: list[str] | None = json.loads(frame.partition(b"data: ")[2])["jobs"]
    return jobs


async def test_every_page_is_sent_each_change(here: RunningReceiver) -> None:
    live = Live(ChangeLog(here.receiver.parts.database), asyncio.Event())
    async with patience(), contextlib.AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(aclosing(live.frames(lasts))) for _ in range(3)]
        assert [await anext(page) for page in pages] == [OPEN] * 3
        assert live.pages == 3
        for _ in range(2):
            version = live.version
            job = await here.job()
            for page in pages:
                assert job.id in (jobs_in(await anext(page)) or [])
            assert live.version > version
    assert live.pages == 0


async def test_a_page_that_missed_a_change_is_sent_that_everything_changed(here: RunningReceiver) -> None:
    live = Live(ChangeLog(here.receiver.parts.database), asyncio.Event())
    async with patience(), aclosing(live.frames(lasts)) as page:
        await anext(page)
        await here.job()
        await anext(page)
        for _ in range(2):
            version = live.version
            await here.job()
            while live.version == version:
                await asyncio.sleep(0.01)
        assert jobs_in(await anext(page)) is None


async def test_pages_end_when_the_receiver_stops(here: RunningReceiver) -> None:
    stopping = asyncio.Event()
    live = Live(ChangeLog(here.receiver.parts.database), stopping)
    pages = [live.frames(lasts) for _ in range(3)]
    for page in pages:
        await patiently(anext(page))
    stopping.set()
    for page in pages:
        assert [frame async for frame in page if frame] == []
    assert live.pages == 0


async def test_other_work_is_done_while_a_template_is_rendered() -> None:
    turns = [0]

    async def turning() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    def pieces() -> Iterator[str]:
        for number in range(5):
            until = time.perf_counter() + 2 * SLICE_SECONDS
            while time.perf_counter() < until:
                pass
            yield f"{number}, turn {turns[0]}; "

    other = asyncio.create_task(turning())
    assert await in_slices(pieces()) == "0, turn 0; 1, turn 1; 2, turn 2; 3, turn 3; 4, turn 4; "
    other.cancel()
