"""
Webhooks in FastAPI, as a dependency:

    @app.post("/hooks")
    async def hook(event: Annotated[Event, Depends(event("whsec_…"))]) -> None: ...

In Starlette, `await event("whsec_…")(request)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request

from submitter.signatures import parse_secrets
from submitter.webhooks import CallbackRefused, Event, unwrap


def event(secret: str | Sequence[str]) -> Callable[[Request], Awaitable[Event]]:
    """Return a dependency that provides the verified event. Raises `ValueError` for a malformed *secret*."""
    parse_secrets(secret)

    async def verified(request: Request) -> Event:
        try:
            return unwrap(request.headers, await request.body(), secret)
        except CallbackRefused as exc:
            raise HTTPException(401, str(exc)) from exc

    return verified
