"""
A sandbox as a real server inside the running event loop.

No access log: the paths are capability URLs. Signals are left to the code that runs the loop.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from submitter.prompt_server import PromptServer
from submitter.sandbox.broken_answers import CUT_EXTENSION

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@asynccontextmanager
async def serving(app: ASGIApp, *, host: str, port: int) -> AsyncIterator[str]:
    """
    Serve *app* on *port*, on a free one for 0, and yield its origin (`http://127.0.0.1:54321`).

    It accepts connections as soon as the block begins.
    """
    listener = _listener(host, port)
    server = PromptServer(config(app, lifespan="off"))
    running = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.end()
        await running
        listener.close()


def _listener(host: str, port: int) -> socket.socket:
    # With the protocol named, asyncio turns off Nagle's algorithm on accepted connections; without it, each answer on
    # a reused connection is 40 ms late. `socket.create_server` does not name it.
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


def config(app: ASGIApp, **settings: Any) -> uvicorn.Config:
    """Configure uvicorn so that connections can be reset and nothing secret is logged."""
    return uvicorn.Config(
        app,
        http=CuttableProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        **settings,
    )


class CuttableProtocol(H11Protocol):
    """uvicorn's protocol, plus a way for the application to reset its connection without an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        app = self.app

        def cut() -> None:
            if transport.is_closing():
                return
            with suppress(OSError, ValueError):  # raised by the event loops for a socket that is gone
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()

        async def cuttable(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                scope["extensions"] = {**(scope.get("extensions") or {}), CUT_EXTENSION: cut}
            await app(scope, receive, send)

        self.app = cuttable
