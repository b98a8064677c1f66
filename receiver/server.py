"""
uvicorn, as we run it: our own stop, no access log.

A signal sets `stopping` before uvicorn begins to wait for connections, so that open event streams end by themselves;
what still hangs after a few seconds is cut. All of it fits into ten seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp


class Server(uvicorn.Server):
    """A uvicorn server that says that it is stopping before it waits."""

    def __init__(self, config: uvicorn.Config, *, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_stop()
        super().handle_exit(sig, frame)

    @property
    def port(self) -> int:
        """The port that it really listens on."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    async def wait_started(self) -> None:
        while not self.started:
            if self.should_exit:
                raise RuntimeError("the server did not start")
            await asyncio.sleep(0.01)


def server(
    app: ASGIApp, *, host: str, port: int, on_stop: Callable[[], None], trusted_proxies: tuple[str, ...] = ()
) -> Server:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        timeout_graceful_shutdown=3,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return Server(config, on_stop=on_stop)
