"""Unusable files on disk: one line names the file, the problem and the remedy, and nothing is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from receiver.cli.sandbox_mark import SandboxMark
from receiver.runtime.data_dir import DataUnusable, prepare
from receiver.runtime.secrets import generated
from receiver.runtime.serving_lock import occupied
from receiver.store.database import open_database
from submitter.sandbox import test_picture as picture_bytes
from tests.support.cli import Done, bare_environment, receiver_command
from tests.support.hostile_shell import files_of, in_shell
from tests.support.processes import LiveReceiver, live, submit, wait_for_state
from tests.support.rows import execute

SERVE = ("serve", "--port", "0")
SECRETS = {"secret_key": "a" * 43, "api_token": "b" * 43, "notify_secret": "whsec_" + "c" * 40}


async def run(directory: Path, *arguments: str, data_dir: str = "data") -> Done:
    environment = bare_environment(RECEIVER_DATA_DIR=data_dir)
    return await receiver_command(*arguments, environment=environment, directory=directory)


def assert_reported(done: Done, *words: str) -> None:
    assert done.status == 1, done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert [word for word in words if word not in done.err] == [], done.err


@pytest.mark.sqlite(reason="a damaged file")
@pytest.mark.parametrize(
    "arguments", [SERVE, (*SERVE, "--sandbox"), ("migrate",), ("jobs", "list"), ("endpoints", "list")]
)
async def test_a_file_that_is_no_database(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "data").mkdir()
    path, content = tmp_path / "data" / "receiver.db", os.urandom(200_000)
    path.write_bytes(content)
    assert_reported(await run(tmp_path, *arguments), "data/receiver.db", "not a database", "restore a backup")
    assert path.read_bytes() == content
    assert not (tmp_path / "data" / "sandbox.json").exists()


@pytest.mark.sqlite(reason="a damaged file")
async def test_a_file_that_can_not_be_read_is_not_called_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "receiver.db"
    path.touch()
    done = await run(tmp_path, "migrate", "--check")
    assert (done.status, done.err) == (1, "") and "is not at the newest schema" in done.out
    path.write_bytes(os.urandom(20_000))
    done = await run(tmp_path, "migrate", "--check")
    assert_reported(done, "data/receiver.db", "not a database", "restore a backup")
    assert done.out == ""


@pytest.mark.sqlite(reason="a backup of the file")
async def test_a_pipe_in_place_of_a_backup_is_none(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    os.mkfifo(tmp_path / "copy" / "receiver.db")
    assert_reported(await run(tmp_path, "restore", "copy"), "copy holds no backup")


@pytest.mark.sqlite(reason="a damaged file")
async def test_a_database_that_is_damaged_deep_inside_does_not_start(tmp_path: Path) -> None:
    assert (await run(tmp_path, "migrate")).status == 0
    with (tmp_path / "data" / "receiver.db").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    for arguments in (SERVE, ("jobs", "list"), ("backup", "copy")):
        done = await run(tmp_path, *arguments)
        assert "Traceback" not in done.err
        assert done.err.splitlines()[-1].startswith("receiver: data/receiver.db: can't be used: database disk image is")
        assert done.status == 1
    assert not (tmp_path / "copy").exists()


@pytest.mark.sqlite(reason="a file; tests/receiver/store/test_migrations.py has PostgreSQL")
async def test_a_database_of_a_newer_version(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "receiver.db")
    await execute(database, "UPDATE alembic_version SET version_num = '9999'")
    await database.close()
    with pytest.raises(DataUnusable, match="not known to this version; install the version"):
        await open_database(tmp_path / "receiver.db")


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("{bad", "is not the JSON"),
        ("\x00", "is not the JSON"),
        ("{}", "lacks secret_key, api_token, notify_secret"),
        ("[]", "lacks"),
        (json.dumps({**SECRETS, "secret_key": ""}), "lacks secret_key"),
        (json.dumps({**SECRETS, "api_token": 5}), "lacks api_token"),
        (json.dumps({**SECRETS, "notify_secret": "short"}), "its notify_secret"),
    ],
)
def test_broken_secrets_are_reported_and_never_replaced(tmp_path: Path, content: str, wrong: str) -> None:
    path = tmp_path / "secrets.json"
    path.write_text(content)
    with pytest.raises(DataUnusable, match=f"secrets.json: {wrong}.*; restore it from a backup"):
        generated(tmp_path)
    assert path.read_text() == content


@pytest.mark.sqlite(reason="secrets are generated beside the file")
@pytest.mark.parametrize(("content", "wrong"), [("{bad", "is not the JSON"), ("{}", "lacks secret_key")])
async def test_broken_secrets_stop_the_start_and_doctor_says_so(tmp_path: Path, content: str, wrong: str) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "secrets.json"
    path.write_text(content)
    path.chmod(0o600)
    assert_reported(await run(tmp_path, *SERVE), "data/secrets.json", wrong, "backup")
    doctor = await run(tmp_path, "doctor", "--json")
    found = {check["check"]: check for check in doctor.json["items"]}["secrets"]
    assert (found["grade"], wrong in found["found"], "backup" in found["remedy"]) == ("fail", True, True)


@pytest.mark.parametrize("content", ["{bad", "[]"])
async def test_a_broken_mark_of_a_sandbox_names_none_that_runs(tmp_path: Path, content: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sandbox.json").write_text(content)
    assert_reported(await run(tmp_path, "trigger", "freepik", "completed"), "serve --sandbox")


@pytest.mark.sqlite(reason="the file can't be made")
@pytest.mark.parametrize("place", ["a_file", "a_file/below", "/proc"])
async def test_a_data_directory_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    """A file where it should be; /proc, where nobody can make a file, not even root."""
    (tmp_path / "a_file").write_text("mine")
    for arguments in (SERVE, (*SERVE, "--sandbox"), ("migrate",)):
        assert_reported(await run(tmp_path, *arguments, data_dir=place), place, "RECEIVER_DATA_DIR")
    assert (tmp_path / "a_file").read_text() == "mine"
    doctor = await run(tmp_path, "doctor", "--json", data_dir=place)
    found = {check["check"]: check for check in doctor.json["items"]}
    for check in ("disk", "database"):
        assert (found[check]["grade"], "RECEIVER_DATA_DIR" in found[check]["remedy"]) == ("fail", True)


def test_a_data_directory_is_made_for_its_owner_only_and_left_empty(tmp_path: Path) -> None:
    for _ in range(2):
        prepare(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("port", ["65536", "-1"])
@pytest.mark.parametrize("command", [("serve",), ("tunnel", "--public-url", "http://example.com")])
async def test_a_port_that_is_none(tmp_path: Path, command: tuple[str, ...], port: str) -> None:
    done = await run(tmp_path, *command, "--port", port)
    assert done.status == 2
    assert "Invalid value for '--port'" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("host", ["1.2.3.4", "no such host", "a" * 70 + ".example"])
async def test_a_host_that_is_not_ours(tmp_path: Path, host: str) -> None:
    assert_reported(await run(tmp_path, *SERVE, "--host", host), host, "give --host an address of this machine")


@pytest.mark.sqlite(reason="a damaged file")
async def test_a_start_that_failed_can_be_tried_again_at_once(tmp_path: Path) -> None:
    receiver = LiveReceiver(tmp_path / "data")
    receiver.data_dir.mkdir()
    (receiver.data_dir / "receiver.db").write_bytes(os.urandom(8192))
    await receiver.start(ready=False)
    assert receiver.process is not None
    assert await receiver.process.wait() == 1
    (receiver.data_dir / "receiver.db").unlink()
    await receiver.start()
    assert await receiver.stop() == 0


def test_a_lock_that_cannot_be_had_keeps_nobody_from_serving(tmp_path: Path) -> None:
    (tmp_path / "serving.lock").mkdir()  # as unusable as another user's
    with occupied(tmp_path) as by_others:
        assert by_others is False


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", '{"running": 1}', '{"running": [1]}', '{"running": [{}]}', '{"running": [{"pid": "x"}]}'],
)
def test_a_spoilt_mark_names_no_sandbox_that_runs(tmp_path: Path, content: str) -> None:
    (tmp_path / "sandbox.json").write_text(content)
    mark = SandboxMark(tmp_path)
    assert mark.there
    assert mark.read() is None


def test_a_server_without_a_sandbox_is_not_taken_for_one_that_had_its_number(tmp_path: Path) -> None:
    mark = SandboxMark(tmp_path)
    running = [{"pid": os.getpid(), "sandbox": "http://127.0.0.1:1", "receiver": "http://127.0.0.1:2"}]
    (tmp_path / "sandbox.json").write_text(json.dumps({"running": running}))
    assert mark.read() is not None
    mark.serves_no_sandbox()
    assert mark.there
    assert mark.read() is None


@pytest.mark.sqlite(reason="a backup of the file")
async def test_any_name_of_a_data_directory_can_be_backed_up(tmp_path: Path) -> None:
    name = "a#b 50%41x really? é"
    assert (await run(tmp_path, "migrate", data_dir=name)).status == 0
    done = await run(tmp_path, "backup", "copy", data_dir=name)
    assert done.status == 0, done.err
    assert (await run(tmp_path, "restore", "copy", data_dir=f"{name} again")).status == 0


@pytest.mark.sqlite(reason="a backup of the file")
async def test_a_backup_or_restore_on_a_full_disk_names_it_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        job = await submit(client, "freepik", picture_bytes(160, 120))
        await wait_for_state(client, job["id"], kept=True)
        backup = "$PROGRAM backup copy"
        for size in (0, 100_000):
            status, _, err = await in_shell(receiver, backup, program="receiver", prepare=files_of(size))
            assert (status, len(err.splitlines())) == (1, 1), err
            assert err.startswith("receiver: copy: ") and "file too large; raise the limit of a file's size" in err
            assert not list(tmp_path.glob("*copy*"))
        assert (await in_shell(receiver, backup, program="receiver"))[0] == 0
        restore = "RECEIVER_DATA_DIR=again $PROGRAM restore copy"
        status, _, err = await in_shell(receiver, restore, program="receiver", prepare=files_of(100_000))
        assert (status, len(err.splitlines())) == (1, 1), err
        assert "again" in err and "file too large" in err
        started = await in_shell(receiver, "RECEIVER_DATA_DIR=again $PROGRAM serve --port 0", program="receiver")
        assert (started[0], "a restore was not finished; run `receiver restore` again" in started[2]) == (1, True)
        assert not (tmp_path / "again" / "receiver.db").exists()
        assert (await in_shell(receiver, restore, program="receiver"))[0] == 0


@pytest.mark.sqlite(reason="secrets and the sandbox's mark are beside the file")
async def test_a_start_on_a_full_disk_names_the_file_and_leaves_no_half_of_it(tmp_path: Path) -> None:
    receiver = LiveReceiver(tmp_path / "unused")
    for command in ("serve --port 0", "serve --port 0 --sandbox", "migrate"):
        line = f"RECEIVER_DATA_DIR=full $PROGRAM {command}"
        status, _, err = await in_shell(receiver, line, program="receiver", prepare=files_of(0))
        assert (status, len(err.splitlines())) == (1, 1), err
        assert err.startswith("receiver: full/"), err
        left = {path.name for path in (tmp_path / "full").iterdir() if path.name.startswith((".s", "sec", "sand"))}
        assert left == set()
