"""
uvicorn with our own socket, our own shutdown, and no access log.

A signal sets `stopping` before uvicorn begins to wait for connections, so that open event streams end by themselves;
connections that still hang after a few seconds are cut. All of it fits into ten seconds. A requested stop is a success,
so the exit status is 0, where uvicorn would raise the signal again. Should something hang for good (a thread in a dead
file system), the process is ended anyway: everything that must not be lost is on disk at all times. The thread that
does so runs from the start, because at the limit of threads a signal could not start it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from types import FrameType
from typing import Any, cast

import structlog
import uvicorn
from starlette.types import ASGIApp

from receiver.runtime.direct_protocol import DirectProtocol, DirectRoute, TrustedProxies
from receiver.runtime.http_protocol import HttpProtocol, RefusalLog
from receiver.runtime.request_ids import RequestIds
from submitter.prompt_server import PromptServer

if sys.platform != "win32":
    import resource

log = structlog.get_logger("receiver.server")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LAST_RESORT_SECONDS = 9.5
_MOST_DESCRIPTORS = 65_536


class Server(PromptServer):
    """A uvicorn server that announces its stop before it waits, and does not raise the signal again."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_stop: Callable[[], None],
        lifespan: contextlib.AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._lifespan = lifespan or contextlib.nullcontext()
        self._last_resort = _LastResort()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start up, and raise the application's start-up error as it is; uvicorn would print a traceback and exit."""
        await self._lifespan.__aenter__()
        try:
            await super().startup(sockets)
        except BaseException:
            await self._lifespan.__aexit__(*sys.exc_info())
            raise

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if not self.force_exit:
            await self._lifespan.__aexit__(None, None, None)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._last_resort.arm()
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if not self.should_exit:
                self._last_resort.disarm()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_stop()
        if not self.should_exit:
            self._last_resort.begin()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Close connections that take too long, once a second; uvicorn calls this ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpProtocol):
                    connection.close_if_slow(now)
        return await super().on_tick(counter)

    def stop(self) -> None:
        """Stop the server as a signal would."""
        self._on_stop()
        self.end()

    @property
    def port(self) -> int:
        """The port that the server really listens on."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    async def wait_started(self) -> None:
        while not self.started:
            if self.should_exit:
                raise RuntimeError("the server did not start")
            await asyncio.sleep(0.01)


class _LastResort:
    """
    Ends the process some seconds after `begin`, no matter what hangs.

    `begin` may be called by a signal handler at the limit of threads and memory: it only releases a lock that a
    thread, started by `arm` long before, waits for.
    """

    def __init__(self) -> None:
        self._begun = threading.Lock()
        self._needed = True

    def arm(self) -> None:
        self._begun.acquire()
        threading.Thread(target=self._wait, name="last-resort", daemon=True).start()

    def begin(self) -> None:
        with contextlib.suppress(RuntimeError):  # begun before
            self._begun.release()

    def disarm(self) -> None:
        self._needed = False
        self.begin()

    def _wait(self) -> None:
        self._begun.acquire()
        if self._needed:
            time.sleep(_LAST_RESORT_SECONDS)
            log.error("stop_took_too_long", seconds=_LAST_RESORT_SECONDS, effect="ended without waiting further")
            os._exit(1)


def server(
    app: ASGIApp,
    *,
    on_stop: Callable[[], None],
    trusted_proxies: tuple[str, ...] = (),
    lifespan: contextlib.AbstractAsyncContextManager[object] | None = None,
    direct: DirectRoute | None = None,
) -> Server:
    """
    Return a server for *app*, to be passed to `running`. A *lifespan* replaces the application's own.

    Requests that *direct* takes are answered by it instead of by *app*.
    """
    proxies = TrustedProxies(trusted_proxies) if trusted_proxies else None
    protocol = functools.partial(DirectProtocol, refusals=RefusalLog(), route=direct, proxies=proxies)
    config = uvicorn.Config(
        RequestIds(app),
        http=cast(Any, protocol),
        ws="none",
        lifespan="auto" if lifespan is None else "off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        timeout_graceful_shutdown=2,
        timeout_keep_alive=30,
    )
    return Server(config, on_stop=on_stop, lifespan=lifespan)


@contextlib.asynccontextmanager
async def running(made: Server, *listeners: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
    """
    Have *made* answer on *listeners* while the block runs; leaving the block stops it and waits.

    Yields the task that ends when a signal has stopped it.
    """
    serving = asyncio.create_task(made.serve(sockets=list(listeners)), name="server")
    starting = asyncio.create_task(made.wait_started())
    await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    if serving.done():
        await serving
        raise SystemExit(3)
    try:
        yield serving
    finally:
        if not serving.done():
            made.stop()
        await serving


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError, whose text says what to change."""
    # With its protocol named, asyncio turns off Nagle's algorithm on accepted connections; `socket.create_server` names
    # none, and every answer on a reused connection would be 40 ms late.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
        return listener
    except (OSError, UnicodeError) as exc:
        listener.close()
        theirs = isinstance(exc, UnicodeError | socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL
        remedy = "give --host an address of this machine" if theirs else "try another --port"
        said = exc.strerror if isinstance(exc, OSError) else "no name of a host"
        raise OSError(f"can't listen on {host} port {port}: {said}; {remedy}") from exc


def origin_of(host: str, listener: socket.socket) -> str:
    """Return the origin at which the listener is reached from this machine."""
    port = listener.getsockname()[1]
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            host = "::1" if address.version == 6 else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _allow_descriptors() -> None:
    """Raise the limit of open files, 1,024 in most shells, to what the system allows this process, at most 65,536."""
    if sys.platform == "win32":
        return
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _MOST_DESCRIPTORS)
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        return
    with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run *main* on the fastest event loop available; return its result."""
    _allow_descriptors()
    factory = uvicorn.Config(lambda scope: None, log_config=None).get_loop_factory()
    # The database's thread uses the interpreter too; by default it may hold up the loop for five milliseconds.
    sys.setswitchinterval(0.0001)
    # Objects made so far stay; collecting over them again and again would be a good part of a request.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    runner = asyncio.Runner(loop_factory=factory)
    try:
        return runner.run(main)
    finally:
        try:
            runner.close()
        except RuntimeError as exc:  # it takes a thread to wait for threads, and the system may have none left
            log.warning("threads_not_awaited", detail=str(exc))
