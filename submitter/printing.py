"""
Printing for the commands of both packages: lines, JSON, tables, and error messages.

Descriptions, error messages and answers are written by others, and a terminal obeys control characters: everything
printed here shows them as escapes.
"""

from __future__ import annotations

import json
import re
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from submitter.environment import forced_color, plain_output
from submitter.words import moment_text

_NO_END = 10_000
"""The width of an output that is not a terminal: its reader does its own wrapping."""
_LEAST_WRAPPED = 24
"""The least width for wrapping words."""
_WHOLE_WORD = 31
"""The longest word that is never split within its column, such as an id; longer ones are URLs and paths."""
_INDENT, _HANGING = 2, 4
"""The indents of a cell below its row, and of its continuation lines."""

_HIGH = "\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""DEL, the C1 set, line separators, direction controls, and lone surrogates, which can't be printed at all."""
_CONTROL = re.compile(f"[\x00-\x1f{_HIGH}]")
_CONTROL_IN_JSON = re.compile(f"[{_HIGH}]")


def harmless(text: str) -> str:
    """Return *text* with its control characters as escapes (`\\x1b`), on one line."""
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


def check_reader() -> None:
    """
    Raise `BrokenPipeError` if standard output is a pipe whose reader has gone (`| head -1`).

    For commands that print now and then: without it they would notice at the next line only.
    """
    if not hasattr(select, "poll"):  # Windows
        return
    output = select.poll()
    output.register(1, 0)  # errors and hang-ups are reported unasked
    if output.poll(0):
        raise BrokenPipeError


def rich_console(*, err: bool = False, **options: Any) -> Console:
    """Return a console for live displays and tables. With `plain_output()` it has neither colours nor bold."""
    if plain_output():
        options["color_system"] = None
    return Console(stderr=err, markup=False, highlight=False, **options)


class Listing:
    """
    Rows under headings, without truncated cells.

    Where a terminal is too narrow, the widest column wraps at its words; where too little is left for that, it moves
    below its rows under its heading, and the next one is tried. The first column, an id or a name, stays as it is.
    """

    def __init__(self, *headings: str) -> None:
        self._headings = headings
        self._rows: list[list[Text]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        self._rows.append([_harmless_cell(cell, style) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield lines of at most the terminal's width; of any width without a terminal."""
        widths, below = self._layout(options.max_width if console.is_terminal else None)
        if any(self._headings):
            yield _line([Text(self._headings[n], style="bold") for n in widths], list(widths.values()))
        for row in self._rows:
            columns = [_wrapped(console, row[n], width) for n, width in widths.items()]
            for cells in zip_longest(*columns, fillvalue=Text("")):
                yield _line(cells, list(widths.values()))
            for n in below:
                if row[n].plain:
                    text = Text.assemble(f"{self._headings[n]}: " if self._headings[n] else "", row[n])
                    for number, line in enumerate(_wrapped(console, text, options.max_width - _HANGING)):
                        yield Text(" " * (_HANGING if number else _INDENT)).append_text(line)

    def _layout(self, most: int | None) -> tuple[dict[int, int], list[int]]:
        """Return the width of each column that stays in its row, by number, and the columns that move below."""
        rows = [[Text(heading) for heading in self._headings], *self._rows]
        widths = {n: max(row[n].cell_len for row in rows) for n in range(len(self._headings))}
        below: list[int] = []
        while most is not None and len(widths) > 1 and sum(widths.values()) + len(widths) - 1 > most:
            widest = max(list(widths)[1:], key=lambda n: widths[n])
            left = most - sum(width for n, width in widths.items() if n != widest) - len(widths) + 1
            longest = max((cell_len(word) for row in rows for word in row[widest].plain.split()), default=0)
            if left >= max(_LEAST_WRAPPED, min(longest, _WHOLE_WORD)):
                widths[widest] = left
                break
            del widths[widest]
            below.append(widest)
        return widths, sorted(below)


def _line(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text()
    for cell, width in zip(cells, widths, strict=True):
        line.append_text(cell).append(" " * (width - cell.cell_len + 1))
    line.rstrip()
    return line


def _wrapped(console: Console, text: Text, width: int) -> list[Text]:
    """Split *text* into lines of at most *width* cells, between words, and inside longer words."""
    if text.cell_len <= width:
        return [text]
    lines = list(text.wrap(console, max(width, 1), overflow="fold"))
    for line in lines:
        line.rstrip()
    return lines


def _harmless_cell(cell: str | Text, style: str = "") -> Text:
    return Text(harmless(cell), style=style) if isinstance(cell, str) else Text(harmless(cell.plain), style=cell.style)


def console() -> Console:
    """Return standard output: as wide as the terminal, unlimited without one. Brackets are not markup."""
    if sys.stdout.isatty():
        return rich_console()
    return rich_console(width=_NO_END, no_color=not forced_color())


def fields_table() -> Listing:
    """Return an empty listing of names and values, without headings."""
    return Listing("", "")


def print_table(table: Listing, *, empty: str = "") -> None:
    """Print a table, fitted to a terminal; elsewhere every row is one line. *empty* is said where it has no rows."""
    console().print(table, soft_wrap=True)
    if empty and not table:
        say(empty, err=True, dim=True)


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
    """Return a job's state in its colour."""
    return Text(state, style=_STATE_STYLES.get(state, ""))


def age(since: datetime, until: datetime) -> str:
    """Format how long a job took, or has taken until now: `12.3 s`, `14 min`, `6 h`."""
    seconds = (until - since).total_seconds()
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def job_note(*reasons: str | None) -> str:
    """Return the first non-empty one of *reasons*, on one line."""
    return " ".join(next((reason for reason in reasons if reason), "").split())


def print_fields(shown: Mapping[str, Any]) -> None:
    """Print a line for each field that has a value, and for each item of a list of texts."""
    table = fields_table()
    for name, value in shown.items():
        if value in (None, "", {}, []):
            continue
        lines = isinstance(value, list) and all(isinstance(item, str) for item in value)
        for n, item in enumerate(value if lines else [value]):
            table.add_row(Text("" if n else name, style="bold"), _field_text(name, item))
    print_table(table)


def _field_text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return moment_text(value) if name.endswith("_at") else value


def print_json(value: Any) -> None:
    typer.echo(json_text(value))


def json_text(value: Any, *, indent: int | None = 2, default: Callable[[Any], str] | None = None) -> str:
    """Return *value* as readable JSON, with characters that a terminal obeys as escapes."""
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
    """Return an error, for `raise`."""
    return CommandFailed(message, status=status, code=code)
