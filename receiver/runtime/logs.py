"""
What is printed: one line for each thing that happened, ids as fields, JSON or readable.

Every line carries the request's id, where there is one, and says which job it is about. What libraries have to say
comes in the same form. Those that print whole URLs (httpx, httpcore, uvicorn's access log) are silenced here, and what
others said of a failure is looked through for them once more: capability URLs are secrets.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from receiver.domain.redaction import redact
from receiver.runtime.request_ids import request_id

_QUIET = ("httpx", "httpcore", "python_multipart", "aiosqlite", "alembic", "asyncio", "uvicorn.error")
_GATHER_SECONDS = 0.01
_QUOTED = ("detail", "error", "reason", "event")


def set_up(style: str = "auto", *, level: str = "info") -> None:
    """*style* is `json`, `text` or `auto`: text on a terminal, JSON elsewhere."""
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if as_text
        else structlog.processors.JSONRenderer(serializer=_to_json)
    )
    shared: list[Processor] = [
        _with_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _redacted,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=Lines(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _set_up_libraries(shared, renderer)


_encode = json.JSONEncoder(default=repr).encode


def _to_json(line: Any, **_: Any) -> str:
    """`json.dumps` would make an encoder for every line."""
    return _encode(line)


class Lines:
    """
    Writes lines to *stream*, ordinary ones many at a time: a system call for each costs more than all the rest of
    answering a callback. Warnings and errors are written at once, with all that came before it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        """The one that will flush."""
        atexit.register(self.flush)

    def __call__(self, *_: Any) -> Lines:
        return self

    def info(self, line: str) -> None:
        self._lines.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(_GATHER_SECONDS, self.flush)

    def warning(self, line: str) -> None:
        self._lines.append(line)
        self.flush()

    debug = info
    error = critical = exception = fatal = msg = warning

    def flush(self) -> None:
        lines, self._lines, self._loop = self._lines, [], None
        if not lines:
            return
        # A full disk, or a reader that is gone, must not keep a callback from its answer or a provider from its pause.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def _set_up_libraries(shared: list[Processor], renderer: Processor) -> None:
    finish: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, _one_line, renderer]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=finish))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.CRITICAL)


def _with_request_id(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    if "request_id" not in line and (found := request_id()) is not None:
        line["request_id"] = found
    return line


def _redacted(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    """Without the secrets of URLs that somebody else's words may quote."""
    if method == "info":  # only our own words
        return line
    for name in _QUOTED:
        value = line.get(name)
        if isinstance(value, str):
            line[name] = redact(value)
    return line


def _one_line(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    """A library's traceback as fields: what went wrong and where, never the values of a statement."""
    came: Any = line.pop("exc_info", None)
    exception = came[1] if isinstance(came, tuple) else came if isinstance(came, BaseException) else None
    if exception is not None:
        line["error"] = type(exception).__name__
        frame = exception.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        if frame is not None:
            line["at"] = f"{frame.tb_frame.f_code.co_filename.rpartition('/')[2]}:{frame.tb_lineno}"
    return line
