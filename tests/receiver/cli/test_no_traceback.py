"""Every command of both programs, through bad inputs and environments: a line and a status, never a traceback."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support import forking
from tests.support.cli import bare_environment
from tests.support.command_tree import Command, commands, program_options
from tests.support.forking import Program
from tests.support.processes import TOKEN, LiveReceiver
from tests.support.waiting import patience

pytestmark = pytest.mark.sqlite(reason="what is refused before a database is opened, and the file")

PROGRAMS: tuple[Program, ...] = ("receiver", "submitter")

RECEIVER = (
    "serve --port 99999",
    "serve --host no.such.host.invalid",
    "work --only nothing",
    "migrate",
    "migrate --check",
    "backup {dir}/copy",
    "backup ''",
    "restore {dir}/none",
    "restore {dir}",
    "config",
    "config --json",
    "config --markdown",
    "tunnel --port x",
    "listen",
    "listen http://127.0.0.1:99999/",
    "listen http://[::1/",
    "listen http://127.0.0.1:9/ --url http://127.0.0.1:99999 --token x",
    "listen http://127.0.0.1:9/ --secret x",
    "listen http://127.0.0.1:9/ --types nothing.at.all",
    "listen http://127.0.0.1:9/ -H 'no colon'",
    "trigger freepik completed",
    "trigger nobody completed",
    "trigger freepik",
    "doctor --json",
    "jobs list",
    "jobs list --provider nobody",
    "jobs list --state nothing",
    "jobs show job_none",
    "jobs show ''",
    "jobs explain job_none",
    "jobs explain '\x1b[31m猫'",
    "jobs watch job_none",
    "evidence list job_none",
    "evidence show job_none 1",
    "evidence show job_none x",
    "evidence raw job_none 99999999999999999999",
    "events list",
    "events list --type nothing",
    "events list --after 99999999999999999999999",
    "events tail --provider nobody",
    "providers list",
    "providers pause nobody",
    "providers resume freepik",
    "endpoints list",
    "endpoints add http://localhost:3000/hook",
    "endpoints add not-a-url",
    "endpoints show ep_none",
    "endpoints test ep_none",
    "endpoints rotate-secret ep_none",
    "endpoints enable ep_none",
    "endpoints disable ep_none",
    "endpoints remove ep_none",
    "deliveries list --event nothing",
    "deliveries list",
    "deliveries show dlv_none",
    "replay",
    "replay dlv_none",
    "replay --since yesterday",
    "replay --since 99999999d",
    "reread --since yesterday",
    "reread --job job_none",
    "reread --provider nobody",
    "signature sign {dir}/none --secret whsec_x",
    "signature sign {dir} --secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "signature verify {dir}/none --secret x --encoding latin -H a",
    "nothing",
    "--color pink",
    "jobs",
)
SUBMITTER = (
    "send {dir}/none.jpg --provider freepik",
    "send {dir} --provider freepik",
    "send {picture} --provider nobody",
    "send {picture} --provider freepik -o scale_factor=3x",
    "send {picture} --provider freepik -o scale_factor",
    "send {picture} --provider freepik --out {picture}",
    "send http://[::1/a.png --provider freepik",
    "batch {dir}/none --provider freepik",
    "batch {dir}/*.nothing --provider freepik",
    "batch {dir} --provider nobody",
    "batch {latin}.csv --provider freepik",
    "wait job_none",
    "wait job_none --timeout -1",
    "wait ''",
    "list",
    "list --since yesterday",
    "list --since 99999999999d",
    "list --state nothing",
    "list --provider nobody",
    "show job_none",
    "show '../../x'",
    "cancel job_none",
    "poll job_none",
    "resubmit job_none",
    "download job_none --out {picture}",
    "providers",
    "login http://127.0.0.1:99999",
    "login nonsense",
    "login --remove --name none",
    "whoami",
    "--receiver http://127.0.0.1:99999 list",
    "--receiver http://[::1 list",
    "--receiver 'ftp://x' whoami",
    "--receiver '' list",
    "--profile none list",
    "nothing",
)
UNTIL_STOPPED: Mapping[str, tuple[list[str], dict[str, str]]] = {
    "serve": ([], {"RECEIVER_DATA_DIR": "latin.csv"}),
    "work": ([], {"RECEIVER_DATA_DIR": "latin.csv"}),
    "tunnel": ([], {"RECEIVER_DATA_DIR": "latin.csv"}),
    "demo": (["--image", "latin.csv"], {}),
    "listen": (["--url", "http://127.0.0.1:99999"], {}),
    "events tail": (["--provider", "nobody"], {}),
    "jobs watch": (["job_none"], {}),
}
"""Commands that run until they are stopped, and what ends each once its own input has been judged."""
ENVIRONMENTS: Mapping[str, dict[str, str]] = {
    "odd": {
        "PYTHONIOENCODING": "cp1252",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "SUBMITTER_TOKEN": "tökén\n",
        "SUBMITTER_RECEIVER_URL": "http://127.0.0.1:99999",
        "RECEIVER_KEEP_DAYS": "inf",
    },
    "nothing to read": {"RECEIVER_DATA_DIR": "latin.csv", "HOME": "latin.csv", "SUBMITTER_RECEIVER_URL": "no url"},
    "a broken database": {"RECEIVER_DATA_DIR": "broken", "SUBMITTER_TOKEN": "", "XDG_CONFIG_HOME": "{dir}/broken"},
    "no database": {"RECEIVER_DATABASE_URL": "postgresql://127.0.0.1:1/none", "SUBMITTER_RECEIVER_URL": "http://[::1"},
}
SIDE_BY_SIDE = 8


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "猫.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    (tmp_path / "latin.csv").write_bytes("image\nä.png\n".encode("latin-1"))
    broken = tmp_path / "broken"
    (broken / "upscale-receiver").mkdir(parents=True)
    (broken / "receiver.db").write_bytes(b"no database at all" * 1000)
    (broken / "secrets.json").write_text("[]")
    (broken / "upscale-receiver" / "profiles.json").write_text("{")
    return tmp_path


class Table:
    """Runs commands and notes what is wrong with how they end."""

    def __init__(self, program: Program, place: Path, environment: Mapping[str, str]) -> None:
        given = {"HOME": str(place), "BROWSER": "false", "COLUMNS": "80", **environment}
        self._environment = {name: value.format(dir=place) for name, value in given.items()}
        self._program, self._place = program, place
        self._free = asyncio.Semaphore(SIDE_BY_SIDE)
        self.bad: list[str] = []

    async def run(self, rows: Iterable[tuple[Sequence[str], Mapping[str, str]]]) -> None:
        async with asyncio.TaskGroup() as group:
            for words, more in rows:
                group.create_task(self._row(words, more))

    async def _row(self, words: Sequence[str], more: Mapping[str, str]) -> None:
        environment = bare_environment(**{**self._environment, **more})
        async with self._free:
            try:
                async with patience():
                    status, out, err = await forking.run(
                        self._program, *words, environment=environment, directory=self._place
                    )
            except TimeoutError:
                self.bad.append(f"{self._program} {shlex.join(words)} hangs")
                return
        printed, said = out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
        shown = f"{self._program} {shlex.join(words)} -> {status}: {(printed + said)[-400:]!r}"
        if status not in (0, 1, 2) or "Traceback" in printed + said or (status and not printed + said):
            self.bad.append(shown)
        if environment.get("NO_COLOR") and "\x1b" in printed + said:
            self.bad.append(f"control characters: {shown}")
        if status and "--json" in words and not _told_as_json(printed, said):
            self.bad.append(f"no JSON: {shown}")


def _told_as_json(printed: str, said: str) -> bool:
    """Return whether a failed command says so in an object, on standard error or in its result."""
    try:
        return "error" in json.loads(said.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return printed.startswith("{")


def ending(command: Command, rows: Iterable[list[str]]) -> list[tuple[list[str], dict[str, str]]]:
    """*rows* of *command* so that each ends by itself."""
    more, settings = UNTIL_STOPPED.get(command.text, ([], {})) if command.program == "receiver" else ([], {})
    return [([*words, *more], settings) for words in rows]


@pytest.mark.parametrize("program", PROGRAMS)
async def test_no_input_of_any_command_ends_with_a_traceback(place: Path, program: Program) -> None:
    receiver = LiveReceiver(place / "data")
    await receiver.start()
    try:
        environment = {
            "RECEIVER_DATA_DIR": str(receiver.data_dir),
            "SUBMITTER_RECEIVER_URL": receiver.url,
            "SUBMITTER_TOKEN": TOKEN,
        }
        table = Table(program, place, environment)
        await table.run(row for command in commands(program) for row in ending(command, command.rows()))
        await table.run(
            ([*option.written(value), "config" if program == "receiver" else "whoami"], {})
            for turn, option in enumerate(program_options(program))
            for value in option.values(turn)
        )
        names = {"dir": place, "picture": place / "猫.png", "latin": place / "latin"}
        special = RECEIVER if program == "receiver" else SUBMITTER
        await table.run((shlex.split(text.format(**names)), {}) for text in special)
    finally:
        await receiver.stop()
    assert not table.bad, "\n".join(table.bad)


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
@pytest.mark.parametrize("program", PROGRAMS)
async def test_no_command_ends_with_a_traceback_in_a_bad_environment(
    place: Path, program: Program, environment: dict[str, str]
) -> None:
    table = Table(program, place, environment)
    await table.run(row for command in commands(program) for row in ending(command, [command.short_row()]))
    assert not table.bad, "\n".join(table.bad)


async def test_an_env_file_in_another_encoding_is_one_line_in_every_command(place: Path) -> None:
    (place / ".env").write_bytes("SUBMITTER_TOKEN=x\n".encode("utf-16"))
    for program in PROGRAMS:
        table = Table(program, place, {})
        await table.run(row for command in commands(program) for row in ending(command, [command.short_row()]))
        assert not table.bad, "\n".join(table.bad)
