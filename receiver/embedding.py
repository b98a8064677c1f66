"""
The receiver inside another application, its loops in the host's lifespan.

    @asynccontextmanager
    async def lifespan(app):
        async with receiver.embed() as upscaling:
            app.mount("/upscale", upscaling)
            yield

    app = FastAPI(lifespan=lifespan)

`RECEIVER_PUBLIC_URL` names the mounted path, such as `https://shop.example.com/upscale`; without it, addresses in
answers are paths that begin with `/upscale`, and jobs are polled. The host application keeps its signals and its logs:
nothing is set up for the process. A signal that the host handles is observed, since event streams must end before a
server begins to wait for its connections. Access logs of the host would hold capability URLs; those of uvicorn and
httpx are masked while the block runs.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from receiver.app import Receiver
from receiver.domain.redaction import redact
from receiver.runtime.data_dir import prepare
from receiver.runtime.request_ids import RequestIds
from receiver.runtime.serving_lock import occupied
from receiver.settings import Settings, load

log = structlog.get_logger("receiver")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOGGERS = ("uvicorn.access", "httpx")


@asynccontextmanager
async def embedded(settings: Settings | None = None) -> AsyncIterator[ASGIApp]:
    """
    Run a receiver while the block runs, and yield its ASGI application. See `receiver.embed`.
    """
    if settings is None:
        settings, each = load()
    else:
        _, each = load()
    prepare(settings.data_dir)
    with ExitStack() as stack:
        if stack.enter_context(occupied(settings.data_dir)):
            log.warning("data_directory_shared", effect="another receiver serves it too: both take its jobs")
        receiver = Receiver(settings, each)
        loop = asyncio.get_running_loop()
        stack.enter_context(_noticing_signals(lambda: loop.call_soon_threadsafe(receiver.stopping.set)))
        for name in _LOGGERS:
            stack.enter_context(_masked(logging.getLogger(name)))
        async with receiver.app.router.lifespan_context(receiver.app):
            yield RequestIds(_Mounted(receiver))


class _Mounted:
    """ASGI middleware that records where the host has mounted the receiver."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._receiver.mounted_at = scope.get("root_path", "").rstrip("/")
        await self._receiver.app(scope, receive, send)


@contextmanager
def _noticing_signals(on_stop: Callable[[], object]) -> Iterator[None]:
    """Call *on_stop* before the host's own handler of a signal that ends it. Without a handler, change nothing."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}

    def noticing(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], Any]:
        def notice(number: int, frame: FrameType | None) -> Any:
            on_stop()
            return handler(number, frame)

        return notice

    ours = {number: noticing(handler) for number, handler in before.items()}
    for number, handler in ours.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in ours.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, before[number])


@contextmanager
def _masked(logger: logging.Logger) -> Iterator[None]:
    """Keep *logger* from printing capability URLs."""

    def mask(record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(arg if isinstance(arg, int | float) else redact(str(arg)) for arg in record.args)
        return True

    logger.addFilter(mask)
    try:
        yield
    finally:
        logger.removeFilter(mask)
