"""Programs that are interrupted while they begin."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.cli import bare_environment

_HOLDING = """
import signal, sys, importlib.abc

class Interrupts(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
program = sys.argv[2]
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
    out, err = await process.communicate()
    if process.returncode == 0:  # it needs no such module to print its version
        assert out.startswith(b"upscale-receiver")
    else:
        assert (process.returncode, err.decode()) == (130, f"{program}: interrupted\n")
