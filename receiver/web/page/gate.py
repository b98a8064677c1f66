"""
The gate of the pages: access to them, the check of posts from them, and the headers of every answer.

A page needs a session; without one it redirects to the sign-in form. A post needs more: according to the browser's
headers it must come from a page of this origin, and it must carry the form token of its session.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any
from urllib.parse import quote, urlsplit

import structlog
from starlette.datastructures import FormData, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from receiver.store.errors import StoreError
from receiver.web.page.rendering import FRAGMENT, Pages, base_of
from receiver.web.page.sessions import Session, Sessions
from receiver.web.page.shared import SharedFragments
from receiver.web.problems import Problem, busy

log = structlog.get_logger("receiver.page")

COOKIE = "receiver_session"
FORM_TOKEN = "form_token"
_MOST_FORM_BYTES = 256 * 1024
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types receiver",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

View = Callable[[Request, Session], Awaitable[Response]]
Action = Callable[[Request, Session, FormData], Awaitable[Response]]
Handler = Callable[[Request], Awaitable[Response]]


class Gate:
    """Wraps views and actions. *public_url* may change while the receiver runs."""

    def __init__(
        self, sessions: Sessions, pages: Pages, shared: SharedFragments, *, public_url: Callable[[], str | None]
    ) -> None:
        self._sessions = sessions
        self._pages = pages
        self._shared = shared
        self._public_url = public_url

    def open(self, handler: Handler) -> Handler:
        """Wrap a handler that is open to everybody."""

        @wraps(handler)
        async def opened(request: Request) -> Response:
            return with_headers(await self._answered(request, None, handler(request)))

        return opened

    def page(self, view: View, *, shared: bool = True) -> Handler:
        """Wrap a view for sessions; others are sent to the sign-in form. Files and streams are not *shared*."""

        @wraps(view)
        async def guarded(request: Request) -> Response:
            try:
                session = await self.session(request)
            except (StoreError, OSError) as exc:
                return with_headers(await self._failed(request, None, exc))
            if session is None:
                return with_headers(_to_sign_in(request))
            fragment = shared and FRAGMENT in request.query_params and request.method == "GET"
            answer = self._shared.answer(request, session, view) if fragment else view(request, session)
            answered = with_headers(await self._answered(request, session, answer))
            if request.method == "POST":
                self._shared.forget()
            return answered

        return guarded

    def action(self, action: Action) -> Handler:
        """Wrap an action for posts of our own forms, by sessions that may change things."""

        async def act(request: Request, session: Session) -> Response:
            self.check_origin(request)
            form = await small_form(request)
            self.check_form(session, form.get(FORM_TOKEN))
            return await action(request, session, form)

        return self.page(act)

    def upload(self, view: View) -> Handler:
        """Wrap a post that reads its own body, and checks the form token in it by `check_form`."""

        async def act(request: Request, session: Session) -> Response:
            self.check_origin(request)
            return await view(request, session)

        return self.page(act)

    async def session(self, request: Request) -> Session | None:
        cookie = request.cookies.get(COOKIE, "")
        return await self._sessions.session(cookie) if 0 < len(cookie) < 1024 and cookie.isascii() else None

    async def problem(self, request: Request, problem: Problem) -> Response:
        """Return the page of *problem*, with the navigation if there is a session."""
        try:
            session = await self.session(request)
        except (StoreError, OSError):
            session = None
        return with_headers(await self._problem(request, session, problem))

    def check_form_token(self, session: Session, token: Any) -> None:
        """Refuse a form that was not made for *session*."""
        if not isinstance(token, str) or not self._sessions.check_form_token(session, token):
            log.warning("form_refused", reason="form token")
            raise _forged()

    def check_form(self, session: Session, token: Any) -> None:
        """Refuse a form that was not made for *session*, and any change with a read token."""
        self.check_form_token(session, token)
        if not session.may_write:
            raise Problem(
                403,
                "read_only_token",
                "you signed in with a read token: it shows everything and changes nothing",
                remedy="sign in with one of RECEIVER_API_TOKENS",
            )

    def check_origin(self, request: Request) -> None:
        """Refuse a post that another site has the browser make."""
        fetched_by = request.headers.get("sec-fetch-site", "same-origin")
        origin = request.headers.get("origin")
        public = self._public_url()
        own = {request.headers.get("host", "").lower(), urlsplit(public or "").netloc.lower()} - {""}
        if fetched_by not in ("same-origin", "none") or (
            origin is not None and urlsplit(origin).netloc.lower() not in own
        ):
            log.warning("form_refused", reason="another origin")
            raise _forged()

    def set_cookie(self, request: Request, response: Response, value: str) -> None:
        """Keep the session in the browser until it is closed, for the paths of the pages."""
        response.set_cookie(
            COOKIE, value, path=self._path(request), httponly=True, samesite="strict", secure=self._secure(request)
        )

    def delete_cookie(self, request: Request, response: Response) -> None:
        response.delete_cookie(
            COOKIE, path=self._path(request), httponly=True, samesite="strict", secure=self._secure(request)
        )

    def _public(self, request: Request) -> str:
        """Return the public URL, for a request that came by it."""
        public = self._public_url() or ""
        return public if urlsplit(public).netloc.lower() == request.headers.get("host", "").lower() else ""

    def _path(self, request: Request) -> str:
        root: str = request.scope.get("root_path", "")
        return (root or urlsplit(self._public(request)).path).rstrip("/") or "/"

    def _secure(self, request: Request) -> bool:
        return "https" in (request.url.scheme, urlsplit(self._public(request)).scheme)

    async def _answered(self, request: Request, session: Session | None, answer: Awaitable[Response]) -> Response:
        """Return the answer, or the page of a problem."""
        try:
            return await answer
        except Problem as exc:
            return await self._problem(request, session, exc)
        except (StoreError, OSError) as exc:
            return await self._failed(request, session, exc)

    async def _failed(self, request: Request, session: Session | None, exc: Exception) -> Response:
        """The page for a fault of the database or the disk."""
        log.error("page_failed", method=request.method, error=type(exc).__name__, detail=str(exc)[:300])
        return await self._problem(request, session, busy("something went wrong on our side"))

    async def _problem(self, request: Request, session: Session | None, problem: Problem) -> Response:
        context = {"problem": problem, "session": session, "again": request.method == "GET"}
        page = await self._pages.answer(request, session, "problem.html", context, status=problem.status)
        page.headers.update(problem.headers)
        return page


async def small_form(request: Request) -> FormData:
    """Read the fields of a form without files. Raises `Problem`."""
    try:
        size = int(request.headers.get("content-length", "0"))
        if size > _MOST_FORM_BYTES:
            raise ValueError
        return await form_of(request, max_files=0, max_part_size=_MOST_FORM_BYTES)
    except ValueError as exc:
        raise unreadable_form() from exc


async def form_of(request: Request, *, max_files: int, max_part_size: int) -> FormData:
    """Read a form. Raises `Problem` if it can't be read, or has text that is none in UTF-8 (by another charset)."""
    try:
        form = await request.form(max_files=max_files, max_fields=200, max_part_size=max_part_size)
        for name, value in form.multi_items():
            text = value if isinstance(value, str) else value.filename or ""
            f"{name}{text}".encode()
    except (MultiPartException, ValueError, ClientDisconnect) as exc:
        raise unreadable_form() from exc
    return form


def to_page(request: Request, path: str = "", *, status: int = 303) -> Response:
    """Redirect to one of our pages, relative to this one, so that it works under any prefix."""
    return RedirectResponse(f"{base_of(request)}{path}", status)


def with_headers(response: Response) -> Response:
    """Add the headers that every answer of a page has."""
    headers = MutableHeaders(raw=response.raw_headers)
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("cache-control", "no-store")
    return response


def new_key() -> str:
    """Return an idempotency key for a form, which makes a single job even if sent twice."""
    return secrets.token_urlsafe(18)


def _to_sign_in(request: Request) -> Response:
    """Redirect to the sign-in form, with the relative address of the page if it can be shown again."""
    wanted = request.url.path.removeprefix(request.scope.get("root_path", "")).lstrip("/")
    if request.url.query:
        wanted = f"{wanted}?{request.url.query}"
    back = f"?next={quote(wanted)}" if wanted and request.method in ("GET", "HEAD") else ""
    return to_page(request, f"login{back}")


def unreadable_form() -> Problem:
    """Return the refusal of a form that can't be read."""
    return Problem(400, "invalid_form", "the form can't be read", remedy="go back and send it again")


def _forged() -> Problem:
    return Problem(
        403,
        "forged_form",
        "this form was not sent from a page of this session",
        remedy="open the page again, and send the form from there",
    )
