"""
Shared by the programs of both packages: the handling of errors and exits, and the options of every program.

Characters that the terminal's encoding lacks are printed as `?`. Any error that ends a command is one line on standard
error (one JSON object with `--json`) and an exit status; a traceback is printed with `--verbose`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn, TextIO

import typer

from submitter.errors import ReceiverError, SubmitterError, Unauthorized
from submitter.printing import CommandFailed, say
from submitter.system_errors import described

EXIT_STATUSES = (
    "Exit status: 0 done. 1 it failed, or only part of it succeeded. 2 wrong usage, settings or token. "
    "70 an error of the program itself. 124 a timeout passed. 130 interrupted (by SIGHUP 129, by SIGTERM 143)."
)

_LAST_SECONDS = 2.0

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print more, and tracebacks of unexpected errors.")]
Color = Annotated[
    Literal["auto", "always", "never"], typer.Option("--color", help="Colours: auto is on a terminal only.")
]


def with_joined_lines(docstring: str | None) -> str:
    """
    Join the lines of each paragraph, for a help that wraps them to the terminal's width.

    >>> with_joined_lines("Send.\\n\\n    Once\\n    only.")
    'Send.\\n\\nOnce only.'
    """
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


@dataclass(frozen=True, slots=True)
class Verbosity:
    """The effect of `-q` and `-v`."""

    quiet: bool = False
    verbose: bool = False

    @property
    def log_level(self) -> str:
        return "error" if self.quiet else "debug" if self.verbose else "info"


def print_version(wanted: bool) -> None:
    """The callback of `--version`."""
    if wanted:
        try:
            number = version("upscale-receiver")
        except PackageNotFoundError:  # run from a source tree
            number = "unknown version"
        typer.echo(f"upscale-receiver {number}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
]


@functools.cache
def command_of(cli: typer.Typer) -> Any:
    """Return the command that *cli* describes: click's, which newer versions of typer carry within."""
    return typer.main.get_command(cli)


def run(cli: typer.Typer, program: str, explain: Callable[[BaseException], CommandFailed | None]) -> NoReturn:
    """
    Run *cli* and exit. *explain* turns errors of its own package into messages.

    An interrupt ends it with a message and status 130 at any time, also before and after the command. SIGTERM and
    SIGHUP do the same, with 143 and 129: temporary files are removed, and what goes on elsewhere is named.
    """
    _open_standard_files()
    output = _Output(sys.stdout.fileno(), "wb", closefd=False)
    sys.stdout = _reopened(sys.stdout, output)
    sys.stderr = _reopened(sys.stderr, _Undisturbed(sys.stderr.fileno(), "wb", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        _replace_what_cannot_be_encoded(stream)
    as_json = "--json" in sys.argv[1:]
    interrupts = _Interrupts()
    try:
        status = _called(cli, as_json)
        if status == 130:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        status = _end(program, CommandFailed("interrupted", status=interrupts.status, code="interrupted"), as_json)
    except BrokenPipeError:
        status = _reader_gone()
    except Exception as exc:  # noqa: BLE001 (the last one there is: a user gets a line, not a traceback)
        status = _end(program, _output_lost(output, exc) or explain(exc) or explained(exc), as_json)
    if output.failure is not None:
        _discard_output()
    interrupts.end()
    _exit(status)


class _Interrupts:
    """SIGINT as Python has it, and SIGTERM and SIGHUP as interrupts, unless they are ignored (as by `nohup`)."""

    def __init__(self) -> None:
        self.status = 128 + signal.SIGINT
        self._others = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._others = [number for number in self._others if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._others:
            signal.signal(number, self._interrupt)

    def end(self) -> None:
        """From now on a signal can't have the interpreter's own end print a traceback."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in self._others:
            signal.signal(number, signal.SIG_DFL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.status = 128 + number
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # whoever handles interrupts at this moment, such as an event loop


def explained(exc: BaseException) -> CommandFailed:
    """Turn *exc* into the message and the exit status that end a command."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if isinstance(exc, CommandFailed):
        return exc
    if isinstance(exc, ReceiverError):
        status = 2 if isinstance(exc, Unauthorized) else 1
        return CommandFailed(str(exc), status=status, code=exc.code, field=exc.field, remedy=exc.remedy)
    if isinstance(exc, SubmitterError):
        return CommandFailed(str(exc))
    if isinstance(exc, OSError):
        return CommandFailed(described(exc), code="os_error")
    if isinstance(exc, UnicodeEncodeError) and exc.reason == "surrogates not allowed":
        return CommandFailed(f"{exc.object[exc.start - 20 : exc.end + 20]!r} is not UTF-8; write it in UTF-8", status=2)
    if "-v" in sys.argv or "--verbose" in sys.argv:
        traceback.print_exception(exc)
    return CommandFailed(
        f"unexpected {type(exc).__name__}: {exc}; --verbose shows where", status=70, code="internal_error"
    )


def _called(cli: typer.Typer, as_json: bool) -> int:
    """Run the command and return its exit status. Usage errors are printed by it, or raised for JSON."""
    try:
        result = command_of(cli)(standalone_mode=not as_json)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 1 if exc.code else 0
    except Exception as exc:
        message = getattr(exc, "format_message", None)  # of a usage error, whose class is private to typer
        if message is None:
            raise
        raise CommandFailed(message(), status=2, code="usage") from exc
    return result if isinstance(result, int) else 0


def _end(program: str, failure: CommandFailed, as_json: bool) -> int:
    if as_json:
        typer.echo(json.dumps({"error": failure.to_json()}), err=True)
    else:
        known = failure.remedy is None or failure.remedy in str(failure)
        say(f"{program}: {failure}" + ("" if known else f"; {failure.remedy}"), err=True)
        for line in failure.details:
            say(f"  {line}", err=True)
    return failure.status


def _output_lost(output: _Output, exc: BaseException) -> CommandFailed | None:
    """Tell a standard output that can't be written from other causes of *exc*."""
    if output.failure is None or not isinstance(exc, OSError):
        return None
    return CommandFailed(
        f"standard output can't be written: {described(output.failure)}. "
        "What was to be printed is lost; what the command did is not undone",
        code="output_lost",
    )


def _reader_gone() -> int:
    """Handle a reader of the output that has gone, as `head` does; buffered output must not raise again."""
    _discard_output()
    return 1


def _discard_output() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Output(io.FileIO):
    """Standard output that remembers why it could not be written."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as exc:
            self.failure = exc
            raise


class _Undisturbed(io.FileIO):
    """Standard error where messages that can't be written are dropped: they must not end what they are about."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def _reopened(stream: TextIO, raw: io.FileIO) -> TextIO:
    """Return a stream like *stream* that writes through *raw*."""
    through = getattr(stream, "write_through", False)
    return io.TextIOWrapper(
        raw if through else io.BufferedWriter(raw),  # as Python itself does with -u
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=through,
    )


def _exit(status: int) -> NoReturn:
    """Exit; threads that an interrupt at an awkward moment has left behind may not hold up the end for good."""
    until = time.monotonic() + _LAST_SECONDS
    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in threads:
        if not thread.daemon:
            thread.join(max(until - time.monotonic(), 0))
    if any(thread.is_alive() and not thread.daemon for thread in threads):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def _open_standard_files() -> None:
    """Open standard files that were closed (`2>&-`): a socket would get their number, and break the event loop."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _replace_what_cannot_be_encoded(stream: TextIO | None) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
