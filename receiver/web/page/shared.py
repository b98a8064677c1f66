"""
Shared fragments: a fragment that many pages request at once is rendered once.

All viewers of an address with the same rights see the same, except for the form token. So a fragment is rendered for
the first request after a change, and served to all others until the next change, each with its session's form token.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from receiver.web.page.sessions import Session

_SECONDS = 5.0
_MOST = 200


class SharedFragments:
    """Keeps the last fragments. *version* increases whenever something has changed."""

    def __init__(self, version: Callable[[], int]) -> None:
        self._version = version
        self._placeholder = secrets.token_urlsafe(24)
        self._made: OrderedDict[tuple[str, str, bool, int], tuple[float, asyncio.Task[Response]]] = OrderedDict()

    async def answer(
        self, request: Request, session: Session, view: Callable[[Request, Session], Awaitable[Response]]
    ) -> Response:
        """Return the answer of *view*, or its answer to another session since the last change."""
        key = (request.url.path, request.url.query, session.may_write, self._version())
        made_at, task = self._made.get(key, (0.0, None))
        if task is None or time.monotonic() - made_at > _SECONDS:
            anonymous = replace(session, form_token=self._placeholder)
            task = asyncio.create_task(_awaited(view(request, anonymous)))
            self._made[key] = (time.monotonic(), task)
            while len(self._made) > _MOST:
                self._made.popitem(last=False)
        made = await asyncio.shield(task)
        text = bytes(made.body).replace(self._placeholder.encode(), session.form_token.encode())
        return HTMLResponse(text, made.status_code)

    def forget(self) -> None:
        """Forget all of them: something was changed here, and *version* increases only later."""
        self._made.clear()


async def _awaited(answer: Awaitable[Response]) -> Response:
    return await answer
