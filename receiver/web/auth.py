"""Bearer tokens of `/v1`."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps

from starlette.requests import Request
from starlette.responses import Response

from receiver.web.problems import Problem

Handler = Callable[[Request], Awaitable[Response]]


class Bearer:
    """
    Who may call `/v1`; *read_only* tokens may read and change nothing.

    Compares in constant time; tokens are named by a digest, never by themselves.
    """

    def __init__(self, tokens: Sequence[str], *, read_only: Sequence[str] = ()) -> None:
        self._writing = {token.encode() for token in tokens}
        self._tokens = [*self._writing, *({token.encode() for token in read_only} - self._writing)]

    def check(self, request: Request) -> str:
        """The id of the caller's token, or `Problem` 401."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        candidate = given.strip().encode("utf-8", "replace")
        matches = [token for token in self._tokens if hmac.compare_digest(token, candidate)]
        if scheme.lower() != "bearer" or not matches:
            raise Problem(
                401,
                "unauthorized",
                "a bearer token is needed",
                remedy="send `Authorization: Bearer TOKEN` with one of RECEIVER_API_TOKENS",
                headers={"www-authenticate": "Bearer"},
            )
        if matches[0] not in self._writing and request.method not in ("GET", "HEAD"):
            raise Problem(
                403,
                "read_only_token",
                "this token has the scope `read`: it may read and change nothing",
                remedy="send one of RECEIVER_API_TOKENS",
            )
        return hashlib.sha256(matches[0]).hexdigest()[:16]

    def guard(self, handler: Handler) -> Handler:
        @wraps(handler)
        async def guarded(request: Request) -> Response:
            request.state.token_id = self.check(request)
            return await handler(request)

        return guarded
