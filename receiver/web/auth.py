"""Bearer tokens of `/v1`: they identify the caller, and whether it may change anything."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import wraps

from starlette.requests import Request
from starlette.responses import Response

from receiver.web.problems import Problem

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller, identified by a digest of its token; a caller that may not write has the scope `read`."""

    token_id: str
    may_write: bool


class Bearer:
    """
    The access control of `/v1`; *read_only* tokens may read and change nothing.

    Compares in constant time; tokens are referred to by a digest, never by themselves.
    """

    def __init__(self, tokens: Sequence[str], *, read_only: Sequence[str] = ()) -> None:
        writing = {token.encode() for token in tokens}
        self._callers = {
            token: Caller(hashlib.sha256(token).hexdigest()[:16], token in writing)
            for token in [*writing, *({token.encode() for token in read_only} - writing)]
        }

    def caller_of(self, token: str) -> Caller | None:
        """Return the caller with *token*."""
        candidate = token.strip().encode("utf-8", "replace")
        matches = [caller for known, caller in self._callers.items() if hmac.compare_digest(known, candidate)]
        return matches[0] if matches else None

    def caller_with(self, token_id: str) -> Caller | None:
        """Return the caller whose token has this digest, as long as there is such a token."""
        return next((caller for caller in self._callers.values() if caller.token_id == token_id), None)

    def check(self, request: Request) -> Caller:
        """Return the caller. Raises `Problem`: 401 without a token, 403 for a change with a read token."""
        caller = self.identify(request)
        if caller is None:
            given = "authorization" in request.headers
            raise Problem(
                401,
                "unauthorized",
                "the bearer token is not valid here" if given else "a bearer token is needed",
                remedy="send `Authorization: Bearer TOKEN` with one of RECEIVER_API_TOKENS",
                headers={"www-authenticate": "Bearer"},
            )
        if not caller.may_write and request.method not in ("GET", "HEAD"):
            raise Problem(
                403,
                "read_only_token",
                "this token has the scope `read`: it may read and change nothing",
                remedy="send one of RECEIVER_API_TOKENS",
            )
        return caller

    def identify(self, request: Request) -> Caller | None:
        credentials = set(request.headers.getlist("authorization"))
        if len(credentials) > 1:
            return None  # a proxy before us may have checked another one of them
        scheme, _, given = next(iter(credentials), "").partition(" ")
        return self.caller_of(given) if scheme.lower() == "bearer" else None

    def guard(self, handler: Handler) -> Handler:
        @wraps(handler)
        async def guarded(request: Request) -> Response:
            request.state.token_id = self.check(request).token_id
            return await handler(request)

        return guarded
