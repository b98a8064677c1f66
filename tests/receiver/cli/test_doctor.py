"""`receiver doctor`: a healthy installation has nothing to complain of; each seeded fault is found with its remedy."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from receiver.cli.checks import examine
from receiver.cli.findings import Finding, healthy, to_json
from receiver.runtime.server import listen, origin_of, running, server
from receiver.settings import given, load
from receiver.store.database import open_database
from submitter.sandbox import Sandbox
from tests.support.cli import Done, bare_environment, receiver_command
from tests.support.engines import database_of
from tests.support.ports import free_port
from tests.support.processes import LiveReceiver, provider_environment
from tests.support.rows import execute

GOOD_TOKEN = "a-token-that-is-long-enough-for-anybody"


@contextlib.asynccontextmanager
async def installation(tmp_path: Path) -> AsyncIterator[LiveReceiver]:
    async with Sandbox(seed=1).serve() as origin:
        settings = {**provider_environment(Sandbox.base_urls(origin)), "RECEIVER_API_TOKENS": GOOD_TOKEN}
        receiver = LiveReceiver(tmp_path / "data", settings)
        await receiver.start()
        try:
            yield receiver
        finally:
            await receiver.stop()


@contextlib.asynccontextmanager
async def in_front(answer: Callable[[Request], Response]) -> AsyncIterator[str]:
    """Somebody else at the public URL."""

    async def handle(request: Request) -> Response:
        return answer(request)

    listener = listen("127.0.0.1", 0)
    app = Starlette(routes=[Route("/{path:path}", handle, methods=["GET", "HEAD", "POST"])])
    made = server(app, on_stop=lambda: None)
    made.config.date_header = False
    async with running(made, listener):
        yield origin_of("127.0.0.1", listener)


async def doctor(receiver: LiveReceiver, *arguments: str, **settings: str) -> Done:
    environment = {**receiver.full_environment(), "SUBMITTER_RECEIVER_URL": receiver.url, **settings}
    return await receiver_command("doctor", *arguments, environment=environment, directory=receiver.data_dir.parent)


def complaints(done: Done) -> dict[str, tuple[str, str, str]]:
    """check: (grade, what was found, the remedy), of everything that is not ok."""
    items = done.json["items"]
    return {
        check["check"]: (check["grade"], check["found"], check["remedy"]) for check in items if check["grade"] != "ok"
    }


async def examined(receiver: LiveReceiver, monkeypatch: pytest.MonkeyPatch, **settings: str) -> list[Finding]:
    """The findings without the command around them, which a process for each fault would make slow."""
    with monkeypatch.context() as patch:
        for name, value in {**receiver.full_environment(), **settings}.items():
            patch.setenv(name, value)
        patch.chdir(receiver.data_dir.parent)
        return [finding async for finding in examine(*load(), given())]


@pytest.mark.sqlite(reason="the findings about its file and its generated secrets")
async def test_a_healthy_installation_and_eighteen_seeded_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with installation(tmp_path) as receiver:
        done = await doctor(receiver, "--receiver", receiver.url, "--json")
        assert done.status == 0, done.out + done.err
        # The two that are always so in a sandbox on one machine: no TLS, and no balance call in the stand-in.
        assert set(complaints(done)) <= {"TLS", "pixelcut key"}
        checks = {check["check"] for check in done.json["items"]}
        expected = {"server", "lag", "settings", "secrets", "disk", "database", "public URL", "clock", "freepik key"}
        assert expected <= checks

        async def found(check: str, grade: str, what: str, remedy: str, **settings: str) -> None:
            findings = await examined(receiver, monkeypatch, **settings)
            reported = {(check.check, check.grade.value): check for check in findings}
            assert (check, grade) in reported, findings
            assert what in reported[check, grade].found
            assert remedy in reported[check, grade].remedy
            assert healthy(findings) == (grade == "warn")
            assert GOOD_TOKEN not in to_json(findings)
            assert "/callbacks/freepik/" not in to_json(findings)

        await found(
            "settings", "warn", "RECEIVER_PUBLICURL is not a known setting", "correct or remove", RECEIVER_PUBLICURL="x"
        )
        await found("secrets", "warn", "RECEIVER_API_TOKENS", "use a long one", RECEIVER_API_TOKENS="12345678")
        await found("freepik settings", "warn", "hints", "developer dashboard", FREEPIK_WEBHOOK_SECRET="")
        await found("freepik key", "fail", "refused (http_401)", "set FREEPIK_API_KEY", FREEPIK_API_KEY="wrong-key")
        dead = f"http://127.0.0.1:{free_port()}"
        await found("novita key", "fail", "no connection", "check NOVITA_BASE_URL", NOVITA_BASE_URL=dead)
        await found("public URL", "fail", "gets no answer", "start `receiver serve`", RECEIVER_PUBLIC_URL=dead)
        await found("public URL", "warn", "not set", "receiver tunnel", RECEIVER_PUBLIC_URL="")

        hour_ago = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
        fronts: list[tuple[Callable[[Request], Response], str, str, str]] = [
            (
                lambda r: RedirectResponse("https://www.example.com/x"),
                "public URL",
                "redirected",
                "https://www.example.com",
            ),
            (lambda r: PlainTextResponse("who?", 404), "public URL", "another server", "SECRET_KEYS"),
            (lambda r: PlainTextResponse("login", 401), "public URL", "refuses callbacks", "without a login"),
            (lambda r: PlainTextResponse("<b>ok</b>"), "public URL", "rewrites", "interstitial"),
            (lambda r: PlainTextResponse("ok\n", headers={"date": hour_ago}), "clock", "s ahead of", "timedatectl"),
        ]
        for answer, check, what, remedy in fronts:
            async with in_front(answer) as url:
                await found(check, "fail", what, remedy, RECEIVER_PUBLIC_URL=url)

        (receiver.data_dir / "secrets.json").chmod(0o644)
        await found("secrets", "fail", "read by others", "chmod 600")
        (receiver.data_dir / "secrets.json").chmod(0o600)

        with contextlib.closing(sqlite3.connect(receiver.data_dir / "receiver.db")) as database:
            values = "'ep_1', ?, '[]', '[]', '', 1, '[]', 15, 10, 0"
            columns = "id, url, event_types, providers, description, enabled, secrets, timeout_seconds, concurrency"
            database.execute(f"INSERT INTO endpoints ({columns}, created_at) VALUES ({values})", (f"{dead}/hook",))
            database.commit()
        await found("endpoint ep_1", "fail", "takes no connection", "disable the endpoint")
        await found("endpoint ep_1", "fail", "must not be reached", "ALLOW_NETWORKS", RECEIVER_ALLOW_NETWORKS="")

        await receiver.stop()
        with contextlib.closing(sqlite3.connect(receiver.data_dir / "receiver.db")) as database:
            database.execute("UPDATE alembic_version SET version_num = 'older'")
            database.commit()
        await found("database", "fail", "schema", "receiver migrate")
        with (receiver.data_dir / "receiver.db").open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 8192)
        await found("database", "fail", "receiver.db", "restore a backup")


async def test_a_certificate_that_nobody_vouches_for_is_reported(tmp_path: Path, self_signed: Path) -> None:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listening = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
    async with listening:
        url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        done = await doctor(LiveReceiver(tmp_path / "data"), "--json", RECEIVER_PUBLIC_URL=url)
    assert done.status == 1
    grade, what, remedy = complaints(done)["TLS"]
    assert (grade, "not valid" in what, "public authority" in remedy) == ("fail", True, True)


async def test_settings_that_cannot_be_used_are_findings_too(tmp_path: Path) -> None:
    done = await doctor(LiveReceiver(tmp_path / "data"), RECEIVER_CONFIRM="maybe", FREEPIK_RATE="often")
    assert done.status == 1
    assert "RECEIVER_CONFIRM" in done.out
    assert "FREEPIK_RATE: write it as count/seconds" in done.out
    assert not (tmp_path / "data").exists()


async def test_money_is_spent_only_when_asked(tmp_path: Path) -> None:
    sandbox = Sandbox(seed=1)
    async with sandbox.serve() as origin:
        settings = provider_environment(Sandbox.base_urls(origin))
        receiver = LiveReceiver(tmp_path / "data", settings)
        await doctor(receiver, "--json")
        assert sandbox.accepted() == []
        done = await doctor(receiver, "--json", "--spend")
        assert {task.provider for task in sandbox.accepted()} >= {"freepik", "upscayl", "pixelcut"}
        spent = {check["check"]: check["grade"] for check in done.json["items"] if check["check"].endswith(" task")}
        assert spent["freepik task"] == "ok"
        assert spent["apixo task"] == "warn"


def beside(receiver: LiveReceiver, **settings: str) -> dict[str, str]:
    """Another shell on the machine of *receiver*: it knows the data directory and its token, no key and no name."""
    known = {"RECEIVER_DATA_DIR": str(receiver.data_dir), "RECEIVER_API_TOKENS": GOOD_TOKEN}
    return bare_environment(**{**known, **settings})


async def beside_it(receiver: LiveReceiver, *arguments: str, **settings: str) -> Done:
    environment = beside(receiver, **settings)
    return await receiver_command("doctor", *arguments, environment=environment, directory=receiver.data_dir.parent)


async def test_keys_of_the_running_server_are_not_missed_in_another_shell(tmp_path: Path) -> None:
    async with installation(tmp_path) as receiver:
        done = await beside_it(receiver, "--receiver", receiver.url, "--json")
        assert done.status == 0, done.out + done.err
        assert set(complaints(done)) == {"public URL", "clock"}
        assert "RECEIVER_PUBLIC_URL that the receiver runs with" in complaints(done)["public URL"][2]
        found = {check["check"]: check["found"] for check in done.json["items"]}
        assert found["server"] == f"{receiver.url} is ready"
        assert found["freepik key"] == "set in the running receiver's environment"
        assert "nothing waits" in found["lag"]
        named = await beside_it(receiver, "--json", SUBMITTER_RECEIVER_URL=receiver.url)
        assert named.json == done.json


async def test_a_key_that_the_running_server_lacks_is_reported(tmp_path: Path) -> None:
    async with Sandbox(seed=1).serve() as origin:
        wiring = provider_environment(Sandbox.base_urls(origin))
        receiver = LiveReceiver(tmp_path / "data", {"RECEIVER_API_TOKENS": GOOD_TOKEN})
        await receiver.start()
        try:
            done = await beside_it(receiver, "--receiver", receiver.url, "--json")
            assert done.status == 1
            assert complaints(done)["providers"][1] == "the running receiver has no key of any"
            done = await beside_it(receiver, "--receiver", receiver.url, "--json", **wiring)
            what, remedy = next(
                (check["found"], check["remedy"])
                for check in done.json["items"]
                if check["check"] == "apixo key" and check["grade"] == "warn"
            )
            assert "does not have it" in what
            assert "APIXO_API_KEY" in remedy
        finally:
            await receiver.stop()


async def test_pauses_and_lost_callbacks_of_the_running_server_are_reported(tmp_path: Path) -> None:
    async with installation(tmp_path) as receiver:
        await receiver.stop()
        database = await open_database(database_of(receiver.data_dir))
        await execute(database, "UPDATE providers SET degraded_at = 1 WHERE name = 'novita'")
        await database.close()
        await receiver.start()
        headers = {"authorization": f"Bearer {GOOD_TOKEN}"}
        async with httpx.AsyncClient(base_url=receiver.url, headers=headers, trust_env=False) as client:
            paused = await client.post("/v1/providers/freepik/pause", json={"reason": "the account is empty"})
            assert paused.status_code == 200, paused.text
        done = await beside_it(receiver, "--receiver", receiver.url, "--json")
        assert done.status == 1
        grade, what, remedy = complaints(done)["freepik pause"]
        assert (grade, "the account is empty" in what) == ("fail", True)
        assert "receiver providers resume freepik" in remedy
        assert complaints(done)["novita callbacks"][:2] == ("warn", "callbacks got lost")


async def test_no_server_another_program_and_another_receiver_are_distinguished(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    receiver = LiveReceiver(tmp_path / "data", {"RECEIVER_API_TOKENS": GOOD_TOKEN})
    done = await beside_it(receiver, "--json", SUBMITTER_RECEIVER_URL=nowhere)
    grade, what, remedy = complaints(done)["server"]
    assert (grade, "only this environment is judged" in what) == ("warn", True)
    assert "--receiver URL" in remedy
    assert complaints(done)["providers"][1] == "none has a key"
    done = await beside_it(receiver, "--receiver", nowhere, "--json")
    assert complaints(done)["server"][0] == "fail"
    async with in_front(lambda request: PlainTextResponse("hello")) as url:
        done = await beside_it(receiver, "--receiver", url, "--json")
        assert "is not a receiver" in complaints(done)["server"][1]
    await receiver.start()
    try:
        done = await beside_it(receiver, "--receiver", receiver.url, "--json", RECEIVER_API_TOKENS="some-other-token")
        assert complaints(done)["server"][0] == "fail"
        assert "RECEIVER_DATA_DIR" in complaints(done)["server"][2]
        assert "some-other-token" not in done.out + done.err
    finally:
        await receiver.stop()


async def test_a_receiver_elsewhere_is_judged_by_its_own_answers(tmp_path: Path) -> None:
    async with installation(tmp_path) as receiver:
        elsewhere = f"http://0.0.0.0:{receiver.port}"  # leads here, and is none of this machine's own names
        done = await beside_it(receiver, "--receiver", elsewhere, "--json", SUBMITTER_TOKEN=GOOD_TOKEN)
        checks = {check["check"] for check in done.json["items"]}
        assert checks == {"server", "lag", "clock"}
        spent = await beside_it(receiver, "--receiver", elsewhere, "--spend")
        assert (spent.status, "--spend" in spent.err) == (2, True)


@pytest.fixture
def self_signed(tmp_path: Path) -> Path:
    """A key and a certificate of nobody's, in one file."""
    import subprocess

    path = tmp_path / "self.pem"
    key = tmp_path / "key.pem"
    what = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run([*what.split(), "-keyout", str(key), "-out", str(path)], check=True, capture_output=True)
    path.write_bytes(key.read_bytes() + path.read_bytes())
    return path
