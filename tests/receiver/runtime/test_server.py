"""`receiver serve`: how it starts, how it stops, and what it shows to whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from submitter.sandbox import API_KEYS
from submitter.sandbox import test_picture as picture_bytes
from tests.support.cli import PROGRAM, Done, bare_environment, receiver_command
from tests.support.ports import free_port
from tests.support.processes import LiveReceiver, is_ready, live, submit, wait_for_state
from tests.support.sandboxed import sandboxed
from tests.support.waiting import eventually, patiently


async def test_sigterm_ends_it_with_streams_open_and_calls_hanging(tmp_path: Path) -> None:
    called = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        called.set()
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0, limit=1 << 20)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    environment = {"FREEPIK_BASE_URL": url, "FREEPIK_API_KEY": API_KEYS["freepik"]}
    receiver = LiveReceiver(tmp_path / "data", environment)
    async with server:
        await receiver.start()
        async with receiver.client() as client:
            job = await submit(client, "freepik", picture_bytes(160, 120))
            await patiently(called.wait())
            await wait_for_state(client, job["id"], "sending")
            async with client.stream("GET", "/v1/events", headers={"accept": "text/event-stream"}) as stream:
                assert stream.headers["content-type"].startswith("text/event-stream")
                lines = stream.aiter_lines()
                await anext(lines)
                slow_writer = await _half_a_callback(receiver.port)
                status = await receiver.stop()
                slow_writer.close()
        assert status == 0
        await receiver.start()
        async with receiver.client() as client:
            assert (await wait_for_state(client, job["id"], "unconfirmed"))["state"] == "unconfirmed"
        await receiver.stop()


async def _half_a_callback(port: int) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    return writer


async def test_ctrl_c_is_a_clean_end_too(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _):
        assert receiver.process is not None
        os.kill(receiver.process.pid, 2)
        assert await patiently(receiver.process.wait()) == 0


async def test_a_taken_port_is_reported_in_one_line(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _):
        environment = bare_environment(RECEIVER_DATA_DIR=str(tmp_path / "other"))
        done = await receiver_command(
            "serve", "--port", str(receiver.port), environment=environment, directory=tmp_path
        )
        assert done.status == 1
        assert f"port {receiver.port}: Address already in use; try another --port" in done.err
        assert "Traceback" not in done.err


@pytest.mark.sqlite(reason="secrets are generated beside the file")
@pytest.mark.parametrize("terminal", [True, False])
async def test_a_generated_token_is_shown_on_a_terminal_and_nowhere_else(tmp_path: Path, terminal: bool) -> None:
    port = free_port()
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            "serve",
            "--port",
            str(port),
            env=bare_environment(),
            cwd=tmp_path,
            stdout=file,
            stderr=theirs if terminal else file,
        )
    os.close(theirs)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        await eventually(lambda: is_ready(client))
        token = json.loads((tmp_path / "data" / "secrets.json").read_text())["api_token"]
        answer = await client.get("/v1/jobs", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 200
    shown = await asyncio.to_thread(os.read, ours, 65536) if terminal else log.read_bytes()
    process.terminate()
    assert await process.wait() == 0
    os.close(ours)
    assert (token.encode() in shown) == terminal
    assert token not in log.read_text()
    if not terminal:
        assert all(json.loads(line)["event"] for line in log.read_text().splitlines())


async def test_serve_with_a_sandbox_needs_no_settings_and_settles_jobs_of_all_providers(tmp_path: Path) -> None:
    async with sandboxed(tmp_path) as client:
        jobs = [await submit(client, name, picture_bytes(160, 120)) for name in API_KEYS]
        for job in jobs:
            assert (await wait_for_state(client, job["id"], kept=True))["state"] == "succeeded"
        mark = tmp_path / "data" / "sandbox.json"
        assert mark.stat().st_mode & 0o777 == 0o600
        (running,) = json.loads(mark.read_text())["running"]
        assert running["receiver"] == str(client.base_url).rstrip("/")
    assert json.loads(mark.read_text()) == {}


@pytest.mark.sqlite(reason="the mark of a sandbox guards a file")
async def test_a_sandbox_never_touches_the_jobs_of_real_providers(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        await submit(client, "freepik", picture_bytes(160, 120))
    environment = bare_environment(RECEIVER_DATA_DIR=str(receiver.data_dir))
    done = await receiver_command("serve", "--sandbox", "--port", "0", environment=environment, directory=tmp_path)
    assert done.status == 2
    assert "holds jobs of real providers" in done.err
    assert not (receiver.data_dir / "sandbox.json").exists()
    with contextlib.closing(sqlite3.connect(receiver.data_dir / "receiver.db")) as database:
        assert database.execute("SELECT count(*) FROM jobs").fetchone() == (1,)


@pytest.mark.sqlite(reason="two servers on one file, and its backup")
async def test_two_on_one_data_directory_are_reported_and_neither_end_takes_the_other_away(tmp_path: Path) -> None:
    async def triggered() -> tuple[int, str]:
        done = await receiver_command(
            "trigger", "freepik", "completed", environment=bare_environment(), directory=tmp_path
        )
        return done.status, done.err

    def warned(log: Path) -> list[str]:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        return [line["effect"] for line in lines if line["event"] == "data_directory_shared"]

    logs = [tmp_path / name for name in ("first", "second", "third", "fourth")]
    async with sandboxed(tmp_path, log=logs[0]):
        async with sandboxed(tmp_path, log=logs[1]):
            assert await triggered() == (0, "")
        assert await triggered() == (0, "")
        async with sandboxed(tmp_path, log=logs[2], end=signal.SIGKILL):
            assert await triggered() == (0, "")
        assert await triggered() == (0, "")
    async with sandboxed(tmp_path, log=logs[3]):
        backup = await receiver_command(
            "backup", str(tmp_path / "copy"), environment=bare_environment(), directory=tmp_path
        )
        assert backup.status == 0, backup.err
    assert [len(warned(log)) for log in logs] == [0, 1, 1, 0]
    assert "another receiver serves it too" in warned(logs[1])[0]
    assert not (tmp_path / "copy" / "serving.lock").exists()


async def test_commands_beside_a_sandbox_judge_addresses_and_providers_as_it_does(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/hook"
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    taken = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"

    async def command(*arguments: str) -> Done:
        return await receiver_command(*arguments, environment=bare_environment(), directory=tmp_path)

    async with server, sandboxed(tmp_path) as client:
        assert (await client.post("/v1/endpoints", json={"url": taken})).status_code == 201
        added = await command("endpoints", "add", url, "--json")
        assert added.status == 0, added.err
        disabled = await command("endpoints", "disable", added.json["id"])
        assert disabled.status == 0, disabled.err
        doctor = await command("doctor", "--json")
        assert doctor.status == 0, doctor.out
        checks = {check["check"]: check["grade"] for check in doctor.json["items"]}
        assert {checks[f"{name} key"] for name in ("freepik", "apixo", "novita", "upscayl")} == {"ok"}
    assert (await command("endpoints", "add", url)).status == 0
    elsewhere = await receiver_command(
        "endpoints", "add", url, environment=bare_environment(RECEIVER_DATA_DIR="other"), directory=tmp_path
    )
    assert elsewhere.status == 1
    assert "must not be reached" in elsewhere.err


class OutOfThreads(LiveReceiver):
    """From the moment that the file `full` is there, the system gives it no more threads."""

    @property
    def program(self) -> Sequence[str]:
        full = str(self.data_dir.parent / "full")
        code = (
            "import os, threading\n"
            "start = threading.Thread.start\n"
            "def limited(self):\n"
            f"    if os.path.exists({full!r}):\n"
            '        raise RuntimeError("can\'t start new thread")\n'
            "    start(self)\n"
            "threading.Thread.start = limited\n"
            "from receiver.cli import main\n"
            "main()\n"
        )
        return (sys.executable, "-c", code)


async def test_sigterm_ends_it_at_the_systems_limit_of_threads(tmp_path: Path) -> None:
    receiver = OutOfThreads(tmp_path / "data")
    await receiver.start()
    (tmp_path / "full").touch()
    async with receiver.client() as client:
        notify_url = "https://subscriber.invalid/hook"
        for _ in range(5):
            answer = await client.post("/v1/endpoints", json={"url": notify_url})
            assert answer.status_code in (201, 503)
        assert (await client.get("/healthz")).status_code == 200
    assert await receiver.stop() == 0
