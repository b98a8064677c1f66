"""Every command of both programs with every argument and option, read from the programs themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from receiver.cli import cli as receiver_cli
from submitter.cli import cli as submitter_cli
from tests.support.forking import Program

PROGRAMS: Mapping[Program, typer.Typer] = {"receiver": receiver_cli, "submitter": submitter_cli}
_VALUES = ("", "\x1b[31m猫", "-1", "9" * 25)
"""What no argument and no option of any type takes, or what none should stumble over."""
_OF_NUMBERS = ("nan", "inf", "1e300")
_PLAUSIBLE = {
    "provider": "freepik",
    "name": "freepik",
    "number": "1",
    "state": "completed",
    "secret": "whsec_bm90aGluZw==",
}
_SKIPPED = ("install_completion", "show_completion", "help")
"""Options that typer brings; the first writes into the user's shell configuration."""


@dataclass(frozen=True)
class Parameter:
    """An argument or an option. `flag`: it takes no value."""

    name: str
    option: str | None
    flag: bool
    required: bool
    default: Any

    def written(self, value: str) -> list[str]:
        return [value] if self.option is None else [self.option] if self.flag else [f"{self.option}={value}"]

    def values(self, turn: int) -> Sequence[str]:
        """Two of the bad values, others at each *turn*; all of them with `EVERY_INPUT` set."""
        if self.flag:
            return ("",)
        values = _VALUES + (_OF_NUMBERS if isinstance(self.default, int | float) else ())
        if os.environ.get("EVERY_INPUT"):
            return values
        return [values[(2 * turn + n) % len(values)] for n in range(2)]


@dataclass(frozen=True)
class Command:
    """A command by its words, such as `endpoints add`."""

    program: Program
    words: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def plausible(self, *, but: Parameter | None = None) -> list[str]:
        """The required parameters with values that could be meant."""
        found = [
            parameter.written(_PLAUSIBLE.get(parameter.name, f"{parameter.name}-none"))
            for parameter in self.parameters
            if parameter.required and parameter is not but
        ]
        return [word for words in found for word in words]

    def rows(self) -> Iterator[list[str]]:
        """The words behind the program for each bad input: one at a time, all else as it could be meant."""
        if self.plausible():
            yield [*self.words]
        yield [*self.words, *self.plausible()]
        for turn, parameter in enumerate(self.parameters):
            for value in parameter.values(turn):
                yield [*self.words, *parameter.written(value), *self.plausible(but=parameter)]

    def short_row(self) -> list[str]:
        """The words as they could be meant, with `--json` where there is that."""
        as_json = ["--json"] if any(parameter.option == "--json" for parameter in self.parameters) else []
        return [*self.words, *self.plausible(), *as_json]


def commands(program: Program) -> list[Command]:
    """All commands of *program*, those of groups included."""
    return list(_walk(program, typer.main.get_command(PROGRAMS[program]), ()))


def program_options(program: Program) -> list[Parameter]:
    """The options before the command."""
    return _parameters(typer.main.get_command(PROGRAMS[program]))


def _walk(program: Program, found: Any, words: tuple[str, ...]) -> Iterator[Command]:
    if not hasattr(found, "commands"):
        yield Command(program, words, tuple(_parameters(found)))
        return
    for name in found.commands:
        yield from _walk(program, found.commands[name], (*words, name))


def _parameters(found: Any) -> list[Parameter]:
    return [
        Parameter(
            parameter.name,
            parameter.opts[0] if parameter.param_type_name == "option" else None,
            bool(getattr(parameter, "is_flag", False)),
            parameter.required,
            parameter.default,
        )
        for parameter in found.params
        if parameter.name not in _SKIPPED
    ]
