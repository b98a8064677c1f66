"""
A sandbox as a real server inside the running event loop.

Not a line of access log: the paths are capability URLs. Signals stay with the code that runs the loop.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from submitter.sandbox.broken_answers import CUT_EXTENSION

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@asynccontextmanager
async def serving(app: ASGIApp, *, host: str, port: int) -> AsyncIterator[str]:
    """
    Serve *app* on *port*, on a free one for 0, and give its origin (`http://127.0.0.1:54321`).

    It accepts connections from the first moment on.
    """
    listener = _listener(host, port)
    server = _Server(config(app, lifespan="off"))
    running = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.ending.set()
        await running
        listener.close()


def _listener(host: str, port: int) -> socket.socket:
    # With the protocol named, asyncio turns Nagle's algorithm off on what it accepts; without, each answer on a
    # connection that is used again comes 40 ms late. `socket.create_server` does not name it.
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
    """How uvicorn has to be set up so that connections can be cut and nothing secret is logged."""
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
            with suppress(OSError, ValueError):  # what the event loops raise for a socket that is gone
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()

        async def cuttable(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                scope["extensions"] = {**(scope.get("extensions") or {}), CUT_EXTENSION: cut}
            await app(scope, receive, send)

        self.app = cuttable


class _Server(uvicorn.Server):
    """Leaves the signals alone, and ends as soon as `ending` is set: tests start many of these."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    async def main_loop(self) -> None:
        for tick in itertools.count():
            if await self.on_tick(tick):
                return
            try:
                await asyncio.wait_for(self.ending.wait(), 0.1)
            except TimeoutError:
                continue
            self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
