"""
The service: receives, verifies, records, settles, polls, archives and delivers.

`receiver serve` runs it; `receiver.embed()` runs it inside another application.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from receiver.settings import Settings

__all__ = ["embed"]


def embed(settings: Settings | None = None) -> AbstractAsyncContextManager[ASGIApp]:
    """
    Run a receiver while the block runs: `async with embed() as app:`, for the lifespan of a Starlette or FastAPI host.

    *app* is an ASGI application to mount under any path, which RECEIVER_PUBLIC_URL names too. Without *settings* they
    are read from the environment, as the providers' always are. Signals are left to the host. Raises `SettingsInvalid`,
    and any other error that keeps a receiver from starting.
    """
    from receiver.embedding import embedded  # here, because every import of a part of this package passes this file

    return embedded(settings)
