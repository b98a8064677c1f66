"""A browser's part of the dashboard, without a browser: cookies, forms and their tokens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.types import ASGIApp

from tests.support.running_receiver import RunningReceiver

TOKEN = "a-token-of-the-tests"
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
"""What a browser accepts when an address is opened."""
PAGES = ("/", "/jobs", "/deliveries", "/endpoints", "/providers", "/send", "/compare")
_FORM_TOKEN = re.compile(r'name="form_token" value="([^"]+)"')


class Browser(httpx.AsyncClient):
    """Keeps cookies and follows no redirection by itself."""

    def __init__(self, app: ASGIApp, *, peer: str = "203.0.113.9", **more: Any) -> None:
        transport = httpx.ASGITransport(app, client=(peer, 4711))
        super().__init__(transport=transport, base_url="https://hooks.example.com", **more)


@contextlib.asynccontextmanager
async def signed_in(here: RunningReceiver, *, token: str = TOKEN) -> AsyncIterator[Browser]:
    """A browser with a session for *token*."""
    async with Browser(here.receiver.app) as browser:
        answer = await browser.post("/login", data={"token": token})
        assert answer.status_code == 303, answer.text
        yield browser


def form_token_of(page: httpx.Response) -> str:
    """The form token that *page* carries."""
    found = _FORM_TOKEN.search(page.text)
    assert found is not None, page.text
    return found[1]
