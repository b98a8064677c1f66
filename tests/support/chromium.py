"""
Debian's Chromium, driven by Playwright, on one receiver: everything that a page must not do is noted.

The headless shell, where it is installed, is the same engine without the windows: it computes for half as long.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Request, async_playwright, expect

from tests.support.waiting import PATIENCE_SECONDS

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; .ci/run installs it")
SCREENSHOTS = Path(__file__).parent.parent.parent / "screenshots"


@dataclass
class Watched:
    """A context whose pages are watched: console messages, errors, reports of the policy, requests to other hosts."""

    context: BrowserContext
    origin: str
    faults: list[str] = field(default_factory=list)

    async def page(self) -> Page:
        page = await self.context.new_page()
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        page.on("console", lambda message: self.faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", self._requested)
        return page

    async def signed_in(self, token: str) -> Page:
        """A page that has been signed in by the form, and shows the overview."""
        page = await self.page()
        await page.goto(f"{self.origin}/login")
        await page.get_by_label("API token").fill(token)
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url(f"{self.origin}/")
        return page

    def _requested(self, request: Request) -> None:
        if not request.url.startswith(f"{self.origin}/"):
            self.faults.append(f"asked another host: {request.url}")


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)  # five seconds are short on a busy machine
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def watched(browser: Browser, origin: str, **options: Any) -> AsyncIterator[Watched]:
    """A context of its own; fails at the end if its pages did what they must not."""
    context = await browser.new_context(**options)
    context.set_default_timeout(60_000)
    made = Watched(context, origin)
    try:
        yield made
    finally:
        await context.close()
    assert made.faults == []
