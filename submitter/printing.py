"""What the commands of both packages print with: JSON, tables, and the last word before a failure."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_NO_END = 10_000
"""Columns of an output that is no terminal: whoever reads it cuts by itself."""


def console() -> Console:
    """Standard output: as wide as the terminal, and never cut short where there is none. Brackets are no markup."""
    if sys.stdout.isatty():
        return Console(markup=False, highlight=False)
    return Console(markup=False, highlight=False, width=_NO_END, no_color=True)


def headed(*columns: str) -> Table:
    """An empty table with these headings. The first column, an id or a name, is always whole."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    table.columns[0].no_wrap = True
    return table


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


def print_fields(shown: Mapping[str, Any]) -> None:
    """A line for each field that has a value."""
    table = Table.grid(padding=(0, 2))
    for name, value in shown.items():
        if value not in (None, "", {}, []):
            table.add_row(Text(name, style="bold"), Text(value if isinstance(value, str) else json.dumps(value)))
    print_table(table)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def failed(message: str, *, status: int = 1) -> typer.Exit:
    """Says what is wrong, for `raise`."""
    typer.echo(message, err=True)
    return typer.Exit(status)
