from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from playwright.async_api import Browser

from tests.support.chromium import chromium
from tests.support.dashboard import Setup, dashboard


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One for all tests of this process; each has a context of its own."""
    async with chromium() as running_browser:
        yield running_browser


@pytest_asyncio.fixture(loop_scope="session")
async def running(browser: Browser, tmp_path: Path) -> AsyncIterator[Setup]:
    async with dashboard(browser, tmp_path) as setup:
        yield setup
