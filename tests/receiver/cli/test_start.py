"""The start of a command: it pays for its own modules, not for those of all others."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.cli import bare_environment, program, receiver_command

HEAVY = ("alembic", "receiver.app", "receiver.store", "sqlalchemy", "starlette", "submitter.sandbox", "uvicorn")


async def test_the_program_begins_without_its_commands(tmp_path: Path) -> None:
    loaded = f"import json, sys, receiver.cli; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = await program(sys.executable, "-c", loaded, environment=bare_environment(), directory=tmp_path)
    assert done.json == ["receiver.store"], "the package, for its errors"


async def test_an_unknown_command_is_answered_with_a_suggestion(tmp_path: Path) -> None:
    done = await receiver_command("job", environment=bare_environment(), directory=tmp_path)
    assert done.status == 2
    assert "Did you mean 'jobs'?" in done.err


async def test_the_help_lists_every_command_in_order(tmp_path: Path) -> None:
    done = await receiver_command("--help", environment=bare_environment(), directory=tmp_path)
    listed = done.out[done.out.index("Commands") :]
    places = [listed.index(f" {name} ") for name in ("demo", "serve", "migrate", "restore", "jobs", "replay", "reread")]
    assert places == sorted(places)
