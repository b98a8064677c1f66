"""uvicorn's server, which waits only where there is something to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Generator

import uvicorn


class PromptServer(uvicorn.Server):
    """A server that `end` ends at once if no connections are open, else as uvicorn does. Its owner handles signals."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    def end(self) -> None:
        """End the server as a signal would, but at once."""
        self.should_exit = True
        self._ended.set()

    async def main_loop(self) -> None:
        """Tick ten times a second until the server is to end."""
        for tick in itertools.count():
            if await self.on_tick(tick):
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 0.1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as uvicorn does, which gives connections a tenth of a second even where there are none."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for _ in range(3):
            await asyncio.sleep(0)  # connections that are being accepted become known
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        if not self.force_exit:
            await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
