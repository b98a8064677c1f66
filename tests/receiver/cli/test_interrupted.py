"""Programs that are interrupted while they begin."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.cli import bare_environment

_HOLDING = """
import signal, sys, importlib.abc

module, program = sys.argv[1:]

class Interrupts(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
sys.argv[1:] = ["--version"]
import importlib
importlib.import_module(program + ".__main__").main()
"""


@pytest.mark.parametrize("program", ["receiver", "submitter"])
@pytest.mark.parametrize("module", ["typer", "rich", "httpx", "pydantic"])
async def test_an_interrupt_while_a_program_is_imported_ends_it_with_a_line(
    program: str, module: str, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _HOLDING, module, program),
        env=bare_environment(),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert (process.returncode, err.decode()) == (130, f"{program}: interrupted\n")
