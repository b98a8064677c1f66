"""Signing in with an API token or a one-time link, and signing out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.web.page.attempts import Attempts
from receiver.web.page.gate import Gate, small_form, to_page
from receiver.web.page.rendering import Pages
from receiver.web.page.sessions import Session, Sessions

log = structlog.get_logger("receiver.page")

_BACK = re.compile(r"(?!.*(?:\.\.|//))[A-Za-z0-9_][A-Za-z0-9_/?=&.%~:+,@-]{0,500}")
"""One of our pages, as a path relative to the prefix that can't lead up or out."""


@dataclass(frozen=True, slots=True)
class SignIn:
    """The sign-in form, the sign-in link and the button *Sign out*."""

    gate: Gate
    pages: Pages
    sessions: Sessions
    attempts: Attempts

    def routes(self) -> list[Route]:
        gate = self.gate
        return [
            Route("/login", gate.open(self.form), methods=["GET"]),
            Route("/login", gate.open(self.sign_in), methods=["POST"]),
            Route("/open", gate.open(self.by_link), methods=["GET"]),
            Route("/logout", gate.page(self.sign_out), methods=["POST"]),
        ]

    async def form(self, request: Request) -> Response:
        if await self.gate.session(request) is not None:
            return to_page(request, _back(request.query_params.get("next")))
        return await self._form(request)

    async def sign_in(self, request: Request) -> Response:
        self.gate.check_origin(request)
        peer = None if request.client is None else request.client.host
        wait = self.attempts.wait_seconds(peer)
        form = await small_form(request)
        if wait > 0:
            error = "Too many wrong tokens came from your address. Wait a moment, then try again."
            answer = await self._form(request, error=error, status=429)
            answer.headers["retry-after"] = str(int(wait) + 1)
            return answer
        token = form.get("token")
        cookie = self.sessions.begin(token) if isinstance(token, str) else None
        if cookie is None:
            self.attempts.wrong(peer)
            log.warning("sign_in_refused", peer=peer)
            return await self._form(request, error="This is not one of the receiver's API tokens.", status=401)
        log.info("signed_in", peer=peer)
        answer = to_page(request, _back(form.get("next")))
        self.gate.set_cookie(request, answer, cookie)
        return answer

    async def by_link(self, request: Request) -> Response:
        peer = None if request.client is None else request.client.host
        wait = self.attempts.wait_seconds(peer)
        token = request.query_params.get("token", "")
        cookie = None if wait > 0 else await self.sessions.begin_by_link(token[:500], datetime.now(UTC))
        if cookie is None:
            self.attempts.wrong(peer)
            error = "This link was used before, or is too old. Run receiver open for a new one."
            return await self._form(request, error=error, status=401)
        log.info("signed_in", peer=peer, by="link")
        answer = to_page(request)
        self.gate.set_cookie(request, answer, cookie)
        return answer

    async def sign_out(self, request: Request, session: Session) -> Response:
        """Sign out; allowed for read tokens too, since it only ends their session."""
        self.gate.check_origin(request)
        form: FormData = await small_form(request)
        self.gate.check_form_token(session, form.get("form_token"))
        await self.sessions.end(session)
        answer = to_page(request, "login")
        self.gate.delete_cookie(request, answer)
        return answer

    async def _form(self, request: Request, *, error: str = "", status: int = 200) -> Response:
        wanted = _back(request.query_params.get("next"))
        context = {"error": error, "next": wanted}
        return await self.pages.answer(request, None, "login.html", context, status=status)


def _back(wanted: object) -> str:
    return wanted if isinstance(wanted, str) and _BACK.fullmatch(wanted) else ""
