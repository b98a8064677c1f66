"""
What the commands of both packages print with: lines, JSON, tables, and the last word before a failure.

Descriptions, error messages and answers are written by others, and a terminal obeys control characters: whatever is
printed here shows them as escapes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from submitter.environment import forced_color, plain_output

_NO_END = 10_000
"""Columns of an output that is no terminal: whoever reads it cuts by itself."""

_HIGH = "\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""DEL, the C1 set, what ends a line or turns its direction, and halves of characters, which can't be printed at all."""
_CONTROL = re.compile(f"[\x00-\x1f{_HIGH}]")
_CONTROL_IN_JSON = re.compile(f"[{_HIGH}]")


def harmless(text: str) -> str:
    """*text* with its control characters as escapes (`\\x1b`), on one line."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(
    text: str,
    *,
    err: bool = False,
    fg: str | None = None,
    dim: bool | None = None,
    bold: bool | None = None,
    nl: bool = True,
) -> None:
    """Print a line."""
    line = harmless(text)
    styled = (fg or dim or bold) and not plain_output()
    typer.echo(typer.style(line, fg=fg, dim=dim, bold=bold) if styled else line, err=err, nl=nl)


def rich_console(*, err: bool = False, **options: Any) -> Console:
    """A console for live displays and tables. `plain_output()` has neither colours nor bold."""
    if plain_output():
        options["color_system"] = None
    return Console(stderr=err, markup=False, highlight=False, **options)


class _Table(Table):
    """A table whose cells are harmless."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(_harmless_cell(cell) for cell in cells), **options)


def _harmless_cell(cell: str | Text) -> str | Text:
    return harmless(cell) if isinstance(cell, str) else Text(harmless(cell.plain), style=cell.style)


def console() -> Console:
    """Standard output: as wide as the terminal, and never cut short where there is none. Brackets are no markup."""
    if sys.stdout.isatty():
        return rich_console()
    return rich_console(width=_NO_END, no_color=not forced_color())


def headed(*columns: str) -> Table:
    """An empty table with these headings. The first column, an id or a name, is always whole."""
    table = _Table(*columns, box=None, pad_edge=False, header_style="bold")
    table.columns[0].no_wrap = True
    return table


def fields_table() -> Table:
    """An empty table of names and values, without a heading."""
    return _Table(box=None, pad_edge=False, show_header=False)


def print_table(table: Table) -> None:
    """Fits a terminal; elsewhere every cell is whole and no line ends in blanks."""
    out = console()
    if sys.stdout.isatty():
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


_STATE_STYLES = {
    "succeeded": "green",
    "failed": "red",
    "expired": "red",
    "canceled": "dim",
    "unconfirmed": "yellow",
    "running": "cyan",
    "sending": "cyan",
}


def state_text(state: str) -> Text:
    """A job's state in its colour."""
    return Text(state, style=_STATE_STYLES.get(state, ""))


def age(since: datetime, until: datetime) -> str:
    """How long a job took, or has taken until now: `12.3 s`, `14 min`, `6 h`."""
    seconds = (until - since).total_seconds()
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def job_note(*reasons: str | None) -> str:
    """The first of *reasons* that there is, on one line."""
    return " ".join(next((reason for reason in reasons if reason), "").split())


def print_fields(shown: Mapping[str, Any]) -> None:
    """A line for each field that has a value."""
    table = _Table.grid(padding=(0, 2))
    for name, value in shown.items():
        if value not in (None, "", {}, []):
            text = harmless(value if isinstance(value, str) else json.dumps(value))  # as a Text it would lose some
            table.add_row(Text(name, style="bold"), Text(text))
    print_table(table)


def print_json(value: Any) -> None:
    typer.echo(json_text(value))


def json_text(value: Any, *, indent: int | None = 2, default: Callable[[Any], str] | None = None) -> str:
    """*value* as JSON, readable as it is but for what a terminal obeys."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=default)
    return _CONTROL_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class CommandFailed(Exception):
    """
    Ends the command with this message, lines of *details* and exit status *status*.

    With `--json` it is an object: `code`, `message`, `field`, `remedy`, and `details` if there are any.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 1,
        code: str | None = None,
        field: str | None = None,
        remedy: str | None = None,
        details: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.details = tuple(details)
        self.status = status
        self.code = code or ("usage" if status == 2 else "failed")
        self.field = field
        self.remedy = remedy

    def to_json(self) -> dict[str, Any]:
        shown = {"code": self.code, "message": str(self), "field": self.field, "remedy": self.remedy}
        return {**shown, "details": list(self.details)} if self.details else shown


def failed(message: str, *, status: int = 1, code: str | None = None) -> CommandFailed:
    """What is wrong, for `raise`."""
    return CommandFailed(message, status=status, code=code)
