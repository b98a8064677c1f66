"""`receiver`: the composition of its commands. Each is imported on use, so that none pays for the others."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import typer
from typer.core import TyperGroup

from receiver.runtime.data_dir import DataUnusable
from receiver.settings import SettingsInvalid
from receiver.store.errors import StoreError
from submitter import shell
from submitter.environment import choose_color
from submitter.printing import CommandFailed
from submitter.shell import EXIT_STATUSES, Color, Quiet, Verbose, Verbosity, Version, with_joined_lines

_MODULES = {
    "demo": "demo",
    "serve": "serve",
    "work": "work",
    "migrate": "migrate",
    "transfer": "transfer",
    "backup": "backup",
    "restore": "backup",
    "config": "config",
    "tunnel": "tunnel",
    "listen": "listen",
    "trigger": "trigger",
    "doctor": "doctor",
    "open": "open:open_page",
    "jobs": "jobs",
    "evidence": "evidence",
    "events": "events",
    "providers": "providers",
    "endpoints": "endpoints",
    "deliveries": "deliveries",
    "replay": "deliveries",
    "reread": "reread",
    "signature": "signature",
}
"""The module of each command, in the order of the help, and its name there if that differs."""


class _Imported(MutableMapping[str, Any]):
    """Commands by name; their modules are imported on access."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module, _, attribute = _MODULES[name].partition(":")
            found = getattr(importlib.import_module(f"{__name__}.{module}"), attribute or name)
            holder = typer.Typer()
            if isinstance(found, typer.Typer):
                holder.add_typer(found, name=name)
            else:
                holder.command(name)(found)
            self._made[name] = _with_joined_help(typer.main.get_group(holder).commands[name])
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


def _with_joined_help(command: Any) -> Any:
    command.help = with_joined_lines(command.help)
    for each in getattr(command, "commands", {}).values():
        _with_joined_help(each)
    return command


class Commands(TyperGroup):
    """The commands of `_MODULES`. Contexts and commands are click's, which newer versions of typer carry within."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Imported()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


cli = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, epilog=EXIT_STATUSES)


@cli.callback()
def options(
    context: typer.Context,
    quiet: Quiet = False,
    verbose: Verbose = False,
    color: Color = "auto",
    version: Version = False,
) -> None:
    """Receive, verify, keep and pass on the results of AI upscaling APIs."""
    choose_color(color)
    context.obj = Verbosity(quiet, verbose)


def main() -> None:
    """Entry point."""
    shell.run(cli, "receiver", _explained)


def _explained(exc: BaseException) -> CommandFailed | None:
    if isinstance(exc, SettingsInvalid):
        return CommandFailed("these settings can't be used", status=2, code="invalid_settings", details=exc.problems)
    if isinstance(exc, DataUnusable | StoreError):
        return CommandFailed(str(exc), code="data_unusable")
    return None
