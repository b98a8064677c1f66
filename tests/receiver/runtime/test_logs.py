"""Log output: a common form of all lines, with ids, and without secrets in the texts of libraries and failures."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest
from structlog.testing import capture_logs

from receiver.domain.tokens import Tokens
from receiver.runtime.logs import Lines
from receiver.runtime.loops import TaskPool
from receiver.runtime.terminal_lines import TerminalRenderer
from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.cli import bare_environment
from tests.support.engines import secrets_of
from tests.support.ports import free_port
from tests.support.processes import INTERPRETER, TOKEN, LiveReceiver, live, provider_environment, submit, wait_for_state
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually

CHATTER = """
import logging, sys
from receiver.runtime import logs
import structlog
logs.set_up("json")
log = structlog.get_logger("receiver.x")
url = "https://hooks.example.com/callbacks/freepik/job_1.freepik.abc.SECRET-TOKEN"
log.info("polled", job="job_1")
log.warning("went_wrong", job="job_1", detail=f"could not read {url}")
logging.getLogger("httpx").info("HTTP Request: POST %s", url)
logging.getLogger("sqlalchemy.pool").error("lost the connection to %s", url)
try:
    raise ValueError(f"about {url}")
except ValueError:
    logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
logging.getLogger("uvicorn.access").warning("POST %s", url)
"""


async def test_libraries_speak_in_our_form_and_nobody_prints_a_capability_url(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHATTER, env=bare_environment(), cwd=tmp_path, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    lines = [json.loads(line) for line in err.decode().splitlines()]
    assert [line["event"].split(" to ")[0] for line in lines] == [
        "polled",
        "went_wrong",
        "lost the connection",
        "Exception in ASGI application",
    ]
    assert lines[1]["detail"].endswith("/callbacks/freepik/[redacted]")
    assert lines[3]["error"] == "ValueError"
    assert b"SECRET-TOKEN" not in err


def lines_of(receiver: LiveReceiver) -> list[dict[str, object]]:
    return [json.loads(line) for line in receiver.log.splitlines()]


async def test_every_line_of_a_job_names_it_and_those_of_a_request_name_the_request(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, sandbox), receiver.client() as client:
        job = await submit(client, "freepik", picture_bytes(160, 120))
        await wait_for_state(client, job["id"], kept=True)
        path = (sandbox.accepted("freepik")[0].callback_url or "").removeprefix(receiver.url)
        refused = await client.post(path, content=b"{}", headers={"x-request-id": "from-the-proxy.1"})
        assert refused.status_code == 401
        odd = await client.post(path, content=b"{}", headers={"x-request-id": "bad id"})
        assert odd.status_code == 401

        def refusals() -> list[dict[str, object]]:
            return [line for line in lines_of(receiver) if line["event"] == "callback_refused"]

        await eventually(lambda: len(refusals()) == 2)
        assert refusals()[0]["request_id"] == "from-the-proxy.1"
        assert str(refusals()[1]["request_id"]).startswith("req_")
        assert {line["job"] for line in refusals()} == {job["id"]}

        named = await client.get("/v1/jobs", headers={"x-request-id": "mine"})
        assert named.headers["x-request-id"] == "mine"
        first, second = [(await client.get("/healthz")).headers["x-request-id"] for _ in range(2)]
        assert first.startswith("req_") and first != second
    about = {"job_running", "job_succeeded", "image_kept", "callback", "callback_refused"}
    reported = [line for line in lines_of(receiver) if line["event"] in about]
    assert {str(line["event"]) for line in reported} >= {"callback", "image_kept", "callback_refused"}
    assert {line["job"] for line in reported} == {job["id"]}
    assert all(line["request_id"] for line in reported if str(line["event"]).startswith("callback"))
    assert all(line["timestamp"] and line["level"] for line in lines_of(receiver))
    assert TOKEN not in receiver.log
    assert path.rpartition("/")[2] not in receiver.log


async def test_a_failed_delivery_is_one_line_with_its_job(tmp_path: Path) -> None:
    async with (
        live(tmp_path, environment={"RECEIVER_RETRY_SCHEDULE": "0"}) as (receiver, _),
        receiver.client() as client,
    ):
        job = await submit(
            client, "freepik", picture_bytes(160, 120), notify_url=f"http://127.0.0.1:{free_port()}/closed"
        )
        await wait_for_state(client, job["id"])

        def failed() -> list[dict[str, object]]:
            return [line for line in lines_of(receiver) if line["event"] == "delivery_unsuccessful"]

        await eventually(lambda: bool(failed()), what=lambda: receiver.log)
        assert failed()[0]["job"] == job["id"]
        assert failed()[0]["type"] == "job.succeeded"


async def test_work_that_fails_names_its_job() -> None:
    async def fail() -> None:
        raise ValueError("a bug")

    pool = TaskPool(1)
    with capture_logs() as lines:
        pool.start(fail(), name="poll job_1", job="job_1")
        await pool.shutdown(grace_seconds=1)
        await eventually(lambda: bool(lines))
    assert [(line["event"], line["job"]) for line in lines] == [("work_failed", "job_1")]
    assert not pool.busy


async def test_lines_for_people_are_no_json(tmp_path: Path) -> None:
    async with live(tmp_path, environment={"RECEIVER_LOG_FORMAT": "text"}) as (receiver, _):
        pass
    assert "serving" in receiver.log
    assert "{" not in receiver.log


class Speechless(LiveReceiver):
    """Whoever read what it prints is gone."""

    program = INTERPRETER

    def output(self) -> BinaryIO:
        reading, writing = os.pipe()
        os.close(reading)
        return os.fdopen(writing, "wb")


async def test_a_log_that_cannot_be_written_keeps_nobody_from_an_answer_or_a_provider_from_its_pause(
    tmp_path: Path,
) -> None:
    sandbox = Sandbox(faults=Faults(bad_key=1.0))
    async with sandbox.serve() as origin:
        wiring = provider_environment(sandbox.base_urls(origin))
        receiver = Speechless(tmp_path / "data", wiring)
        await receiver.start()
        try:
            async with receiver.client() as client:
                for _ in range(5):
                    job = await submit(client, "novita", picture_bytes(64, 64))

                async def paused() -> bool:
                    shown = (await client.get("/v1/providers")).json()["items"]
                    return any(item["paused"] for item in shown if item["name"] == "novita")

                await eventually(paused)
                await asyncio.sleep(0.5)
                assert 1 <= sandbox.calls("novita") <= 2
                tokens = Tokens([secrets_of(tmp_path / "data")["secret_key"]])
                forged = f"/callbacks/freepik/{tokens.callback(job['id'], 'freepik')}"
                assert (await client.post(forged, content=b"{}")).status_code == 401
        finally:
            assert await receiver.stop() == 0


class Unread(LiveReceiver):
    """Nobody reads what it prints, as behind a paused pager or a log driver that hangs."""

    program = INTERPRETER

    reading = -1

    def output(self) -> BinaryIO:
        self.reading, writing = os.pipe()
        return os.fdopen(writing, "wb")


async def test_a_log_that_nobody_reads_stops_nothing_and_its_lines_are_counted(tmp_path: Path) -> None:
    receiver = Unread(tmp_path / "data", {"FREEPIK_WEBHOOK_SECRET": "a-secret-of-the-tests"})
    await receiver.start()
    try:
        tokens = Tokens([secrets_of(tmp_path / "data")["secret_key"]])
        forged = f"/callbacks/freepik/{tokens.callback('job_' + '0' * 26, 'freepik')}"

        async def dropped() -> float:
            shown = (await client.get("/metrics")).text
            return float(re.findall(r"^receiver_log_lines_dropped_total (\S+)$", shown, re.M)[0])

        async with receiver.client() as client:
            assert await dropped() == 0
            for _ in range(200):
                answers = await asyncio.gather(*(client.post(forged, content=b"{}") for _ in range(20)))
                assert {answer.status_code for answer in answers} == {401}
                if await dropped() > 0:
                    break
            assert await dropped() > 0
            assert (await client.get("/healthz")).status_code == 200
        assert await receiver.stop() == 0
    finally:
        await receiver.kill()
        os.close(receiver.reading)


async def test_what_is_dropped_are_whole_lines() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb", buffering=0) as reader:
        lines = Lines(stream)
        for n in range(20):
            lines.warning(f"{n} " + "x" * 40_000)
        assert lines.dropped > 0
        seen = b""
        while seen.count(b"\n") < 20 - lines.dropped:
            seen += await asyncio.to_thread(reader.read, 65536)
    numbers = [int(line.split()[0]) for line in seen.decode().splitlines()]
    assert numbers == sorted(numbers)
    assert len(seen) == sum(len(f"{n} ") + 40_001 for n in numbers), "no line is cut"


async def test_without_any_standard_error_it_serves_and_ends_well(tmp_path: Path) -> None:
    class Closed(LiveReceiver):
        @property
        def program(self) -> Sequence[str]:
            close = "import os; os.close(2); import sys; sys.stderr = None; "
            return (sys.executable, "-c", f"{close}from receiver.cli import main; main()")

    receiver = Closed(tmp_path / "data")
    await receiver.start()
    async with receiver.client() as client:
        assert (await client.get("/healthz")).status_code == 200
    assert await receiver.stop() == 0


BY_THE_THOUSAND = """
import sys
from receiver.runtime import logs
import structlog
logs.set_up(sys.argv[1], level=sys.argv[2])
log = structlog.get_logger("receiver.x")
rows = [("job_1", None), ('quoted "\\\\" and \\n', "\\u00e9\\u2028")]
logs.InfoLines(log, "settled", "job", "error").write(rows)
for job, error in rows:
    log.info("settled", job=job, error=error)
"""


@pytest.mark.parametrize(("style", "level"), [("json", "info"), ("text", "info"), ("json", "warning")])
async def test_lines_that_are_written_many_at_a_time_are_those_that_a_logger_writes(
    style: str, level: str, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", BY_THE_THOUSAND, style, level),
        env=bare_environment(),
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    lines = re.sub(rb"\d{4}-\d\d-\d\dT[\d:.]+Z|\d\d:\d\d:\d\d", b"(time)", err).splitlines()
    assert len(lines) == (0 if level == "warning" else 4)
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


async def test_on_a_terminal_lines_are_short_and_say_what_came_and_what_left(tmp_path: Path) -> None:
    text = {"RECEIVER_LOG_FORMAT": "text"}
    async with Subscriber().serve() as application, live(tmp_path, environment=text) as (receiver, _):
        async with receiver.client() as client:
            endpoint = (await client.post("/v1/endpoints", json={"url": f"{application}/hook"})).json()
            job = await submit(client, "freepik", picture_bytes(160, 120))
            await wait_for_state(client, job["id"], kept=True)
            await eventually(lambda: "delivered job.images_kept" in receiver.log)
        lines = [line[10:] for line in receiver.log.splitlines()]
    assert f"-->  callback freepik COMPLETED {job['id']}" in lines
    assert f"<--  delivered job.succeeded {job['id']} to {endpoint['id']}, 200" in lines
    assert not any("\x1b" in line or "{" in line for line in lines)


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"FORCE_COLOR": "1"}])
async def test_plain_output_has_no_colours_and_control_characters_are_escaped(
    variables: dict[str, str], tmp_path: Path
) -> None:
    script = (
        "from receiver.runtime import logs; import structlog; logs.set_up('text');"
        "structlog.get_logger('x').warning('submit_unsuccessful', job='job_1', reason='a\\x1b[2Jb\\nc')"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script),
        env={**bare_environment(), **variables},
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    coloured = variables == {"FORCE_COLOR": "1"}
    assert err.count(b"\n") == 1 and b"a\\x1b[2Jb\\nc" in err and b"submit unsuccessful: job_1" in err
    assert (b"\x1b[33m" in err, b"\x1b" in err) == (coloured, coloured)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            {"event": "image_kept", "job": "job_1", "n": 0, "bytes": 915_713, "width": 3840, "height": 2880},
            "     image 0 kept job_1, 3840×2880, 915.7 kB",
        ),
        ({"event": "image_kept", "job": "job_1", "n": 1, "bytes": None, "width": None}, "     image 1 kept job_1"),
        (
            {"event": "callback_read", "provider": "novita", "status": None, "job": "job_1"},
            "-->  callback novita job_1",
        ),
        ({"event": "callback_refused", "provider": "novita", "job": "job_1"}, "-->  callback novita job_1 refused"),
        (
            {"event": "callback", "provider": "novita", "job": None, "verdict": "bad token"},
            "-->  callback novita: bad token",
        ),
    ],
)
def test_a_line_on_a_terminal_leaves_out_what_is_not_known(line: dict[str, object], shown: str) -> None:
    renderer = TerminalRenderer(on_terminal=False)
    assert renderer(None, "info", {**line, "level": "info"}).removeprefix("          ") == shown
