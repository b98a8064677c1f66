"""`receiver listen`: events come to an application on this machine, each once and in order, whatever is cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from functools import partial
from pathlib import Path

import httpx
import pytest

from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.signatures import new_secret
from tests.support.cli import bare_environment, receiver_command
from tests.support.forwarded import Application, listening
from tests.support.hostile_shell import Terminal, in_shell
from tests.support.ports import free_port
from tests.support.processes import TOKEN, live, submit, wait_for_state
from tests.support.waiting import eventually, patiently

CUTS = 20


class Cable:
    """A TCP connection between here and *port* that can be cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._open: set[asyncio.StreamWriter] = set()
        self.connections = 0

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0)

    def cut(self) -> int:
        """Reset everything that is open; returns how many connections that were."""
        cut = len(self._open)
        for writer in list(self._open):
            writer.transport.abort()
        self._open.clear()
        return cut

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, out = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        self.connections += 1
        self._open.add(writer)
        try:
            await asyncio.gather(_pump(reader, out), _pump(upstream, writer))
        finally:
            self._open.discard(writer)
            writer.close()
            out.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def _lines_of(path: Path) -> int:
    """Count the printed events; each is printed once the application has answered."""
    return path.read_text().count("\n")


def _more_than(found: list[tuple[str, str]], count: int) -> bool:
    return len(found) > count


async def reported_by(client: httpx.AsyncClient) -> list[tuple[str, str]]:
    """All events of a receiver, from its pages."""
    found: list[tuple[str, str]] = []
    cursor = "0"
    while cursor:
        page = (await client.get(f"/v1/events?limit=500&cursor={cursor}")).json()
        found += [(item["id"], item["type"]) for item in page["items"]]
        cursor = page["next"]
    return found


async def test_across_twenty_cuts_under_load_every_event_comes_once_in_order_and_verifies(tmp_path: Path) -> None:
    secret = new_secret()
    application = Application(secret)
    sandbox = Sandbox(seed=5, turnaround_seconds=(0.05, 0.3))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        cable = Cable(receiver.port)
        async with await cable.serve() as server, await application.serve():
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            arguments = ["--forward-to", application.url, "--url", url, "--token", TOKEN, "--secret", secret]
            async with listening(tmp_path, *arguments, "--after", "0") as process:
                jobs = []
                cuts = 0
                while cuts < CUTS:
                    seen = len(application.events)
                    jobs.append(
                        await submit(client, ("freepik", "apixo", "pixelcut")[cuts % 3], picture_bytes(160, 120))
                    )
                    await eventually(partial(_more_than, application.events, seen))
                    cuts += 1 if cable.cut() else 0
                for job in jobs:
                    await wait_for_state(client, job["id"], kept=True)
                wanted = await reported_by(client)
                await eventually(lambda: _lines_of(tmp_path / "listen.out") >= len(wanted))
                process.send_signal(signal.SIGTERM)
                assert await patiently(process.wait()) == 0
        assert cable.connections >= CUTS
        assert application.events == wanted
        assert len(wanted) > 3 * CUTS
        lines = (tmp_path / "listen.out").read_text().splitlines()
        assert len(lines) == len(wanted)
        assert all(kind in line and "→ 200" in line for line, (_, kind) in zip(lines, wanted, strict=True))
        assert TOKEN not in "".join(lines) + (tmp_path / "listen.err").read_text()


async def test_an_application_that_is_not_there_yet_is_waited_for_and_types_are_chosen(tmp_path: Path) -> None:
    secret = new_secret()
    application = Application(secret)
    application.status = 418
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        job = await submit(client, "freepik", picture_bytes(160, 120))
        await wait_for_state(client, job["id"], kept=True)
        arguments = ["--forward-to", application.url, "--url", receiver.url, "--token", TOKEN, "--secret", secret]
        chosen = ["--types", "job.queued,job.succeeded", "--after", "0", "--json"]
        async with listening(tmp_path, *arguments, *chosen):
            await eventually(lambda: "nothing listens there" in (tmp_path / "listen.err").read_text())
            async with await application.serve():
                await eventually(lambda: _lines_of(tmp_path / "listen.out") == 2)
        assert [kind for _, kind in application.events] == ["job.queued", "job.succeeded"]
        lines = [json.loads(line) for line in (tmp_path / "listen.out").read_text().splitlines()]
        assert [(line["type"], line["status"]) for line in lines] == [("job.queued", 418), ("job.succeeded", 418)]


async def test_a_wrong_token_and_wrong_arguments_are_reported(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with live(tmp_path) as (receiver, _):
        for arguments, status, said in (
            (("--url", receiver.url, "--token", "not-the-token"), 1, "the bearer token is not valid here"),
            (("--url", receiver.url, "--types", "job.sneezed"), 2, "there is no event 'job.sneezed'"),
            (("--url", receiver.url, "--token", TOKEN, "--secret", "short"), 2, "--secret"),
            (("--url", receiver.url), 2, "--token"),
        ):
            done = await receiver_command(
                "listen", "--forward-to", "http://127.0.0.1:1/", *arguments,
                environment=bare_environment(RECEIVER_DATABASE_URL=""), directory=elsewhere,
            )  # fmt: skip
            assert done.status == status, done.err
            assert said in done.err


async def test_beside_its_receiver_it_finds_the_token_and_shows_a_secret_of_its_own(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        (tmp_path / ".env").write_text(f"RECEIVER_API_TOKENS={TOKEN}\n")
        port = free_port()
        async with listening(
            tmp_path, "--forward-to", f"http://127.0.0.1:{port}/", "--url", receiver.url, "--after", "0"
        ):
            path = tmp_path / "listen.err"
            await eventually(lambda: "events of" in path.read_text())
            secret = path.read_text().partition("signing with ")[2].split()[0]
            application = Application(secret)
            application.port = port
            async with await application.serve():
                await submit(client, "freepik", picture_bytes(160, 120))
                await eventually(lambda: len(application.events) > 0)


async def test_a_receiver_that_is_not_there_is_reported_at_once_with_its_address_and_waited_for(tmp_path: Path) -> None:
    secret = new_secret()
    application = Application(secret)
    async with live(tmp_path) as (receiver, _), receiver.client() as client, await application.serve():
        await receiver.stop()
        here = {"SUBMITTER_RECEIVER_URL": receiver.url, "SUBMITTER_TOKEN": TOKEN}
        arguments = ("--forward-to", application.url, "--secret", secret, "--after", "0")
        async with listening(tmp_path, *arguments, **here) as process:
            path = tmp_path / "listen.err"
            waits = f"no answer from {receiver.url} yet; trying again"
            await eventually(lambda: waits in path.read_text())
            assert process.returncode is None, "told while it is still waiting"
            await receiver.start()
            await submit(client, "freepik", picture_bytes(160, 120))
            await eventually(lambda: len(application.events) > 0)
            assert path.read_text().count(waits) == 1


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:99999/h", "no port 99999"),
        ("http://[::1/h", "no URL"),
        ("http://no-such-host.invalid/h", "can't be resolved"),
        ("ftp://127.0.0.1/h", "http:// or https://"),
        ("localhost:3000", "http:// or https://"),
        ("http://", "http:// or https://"),
    ],
)
async def test_an_address_that_can_not_be_is_refused_at_once(tmp_path: Path, address: str, says: str) -> None:
    done = await receiver_command("listen", address, environment=bare_environment(), directory=tmp_path)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert says in done.err


_ODD_ANSWERS = {
    "gzip that is none": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\nok",
    "an answer without an end": b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/plain\r\n\r\n...",
}


@pytest.mark.parametrize("answer", _ODD_ANSWERS.values(), ids=_ODD_ANSWERS)
async def test_an_odd_answer_counts_by_its_status_and_holds_up_nothing(tmp_path: Path, answer: bytes) -> None:
    seen = []

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head)
        writer.write(answer)
        await writer.drain()
        await reader.read()  # until the other side closes
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, live(tmp_path / "r") as (receiver, _), receiver.client() as client:
        job = await submit(client, "apixo", picture_bytes(160, 120))
        await wait_for_state(client, job["id"], kept=True)
        events = (await client.get("/v1/events")).json()["items"]
        target = f"http://127.0.0.1:{port}/hook"
        arguments = ("-H", "X-Who: me", "--after", "0", "--url", receiver.url, "--token", TOKEN, "--json")
        async with listening(tmp_path, target, *arguments):
            out = tmp_path / "listen.out"
            await eventually(lambda: len(out.read_text().splitlines()) >= len(events), what=out.read_text)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert {line["status"] for line in lines} == {200}
        assert len({line["position"] for line in lines}) == len(lines)
        assert b"X-Who: me" in seen[0] or b"x-who: me" in seen[0].lower()


async def test_the_secret_stays_the_same_from_start_to_start(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _):
        secrets, err = set(), tmp_path / "listen.err"
        for _ in range(2):
            async with listening(
                tmp_path,
                "http://127.0.0.1:9/",
                "--url",
                receiver.url,
                "--token",
                TOKEN,
                RECEIVER_DATA_DIR=str(receiver.data_dir),
            ):
                await eventually(lambda: "events of" in err.read_text(), what=err.read_text)
                secrets.add(next(word for word in err.read_text().split() if word.startswith("whsec_")))
        assert len(secrets) == 1
        assert (receiver.data_dir / "listen.secret").stat().st_mode & 0o777 == 0o600


async def test_a_secret_that_can_not_be_kept_or_read_is_one_for_this_run_or_named(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _):
        err = tmp_path / "listen.err"
        config = tmp_path / "config"
        where = ("http://127.0.0.1:9/", "--url", receiver.url, "--token", TOKEN)
        config.write_text("a file, where a directory is needed")
        async with listening(tmp_path, *where, RECEIVER_DATA_DIR="none", XDG_CONFIG_HOME=str(config)):
            await eventually(lambda: "events of" in err.read_text(), what=err.read_text)
        assert "signing with whsec_" in err.read_text()
        for content in (b"", b"half", b"\xff"):
            (receiver.data_dir / "listen.secret").write_bytes(content)
            line = f"$PROGRAM listen {' '.join(where)}"
            status, _, said = await in_shell(receiver, line, program="receiver")
            assert (status, len(said.splitlines())) == (1, 1), said
            assert "listen.secret is not what `receiver listen` keeps there; remove it" in said


async def test_in_the_background_of_a_shell_it_goes_on_and_leaves_the_keys_to_others(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _):
        listen = f"$PROGRAM listen http://127.0.0.1:9/ --url {receiver.url} --token {TOKEN}"
        after = "bg; echo type; read line; echo got $line; sleep 1; jobs; kill %1; wait; echo over"
        terminal = Terminal(receiver, f"{listen}; {after}", program="receiver")
        await terminal.until("events of")
        terminal.press("r")
        await terminal.until("no event has come yet")
        terminal.press("\x1a")
        await terminal.until("type")
        terminal.press("hello\n")
        await terminal.until("over")
        await terminal.end()
        assert "got hello" in terminal.shown and "Running" in terminal.shown
