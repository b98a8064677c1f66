"""`receiver jobs list`, `replay` and `reread` find what is wanted by moment, text and loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.cli import bare_environment, receiver_command
from tests.support.processes import live
from tests.support.submitter_cli import submitter
from tests.support.terminal import on_terminal


async def test_a_job_is_found_by_file_name_moment_and_loss(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    (tmp_path / "dog.jpg").write_bytes(picture_bytes(120, 160))
    sandbox = Sandbox(seed=1, turnaround_seconds=(0.05, 0.1), faults=Faults(per_provider={"apixo": {"fail": 1.0}}))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _):
        ids = {}
        for name, provider in (("cat", "pixelcut"), ("dog", "apixo")):
            sent = await submitter(receiver, "send", f"{name}.jpg", "--provider", provider, "--wait", "--json")
            ids[name] = sent.json["id"]
        environment = bare_environment(RECEIVER_DATA_DIR=str(receiver.data_dir))
        for arguments, expected in {
            (): {"cat", "dog"},
            ("DOG",): {"dog"},
            ("cat", "--since", "1h"): {"cat"},
            ("cat", "--until", "1h"): set(),
            ("--since", "2999-01-01"): set(),
            (ids["cat"],): {"cat"},
            ("cat", "--provider", "apixo"): set(),
            ("--lost", "--since", "1h"): set(),
        }.items():
            done = await receiver_command(
                "jobs", "list", *arguments, "--json", environment=environment, directory=tmp_path
            )
            assert done.status == 0, done.err
            assert {item["id"] for item in done.json["items"]} == {ids[name] for name in expected}, arguments


@pytest.mark.parametrize("command", [("jobs", "list"), ("replay",), ("reread",)])
@pytest.mark.parametrize("moment", ["yesterday", "9999999h", "1h30", ""])
async def test_a_moment_that_is_none_is_refused_with_how_to_write_it(
    command: tuple[str, ...], moment: str, tmp_path: Path
) -> None:
    done = await receiver_command(*command, "--since", moment, environment=bare_environment(), directory=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert "--since" in done.err and "1h" in done.err and "Traceback" not in done.err


async def test_explain_wraps_beside_the_moment_at_80_columns(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    async with live(tmp_path) as (receiver, _):
        sent = await submitter(receiver, "send", "cat.jpg", "--provider", "freepik", "--wait", "--json")
        environment = bare_environment(RECEIVER_DATA_DIR=str(receiver.data_dir))
        arguments = ("jobs", "explain", sent.json["id"])
        status, shown = await on_terminal("receiver", *arguments, environment=environment, directory=tmp_path)
    assert status == 0
    lines = shown.splitlines()
    entries = [line for line in lines[1:] if line.strip() and not line.startswith("nothing")]
    assert all(line[2:6].isdigit() or line.startswith((48 * " ", "→")) for line in entries), entries
    assert all(len(line.rstrip()) <= 80 for line in lines)
