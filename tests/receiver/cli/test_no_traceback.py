"""Every command of both programs, through a table of bad inputs and environments: a line and a status, no traceback."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path

import pytest

from tests.support.cli import bare_environment

NOWHERE = "http://127.0.0.1:9"

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
ENVIRONMENTS = {
    "plain": {},
    "odd": {
        "PYTHONIOENCODING": "cp1252",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "SUBMITTER_TOKEN": "tökén\n",
        "SUBMITTER_RECEIVER_URL": "http://127.0.0.1:99999",
        "RECEIVER_KEEP_DAYS": "inf",
    },
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "猫.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    (tmp_path / "latin.csv").write_bytes("image\nä.png\n".encode("latin-1"))
    return tmp_path


_RUNNER = """
import gc, importlib, json, os, pkgutil, sys, time
import receiver.cli, submitter.cli

pytestmark = pytest.mark.sqlite(reason="what is refused before a database is opened, and the file")
for package in (receiver, submitter):  # most are imported when a command needs them
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not any(part in module.name for part in ("__main__", ".contrib.", ".migrations.", ".testing.")):
            importlib.import_module(module.name)
gc.freeze()
program, commands = sys.argv[1], json.load(sys.stdin)
waiting, running, ended = list(enumerate(commands)), {}, {}
until = time.monotonic() + 600
while (waiting or running) and time.monotonic() < until:
    while waiting and len(running) < 16:
        number, words = waiting.pop(0)
        child = os.fork()
        if child == 0:
            file = os.open(f"{number}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for descriptor in (1, 2):
                os.dup2(file, descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
            sys.stdin = open(0, closefd=False)
            sys.stdout, sys.stderr = (open(n, "w", encoding=encoding, closefd=False) for n in (1, 2))
            sys.argv = [program, *words]
            (receiver if program == "receiver" else submitter).cli.main()
        running[child] = number
    child, status = os.waitpid(-1, os.WNOHANG)
    if child:
        ended[running.pop(child)] = os.waitstatus_to_exitcode(status)
    else:
        time.sleep(0.02)
for child in running:
    os.kill(child, 9)
json.dump([ended.get(number, "hangs") for number in range(len(commands))], sys.stdout)
"""
"""Imports once, and forks for each command: an interpreter for each of them would take minutes. Side by side, since a
command that finds no receiver tries for a minute."""


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
@pytest.mark.parametrize("program", ["receiver", "submitter"])
async def test_no_command_ends_with_a_traceback(place: Path, program: str, environment: dict[str, str]) -> None:
    given = {"SUBMITTER_RECEIVER_URL": NOWHERE, "SUBMITTER_TOKEN": "a-token", "HOME": str(place)}
    names = {"dir": place, "picture": place / "猫.png", "latin": place / "latin"}
    commands = [shlex.split(text.format(**names)) for text in (RECEIVER if program == "receiver" else SUBMITTER)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _RUNNER,
        program,
        env={**bare_environment(**given), "COLUMNS": "80", **environment},
        cwd=place,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(json.dumps(commands).encode())
    ended = json.loads(out)
    assert len(ended) == len(commands)
    bad: list[str] = []
    for number, status in enumerate(ended):
        printed = (place / f"{number}.out").read_text("utf-8", "replace")
        shown = f"{program} {shlex.join(commands[number])} -> {status}: {printed[-400:]}"
        if status not in (0, 1, 2) or "Traceback" in printed or (status and not printed):
            bad.append(shown)
        if environment.get("NO_COLOR") and "\x1b" in printed:
            bad.append(f"control characters: {shown!r}")
    assert not bad, "\n".join(bad)
