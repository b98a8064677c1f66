"""`receiver demo`, as a new user runs it."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.cli import PROGRAM, bare_environment
from tests.support.processes import ROOT
from tests.support.terminal import on_terminal
from tests.support.waiting import patiently

pytestmark = pytest.mark.sqlite(reason="a demo has a file of its own")


@pytest.mark.parametrize("options", [(), ("--faults",)], ids=["as it should be", "with faults"])
async def test_the_demo_ends_with_five_kept_and_verified_results(options: tuple[str, ...], tmp_path: Path) -> None:
    status, printed = await _demo(*options, directory=tmp_path)
    assert status == 0, printed
    assert "all 5 jobs succeeded" in re.sub(r"\s+", " ", printed)
    results = sorted((tmp_path / "upscaled").iterdir())
    assert [path.stem for path in results] == ["apixo", "freepik", "novita", "pixelcut", "upscayl"]
    for path in results:
        with Image.open(path) as image:
            assert image.width >= 1280


async def test_the_demo_takes_a_picture_of_ones_own(tmp_path: Path) -> None:
    Image.new("RGB", (100, 80), "teal").save(tmp_path / "mine.png")
    status, printed = await _demo("--image", "mine.png", "--out", "here", directory=tmp_path)
    assert status == 0, printed
    with Image.open(next((tmp_path / "here").glob("freepik.*"))) as image:
        assert image.size == (200, 160)


async def test_the_demo_says_what_is_wrong_with_a_file_that_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_text("not a picture")
    status, printed = await _demo("--image", "mine.png", directory=tmp_path)
    assert status == 2
    assert "mine.png" in printed
    assert "Traceback" not in printed


async def _demo(*options: str, directory: Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from receiver.cli import main; main()",
        "demo",
        *options,
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(directory)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await patiently(process.communicate())
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_at_80_columns_no_word_is_lost(tmp_path: Path) -> None:
    environment = bare_environment()
    status, shown = await on_terminal("receiver", "demo", environment=environment, directory=tmp_path)
    assert status == 0
    assert "2560×1920 10 credits verified" in shown
    assert "…" not in shown.rsplit("provider", 1)[1]


async def test_a_reader_that_goes_away_ends_it_without_a_traceback(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    with os.fdopen(reads, "rb") as reader, os.fdopen(writes, "wb") as writer:
        process = await asyncio.create_subprocess_exec(
            *(*PROGRAM, "demo"), env=bare_environment(), cwd=tmp_path, stdout=writer, stderr=asyncio.subprocess.PIPE
        )
        writer.close()
        await patiently(asyncio.to_thread(reader.readline))
    _, err = await patiently(process.communicate())
    assert (process.returncode, err.decode()) == (1, "")


async def test_an_interrupt_while_it_runs_is_one_line_and_130(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(*PROGRAM, "demo", "--faults"),
        env={**bare_environment(), "PYTHONUNBUFFERED": "1"},
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await patiently(process.stdout.readline())  # everything is up, and jobs are being sent
    process.send_signal(signal.SIGINT)
    _, err = await patiently(process.communicate())
    assert (process.returncode, err.decode()) == (130, "receiver: interrupted\n")
