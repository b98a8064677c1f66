"""`receiver config`: the settings in force, and where each came from."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from receiver.cli.settings_listing import in_force, misspelt, to_markdown
from receiver.settings import given, load, names_alone
from submitter.printing import Listing, print_json, print_table, say


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
    found, warnings = in_force(settings, each, names), [*names_alone(), *misspelt(names)]
    if as_json:
        items = [dataclasses.asdict(setting) for setting in found]
        print_json({"items": items, "warnings": warnings})
        return
    table = Listing("setting", "from", "value")
    for setting in found:
        table.add_row(setting.name, setting.origin, setting.value, style="dim" if setting.origin == "default" else "")
    print_table(table)
    for warning in warnings:
        say(f"warning: {warning}", err=True, fg="yellow")
