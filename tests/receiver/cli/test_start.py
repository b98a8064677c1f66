"""The start of a command: it pays for its own modules, not for those of all others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from receiver.cli import cli
from tests.support.cli import bare_environment, program, receiver_command

HEAVY = ("alembic", "receiver.app", "receiver.store", "sqlalchemy", "starlette", "submitter.sandbox", "uvicorn")


async def test_the_program_begins_without_its_commands(tmp_path: Path) -> None:
    loaded = f"import json, sys, receiver.cli; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = await program(sys.executable, "-c", loaded, environment=bare_environment(), directory=tmp_path)
    assert done.json == ["receiver.store"], "the package, for its errors"


@pytest.mark.parametrize("words", [["--help"], ["--version"], []])
async def test_the_help_is_shown_without_the_commands(words: list[str], tmp_path: Path) -> None:
    script = f"""
import atexit, sys
from receiver.cli import main
atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules]))
sys.argv = ["receiver", *{words}]
main()
"""
    done = await program(sys.executable, "-c", script, environment=bare_environment(), directory=tmp_path)
    assert done.out.splitlines()[-1] == "['receiver.store']", done.out + done.err


def test_the_help_has_the_first_words_of_every_command() -> None:
    group: Any = typer.main.get_command(cli)
    listed = {name: group.get_command(typer.Context(group), name).help for name in group.commands}
    assert listed == {name: command.help.partition("\n\n")[0] for name, command in group.commands.items()}


async def test_an_unknown_command_is_answered_with_a_suggestion(tmp_path: Path) -> None:
    done = await receiver_command("job", environment=bare_environment(), directory=tmp_path)
    assert done.status == 2
    assert "Did you mean 'jobs'?" in done.err


async def test_the_help_lists_every_command_in_order(tmp_path: Path) -> None:
    done = await receiver_command("--help", environment=bare_environment(), directory=tmp_path)
    listed = done.out[done.out.index("Commands") :]
    places = [listed.index(f" {name} ") for name in ("demo", "serve", "migrate", "restore", "jobs", "replay", "reread")]
    assert places == sorted(places)
