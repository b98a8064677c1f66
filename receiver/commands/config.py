"""`receiver config`: what is in force, and where each setting came from."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from receiver.configuration import in_force, misspelt, to_markdown
from receiver.settings import given, load


def config(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of all settings there are.")] = False,
) -> None:
    """Print the settings in force, secrets masked, and where each came from."""
    if markdown:
        typer.echo(to_markdown())
        return
    settings, each = load()
    names = given()
    found, warnings = in_force(settings, each, names), misspelt(names)
    if as_json:
        items = [dataclasses.asdict(one) for one in found]
        typer.echo(json.dumps({"items": items, "warnings": warnings}, indent=2))
        return
    table = Table("setting", "value", "from", box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    for one in found:
        table.add_row(one.name, one.value, one.origin, style="dim" if one.origin == "default" else None)
    Console().print(table)
    for warning in warnings:
        typer.secho(f"warning: {warning}", err=True, fg="yellow")
