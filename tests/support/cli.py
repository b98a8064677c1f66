"""`receiver …` as a user runs it: a process of its own, its output and its exit status."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import forking
from tests.support.processes import ROOT
from tests.support.waiting import patiently

PROGRAM = (sys.executable, "-c", "from receiver.cli import main; main()")


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def bare_environment(**settings: str) -> dict[str, str]:
    """This process's environment without any setting of the receiver, and with *settings*."""
    prefixes = ("RECEIVER_", "FREEPIK_", "APIXO_", "NOVITA_", "UPSCAYL_", "PIXELCUT_", "SUBMITTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **settings}


async def receiver_command(*arguments: str, environment: Mapping[str, str], directory: Path) -> Done:
    """Run `receiver` with *arguments* in *directory* and wait for its end."""
    done = forking.run("receiver", *arguments, environment=environment, directory=directory)
    status, out, err = await patiently(done)
    return Done(status, out.decode(), err.decode())


async def program(*command: str, environment: Mapping[str, str], directory: Path) -> Done:
    """Run *command* in *directory* and wait for its end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=dict(environment),
        cwd=directory,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await patiently(process.communicate())
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())
