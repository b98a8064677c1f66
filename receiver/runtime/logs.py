"""
Log output: one line for each event, ids as fields, JSON or readable.

Every line carries the request's id, if there is one, and names the job that it is about. Libraries' lines take the same
form. Loggers that print whole URLs (httpx, httpcore, uvicorn's access log) are silenced here, and error texts from
others are searched for URLs once more: capability URLs are secrets.

A thread does the writing, as standard error may be a pipe that nothing reads or a file on a disk that hangs. Lines that
it can't take are dropped and counted; nothing waits for it, not even the exit of the process.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import os
import select
import sys
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from queue import SimpleQueue
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from receiver.domain.redaction import redact
from receiver.runtime.request_ids import request_id
from receiver.runtime.terminal_lines import TerminalRenderer

log = structlog.get_logger("receiver.logs")

_QUIET = ("httpx", "httpcore", "python_multipart", "alembic", "asyncio", "uvicorn.error")
_GATHER_SECONDS = 0.01
_WAITING_BYTES = 256 * 1024
"""The limit for lines that are still to be written; more are dropped."""
_LAST_WRITE_SECONDS = 0.5
_QUOTED = ("detail", "error", "reason", "event")


def set_up(style: str = "auto", *, level: str = "info") -> None:
    """Set up logging. *style* is `json`, `text` or `auto`: text on a terminal, JSON elsewhere."""
    as_text = style == "text" or (style == "auto" and on_terminal())
    renderer: Processor = (
        TerminalRenderer(on_terminal=on_terminal())
        if as_text
        else structlog.processors.JSONRenderer(serializer=_to_json)
    )
    lines = Lines(sys.stderr, json_renderer=None if as_text or level not in ("debug", "info") else renderer)
    shared: list[Processor] = [
        _with_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _redacted,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lines,
        cache_logger_on_first_use=True,
    )
    _set_up_libraries(shared, renderer, lines)


def on_terminal() -> bool:
    """Return whether standard error, which may not even be open, is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def dropped_lines() -> int:
    """Return how many lines could not be written since the start."""
    lines = structlog.get_config()["logger_factory"]
    return lines.dropped if isinstance(lines, Lines) else 0


_encode = json.JSONEncoder(default=repr).encode


def _to_json(line: Any, **_: Any) -> str:
    """Encode a line as JSON with a shared encoder: `json.dumps` would make one for every line."""
    return _encode(line)


class InfoLines:
    """
    Info lines of one *event*, which occur by the thousand and all have the same *fields*.

    `write(rows)` does what `log.info(event, **fields)` does for each row, with a shared time stamp. As JSON, each is
    filled into a template: structlog's processors would cost as much as checking a signature. Lines that are
    *on_terminals* only, where a person follows along, are not written as JSON at all.
    """

    def __init__(self, logger: Any, event: str, *fields: str, on_terminals: bool = False) -> None:
        self._on_terminals = on_terminals
        self._logger = logger
        self._event = event
        self._fields = fields
        places = ", ".join(f'"{name}": %s' for name in fields)
        self._template = f'{{{places}, "event": "{event}", "level": "info", "timestamp": "'

    def write(self, rows: Iterable[Sequence[str | None]]) -> None:
        config = structlog.get_config()
        lines = config["logger_factory"]
        if self._on_terminals and not isinstance(config["processors"][-1], TerminalRenderer):
            return
        as_json = isinstance(lines, Lines) and lines.json_renderer is config["processors"][-1]
        if not as_json or ("request_id" not in self._fields and request_id() is not None):
            for row in rows:
                self._logger.info(self._event, **dict(zip(self._fields, row, strict=True)))
            return
        template, end = self._template, f'{datetime.now(UTC).isoformat().replace("+00:00", "Z")}"}}'
        lines.info_many(
            [template % tuple(["null" if value is None else quoted(value) for value in row]) + end for row in rows]
        )


class Lines:
    """
    Writes lines to *stream*, ordinary ones many at a time: a system call for each costs more than all the rest of
    answering a callback. Warnings and errors are written at once, with all that came before it.
    """

    def __init__(self, stream: TextIO | None, *, json_renderer: Processor | None = None) -> None:
        self.json_renderer = json_renderer
        """The renderer of the lines, if it writes JSON and includes info lines."""
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that will flush."""
        self._writer = _Writer(stream)
        atexit.register(self._close)

    @property
    def dropped(self) -> int:
        """The number of lines that could not be written."""
        return self._writer.dropped

    def __call__(self, *_: Any) -> Lines:
        return self

    def info(self, line: str) -> None:
        self.info_many([line])

    def info_many(self, lines: Sequence[str]) -> None:
        self._lines += lines
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
        if lines:
            self._writer.put(lines)

    def _close(self) -> None:
        self.flush()
        self._writer.drain(_LAST_WRITE_SECONDS)


class _Writer:
    """
    Writes to *stream* on a thread of its own, in order. `put` never waits; `dropped` counts lines that were lost.

    It writes to the file itself, bypassing Python's buffers: lines that could not be written would stay in them, and
    the process would exit with their error. A stream that is not a file (a test's) is written to at once.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.dropped = 0
        self._stream = stream
        self._file = _file_of(stream)
        self._queue: SimpleQueue[tuple[bytes, int] | threading.Event] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._unreported = 0
        if self._file is not None:
            threading.Thread(target=self._run, args=(self._file,), name="log", daemon=True).start()

    def put(self, lines: list[str]) -> None:
        text = "\n".join(lines) + "\n"
        if self._file is None:
            with contextlib.suppress(OSError, ValueError):
                if self._stream is not None:
                    self._stream.write(text)
                    self._stream.flush()
            return
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._waiting_bytes and self._waiting_bytes + len(data) > _WAITING_BYTES:
                self._drop(len(lines))
                return
            self._waiting_bytes += len(data)
        self._queue.put((data, len(lines)))

    def drain(self, timeout_seconds: float) -> None:
        """Wait until everything is written, for at most *timeout_seconds*."""
        if self._file is not None:
            written = threading.Event()
            self._queue.put(written)
            written.wait(timeout_seconds)

    def _run(self, file: int) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            data, count = item
            written = _write_all(file, data)
            with self._lock:
                self._waiting_bytes -= len(data)
                if not written:
                    self._drop(count)
                report, self._unreported = (self._unreported, 0) if written else (0, self._unreported)
            if report:
                log.warning("log_lines_dropped", count=report)

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._unreported += count


def _file_of(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None


def _write_all(file: int, data: bytes) -> bool:
    """Write *data*. Returns False if that failed, as on a full disk or to a pipe whose reader is gone."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(file, left) :]
        except BlockingIOError:  # another process that shares the file made it non-blocking
            select.select([], [file], [], 1.0)
        except OSError:
            return False
    return True


class _LinesHandler(logging.Handler):
    """Passes the log lines of libraries to *lines*."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 (as logging's own handlers)
            self.handleError(record)
        else:
            self._lines.warning(line)


def _set_up_libraries(shared: list[Processor], renderer: Processor, lines: Lines) -> None:
    finish: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, _one_line, renderer]
    handler = _LinesHandler(lines)
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
    """Remove the secrets of URLs, which texts from others may quote."""
    if method == "info":  # only our own words
        return line
    for name in _QUOTED:
        value = line.get(name)
        if isinstance(value, str):
            line[name] = redact(value)
    return line


def _one_line(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    """Turn a library's traceback into fields: the error and its place, never the values of a statement."""
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
