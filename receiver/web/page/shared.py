"""
Fragments that many pages ask for at once are made once.

Whoever watches the same address with the same rights sees the same, but for the form token. So a fragment is made for
the first who asks after a change, and given to all others until the next one, each with the token of their session.
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
    """Keeps the last fragments. *version* goes up whenever something has changed."""

    def __init__(self, version: Callable[[], int]) -> None:
        self._version = version
        self._placeholder = secrets.token_urlsafe(24)
        self._made: OrderedDict[tuple[str, str, bool, int], tuple[float, asyncio.Task[Response]]] = OrderedDict()

    async def answer(
        self, request: Request, session: Session, view: Callable[[Request, Session], Awaitable[Response]]
    ) -> Response:
        """What *view* answers, or has answered to somebody else since the last change."""
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


async def _awaited(answer: Awaitable[Response]) -> Response:
    return await answer
