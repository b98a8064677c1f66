"""
The system's name lookups, bounded in number.

A lookup is a call that can't be cancelled, and takes as long as the name server lets it. Each has its own daemon
thread, which nothing waits for: a name server that hangs then holds up neither the pool that file writes share, nor the
exit of the process. The number of threads is bounded; without a free one, a lookup waits for as long as its caller
allows.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

_MOST_THREADS = 32


class SystemResolver:
    """Resolves a host to addresses as text, by *getaddrinfo*. Concurrent lookups for the same host share one call."""

    def __init__(
        self,
        *,
        most_threads: int = _MOST_THREADS,
        getaddrinfo: Callable[..., Sequence[Any]] = socket.getaddrinfo,
    ) -> None:
        self._free = asyncio.Semaphore(most_threads)
        self._getaddrinfo = getaddrinfo
        self._under_way: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    async def __call__(self, host: str, port: int) -> list[str]:
        """Return the addresses of *host*. Raises OSError or UnicodeError if there is no answer."""
        answer = self._under_way.get((host, port))
        if answer is None:
            await self._free.acquire()
            answer = self._under_way.get((host, port))
            if answer is None:
                answer = self._start(host, port)
            else:
                self._free.release()
        return await asyncio.shield(answer)

    def _start(self, host: str, port: int) -> asyncio.Future[list[str]]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, though all gave up waiting

        def ended(addresses: list[str] | None, error: Exception | None) -> None:
            del self._under_way[host, port]
            self._free.release()
            if error is None:
                answer.set_result(addresses or [])
            else:
                answer.set_exception(error)

        def look_up() -> None:
            addresses, error = None, None
            try:
                found = self._getaddrinfo(host, port, type=socket.SOCK_STREAM)
                addresses = [str(sockaddr[0]) for *_, sockaddr in found]
            except Exception as exc:  # noqa: BLE001 (its waiters get it)
                error = exc
            try:
                loop.call_soon_threadsafe(ended, addresses, error)
            except RuntimeError:  # the loop has ended meanwhile
                pass

        self._under_way[host, port] = answer
        try:
            threading.Thread(target=look_up, name="lookup", daemon=True).start()
        except RuntimeError as exc:  # the system's limit of threads
            ended(None, OSError(str(exc)))
        return answer
