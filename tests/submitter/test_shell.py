"""Both programs where the shell gives them little: output that can't be written, no home, signals, full disks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from submitter.printing import CommandFailed
from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.shell import explained
from tests.support.balancer import Balancer
from tests.support.hostile_shell import Terminal, files_of, in_shell
from tests.support.processes import live, wait_for_state
from tests.support.submitter_cli import pictures, started
from tests.support.waiting import eventually, patiently

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell runs the commands; Windows has none")


@pytest.fixture
def hearing_hangups() -> Iterator[None]:
    """Not as under `nohup`, where a program ignores them as this one does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.sqlite(reason="receiver commands that find its file")
async def test_an_output_that_can_not_be_written_is_named_and_so_is_what_was_sent(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(96, 64))
    async with live(tmp_path) as (receiver, sandbox), receiver.client() as client:
        for program, command in (("submitter", "providers"), ("receiver", "jobs list"), ("receiver", "--help")):
            status, _, err = await in_shell(receiver, f"$PROGRAM {command} >/dev/full", program=program)
            assert (status, len(err.splitlines())) == (1, 1), err
            assert err.startswith(f"{program}: standard output can't be written: no space left on device; free some")
        status, _, err = await in_shell(receiver, "$PROGRAM send cat.jpg --provider novita >/dev/full")
        (job,) = (await client.get("/v1/jobs")).json()["items"]
        assert (status, err.startswith(f"submitter: {job['id']} was sent, but standard output")) == (1, True)
        status, _, err = await in_shell(receiver, "$PROGRAM send cat.jpg --provider novita | true")
        assert (job["id"] in err, "was sent, but standard output" in err, "Exception" in err) == (False, True, False)
        assert len(sandbox.accepted()) <= 2


async def test_messages_that_nobody_can_read_end_no_command(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 2, picture_bytes(96, 64))
    async with live(tmp_path) as (receiver, sandbox):
        batch = "$PROGRAM batch in --provider freepik --out out --json"
        status, out, _ = await in_shell(receiver, f"{batch} 2>/dev/full")
        assert (status, json.loads(out)["succeeded"], len(sandbox.accepted())) == (0, 2, 2)
        assert (await in_shell(receiver, "$PROGRAM batch nothing --provider freepik 2>/dev/full"))[0] == 2
        assert (await in_shell(receiver, "$PROGRAM whoami <&- >&- 2>&-"))[0] == 0


async def test_a_full_disk_names_the_file_and_the_same_command_goes_on(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 2, picture_bytes(96, 64))
    async with live(tmp_path) as (receiver, sandbox):
        batch = "$PROGRAM batch in --provider novita --out out --json"
        status, out, _ = await in_shell(receiver, batch, prepare=files_of(8192))
        first = json.loads(out)["items"]
        assert (status, [item["state"] for item in first]) == (1, ["unsaved"] * 2)
        assert "out/photo-000.png: file too large; raise the limit of a file's size" in first[0]["reason"]
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".submitter-batch.jsonl"]
        assert (await in_shell(receiver, batch))[0] == 0
        assert len(sandbox.accepted()) == 2


def known_jobs(out: Path) -> int:
    """Count the jobs that a batch into *out* knows of: one that is interrupted before the answer names none."""
    journal = out / ".submitter-batch.jsonl"
    return journal.read_text().count('"job"') if journal.exists() else 0


@pytest.mark.usefixtures("hearing_hangups")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
async def test_every_signal_that_ends_a_command_is_an_interrupt(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    pictures(tmp_path / "in", 3, picture_bytes(96, 64))
    sandbox = Sandbox(seed=1, turnaround_seconds=(600, 600))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        running = await started(receiver, "batch", "in", "--provider", "freepik", "--out", "out")
        await eventually(lambda: known_jobs(tmp_path / "out") == 3)
        running.send_signal(number)
        _, err = await patiently(running.communicate())
        assert running.returncode == status
        assert "3 jobs go on at the receiver" in err.decode() and "submitter: interrupted" in err.decode()
        (job, *_) = (await client.get("/v1/jobs")).json()["items"]
        await wait_for_state(client, job["id"], "running")
        between = Balancer([receiver.url])
        async with between.serve() as url:
            arguments = ("send", "in/photo-001.jpg", "--provider", "freepik", "--wait")
            named = await started(receiver, *arguments, SUBMITTER_RECEIVER_URL=url)
            await eventually(lambda: any("/v1/jobs/job_" in path for _, path in between.requested))
            named.send_signal(number)
            _, err = await patiently(named.communicate())
        assert named.returncode == status
        assert "go on with `submitter wait job_" in err.decode()


def ignoring_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


async def test_in_the_background_of_a_script_sigterm_is_an_interrupt_too(tmp_path: Path) -> None:
    """Its SIGINT is ignored there, as a shell without job control has it."""
    pictures(tmp_path / "in", 1, picture_bytes(96, 64))
    sandbox = Sandbox(seed=1, turnaround_seconds=(600, 600))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _):
        command = "exec $PROGRAM batch in --provider freepik --out out"
        running = asyncio.create_task(
            in_shell(receiver, f"{command} & echo $! > pid; wait $!", prepare=ignoring_interrupts)
        )
        await eventually(lambda: known_jobs(tmp_path / "out") == 1)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        status, _, err = await running
        assert (status, "1 jobs go on at the receiver" in err) == (143, True)


@pytest.mark.sqlite(reason="the threads of its driver")
@pytest.mark.usefixtures("hearing_hangups")
async def test_two_interrupts_at_once_end_a_command_too(tmp_path: Path) -> None:
    """The second one comes before the first has been handled, and leaves the threads of the database."""
    async with live(tmp_path) as (receiver, _):
        (tmp_path / "cat.jpg").write_bytes(picture_bytes(96, 64))
        assert (await in_shell(receiver, "$PROGRAM send cat.jpg --provider freepik"))[0] == 0
        for numbers in ((signal.SIGINT, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)):
            following = await started(
                receiver, "events", "tail", "--after", "0", program="receiver", RECEIVER_DATA_DIR=str(receiver.data_dir)
            )
            assert following.stdout is not None
            await patiently(following.stdout.readline())
            for number in numbers:
                following.send_signal(number)
            await patiently(following.communicate())
            assert following.returncode in (0, -numbers[0], 128 + numbers[0], 128 + numbers[1])


async def test_a_prompt_is_interrupted_like_everything_else_and_nothing_is_no_token(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _):
        for key, status, says in (
            ("\x03", 130, "submitter: interrupted"),
            ("\x04", 2, "submitter: no token was given"),
        ):
            terminal = Terminal(receiver, f"$PROGRAM login {receiver.url}; echo status=$?")
            await terminal.until("API token: ")
            terminal.press(key)
            await terminal.until(f"status={status}")
            await terminal.end()
            assert says in terminal.shown


@pytest.mark.sqlite(reason="a backup of the file")
async def test_names_that_are_not_utf_8_are_sent_all_the_same(tmp_path: Path) -> None:
    names = [b"\xe4.jpg", "猫\n.jpg".encode()]
    (tmp_path / "in").mkdir()
    for number, name in enumerate(names):
        with open(os.path.join(os.fsencode(tmp_path), b"in", name), "wb") as file:
            file.write(picture_bytes(96, 64) + bytes([number]))
    async with live(tmp_path) as (receiver, sandbox):
        status, _, err = await in_shell(receiver, "$PROGRAM batch in --provider freepik --out out")
        assert (status, len(sandbox.accepted())) == (0, 2), err
        status, _, err = await in_shell(receiver, r"$PROGRAM send $(printf 'in/\344.jpg') --provider freepik --wait")
        assert status == 0, err
        line = r"$PROGRAM backup $(printf 'copy\377')"
        assert (await in_shell(receiver, line, program="receiver"))[0] == 0
        assert (tmp_path / "copy\udcff" / "receiver.db").exists()
        line = r"$PROGRAM trigger freepik completed --override $(printf 'a\377=b')"
        status, _, err = await in_shell(receiver, line, program="receiver")
        assert (status, "Traceback" in err, len(err.splitlines())) in {(1, False, 1), (2, False, 1)}, err


def test_the_first_of_several_errors_is_told_and_text_that_is_not_utf_8_is_a_wrong_usage() -> None:
    group = ExceptionGroup("several", [ExceptionGroup("within", [CommandFailed("the first", status=2)]), OSError()])
    assert (str(explained(group)), explained(group).status) == ("the first", 2)
    with pytest.raises(UnicodeEncodeError) as raised:
        "na\udcffme".encode()
    assert str(explained(raised.value)) == r"'na\udcffme' is not UTF-8; write it in UTF-8"
