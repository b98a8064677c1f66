"""`receiver`: the composition of its commands. Each is imported on use: neither another nor the help pays for it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from receiver.runtime.data_dir import DataUnusable
from receiver.settings import SettingsInvalid
from receiver.store.errors import StoreError
from submitter import shell
from submitter.environment import choose_color
from submitter.printing import CommandFailed
from submitter.shell import EXIT_STATUSES, Color, Quiet, Verbose, Verbosity, Version, with_joined_lines

_COMMANDS = {
    "demo": (
        "demo",
        "Upscale one picture with all five providers, stood in for on this machine: no key, no account, no cost.",
    ),
    "serve": ("serve", "Run the service: everything in one process, unless options say otherwise."),
    "work": (
        "work",
        "Run the private side: read callbacks, submit, poll, keep images, deliver. Requests are answered by `serve`.",
    ),
    "migrate": (
        "migrate",
        "Bring the database to the newest schema. A SQLite file is migrated by `serve` too, PostgreSQL only by this.",
    ),
    "transfer": ("transfer", "Copy the SQLite database into an empty PostgreSQL one. The receiver must not run."),
    "backup": ("backup", "Copy database, files and generated secrets into a new directory."),
    "restore": ("backup", "Put a backup into an empty data directory. The receiver must not run."),
    "config": ("config", "Print the settings in force, secrets masked, and where each came from."),
    "tunnel": ("tunnel", "Serve, get a public address, and use it for callbacks and inputs."),
    "listen": ("listen", "Forward events to an application, in order and signed as an endpoint's would be."),
    "trigger": ("trigger", "Have the sandbox of a running `receiver serve --sandbox` call back, and show its effect."),
    "doctor": ("doctor", "Find problems, and say what to do about them. Exit status 1 if something must be done."),
    "open": (
        "open:open_page",
        "Print a link that signs in to the dashboard, once and within two minutes; run it where the receiver runs.",
    ),
    "jobs": ("jobs", "List and explain jobs, and act on them."),
    "evidence": ("evidence", "Show callbacks, poll answers and submit answers as they came."),
    "events": ("events", "Show events: what subscribers are sent."),
    "providers": ("providers", "Show, pause and resume the providers of the running receiver."),
    "endpoints": ("endpoints", "List, add, test and change endpoints: where events go."),
    "deliveries": ("deliveries", "Show deliveries."),
    "replay": (
        "deliveries",
        "Deliver again, with the same event ids: one delivery, an endpoint's failures, or everything since a time.",
    ),
    "reread": (
        "reread",
        "Read evidence again: after an update that fixed a reader, or once a webhook secret was corrected.",
    ),
    "signature": ("signature", "Sign and verify webhooks."),
}
"""The module of each command, and its name there if that differs; its line of the help. In the order of the help."""


class _Imported(MutableMapping[str, Any]):
    """Commands by name; their modules are imported on access."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module, _, attribute = _COMMANDS[name][0].partition(":")
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
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


def _with_joined_help(command: Any) -> Any:
    command.help = with_joined_lines(command.help)
    for each in getattr(command, "commands", {}).values():
        _with_joined_help(each)
    return command


class Commands(TyperGroup):
    """The commands of `_COMMANDS`. Contexts and commands are click's, which newer versions of typer carry within."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Imported()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command as help and completion list it. The command to run comes from `resolve_command`."""
        return TyperCommand(cmd_name, help=_COMMANDS[cmd_name][1]) if cmd_name in _COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, self.commands[name] if name else None, rest


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
