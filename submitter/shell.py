"""
Shared by the programs of both packages: the handling of errors and exits, and the options of every program.

Characters that the terminal's encoding lacks are printed as `?`. Any error that ends a command is one line on standard
error (one JSON object with `--json`) and an exit status; a traceback is printed with `--verbose`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Literal, NoReturn, TextIO

import typer

from submitter.errors import ReceiverError, SubmitterError, Unauthorized
from submitter.printing import CommandFailed, say

EXIT_STATUSES = (
    "Exit status: 0 done. 1 it failed, or only part of it succeeded. 2 wrong usage, settings or token. "
    "70 an error of the program itself. 124 a timeout passed. 130 interrupted."
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print more, and tracebacks of unexpected errors.")]
Color = Annotated[
    Literal["auto", "always", "never"], typer.Option("--color", help="Colours: auto is on a terminal only.")
]


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


def run(cli: typer.Typer, program: str, explain: Callable[[BaseException], CommandFailed | None]) -> NoReturn:
    """
    Run *cli* and exit. *explain* turns errors of its own package into messages.

    An interrupt ends it with a message and status 130 at any time, also before and after the command.
    """
    _open_standard_files()
    for stream in (sys.stdout, sys.stderr):
        _replace_what_cannot_be_encoded(stream)
    as_json = "--json" in sys.argv[1:]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = _called(cli, as_json)
        if status == 130:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        status = _end(program, CommandFailed("interrupted", status=130, code="interrupted"), as_json)
    except BrokenPipeError:
        status = _reader_gone()
    except Exception as exc:  # noqa: BLE001 (the last one there is: a user gets a line, not a traceback)
        status = _end(program, explain(exc) or explained(exc), as_json)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interpreter's own end would print a traceback
    sys.exit(status)


def explained(exc: BaseException) -> CommandFailed:
    """Turn *exc* into the message and the exit status that end a command."""
    if isinstance(exc, CommandFailed):
        return exc
    if isinstance(exc, ReceiverError):
        status = 2 if isinstance(exc, Unauthorized) else 1
        return CommandFailed(str(exc), status=status, code=exc.code, field=exc.field, remedy=exc.remedy)
    if isinstance(exc, SubmitterError):
        return CommandFailed(str(exc))
    if isinstance(exc, OSError):
        return CommandFailed(str(exc), code="os_error")
    if "-v" in sys.argv or "--verbose" in sys.argv:
        traceback.print_exception(exc)
    return CommandFailed(
        f"unexpected {type(exc).__name__}: {exc}; --verbose shows where", status=70, code="internal_error"
    )


def _called(cli: typer.Typer, as_json: bool) -> int:
    """Run the command and return its exit status. Usage errors are printed by it, or raised for JSON."""
    try:
        result = cli(standalone_mode=not as_json)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 1 if exc.code else 0
    except Exception as exc:
        message = getattr(exc, "format_message", None)  # of a usage error, whose class is private to typer
        if message is None:
            raise
        raise CommandFailed(message(), status=2, code="usage") from exc
    return result if isinstance(result, int) else 0


def _end(program: str, failure: CommandFailed, as_json: bool) -> int:
    try:
        if as_json:
            typer.echo(json.dumps({"error": failure.to_json()}), err=True)
        else:
            known = failure.remedy is None or failure.remedy in str(failure)
            say(f"{program}: {failure}" + ("" if known else f"; {failure.remedy}"), err=True)
            for line in failure.details:
                say(f"  {line}", err=True)
    except OSError:
        return _reader_gone()
    return failure.status


def _reader_gone() -> int:
    """Handle a reader of the output that has gone, as `head` does; buffered output must not raise again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
    return 1


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
