"""A running receiver with a sandbox, a subscriber, and a browser in front of its dashboard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page

from submitter.sandbox import test_picture as picture_bytes
from tests.support.processes import LiveReceiver, live
from tests.support.subscriber import Subscriber

READ_TOKEN = "a-read-token-of-the-browser-tests"
ENVIRONMENT = {
    "RECEIVER_READ_TOKENS": READ_TOKEN,
    "RECEIVER_ALLOW_NETWORKS": "127.0.0.0/8",
    "RECEIVER_RETRY_SCHEDULE": "0",
}


@dataclass
class Setup:
    """The receiver, the browser, the subscriber at `/hooks`, which fails at `/bad`, and a picture to send."""

    receiver: LiveReceiver
    browser: Browser
    subscriber: Subscriber
    picture: Path

    @property
    def origin(self) -> str:
        return self.receiver.url


@contextlib.asynccontextmanager
async def dashboard(browser: Browser, tmp_path: Path) -> AsyncIterator[Setup]:
    picture = tmp_path / "harbour at dusk.png"
    picture.write_bytes(picture_bytes(160, 120))
    subscriber = Subscriber({"/bad": [500]})
    async with subscriber.serve() as _, live(tmp_path, environment=ENVIRONMENT) as (receiver, _sandbox):
        yield Setup(receiver, browser, subscriber, picture)


async def endpoint(running: Setup, path: str, **more: Any) -> dict[str, Any]:
    async with running.receiver.client() as client:
        answer = await client.post("/v1/endpoints", json={"url": f"{running.subscriber.origin}{path}", **more})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made


async def go_to(page: Page, name: str) -> None:
    link = page.get_by_role("navigation").get_by_role("link", name=name, exact=True)
    address = await link.evaluate("link => link.href")
    await link.click()
    await page.wait_for_url(address)
