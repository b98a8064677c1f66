"""At 80 columns no list loses a word, an id or part of a URL; elsewhere each row is one line."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.cells import cell_len

from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support import forking
from tests.support.cli import bare_environment, receiver_command
from tests.support.ports import free_port
from tests.support.processes import TOKEN, LiveReceiver, live, submit, wait_for_state
from tests.support.terminal import on_terminal
from tests.support.waiting import eventually

FILE_NAME = "超解像テストの猫の写真・二〇二六年一月三十一日撮影 — a photograph with a rather long name.jpg"
ERROR = (
    "the provider could not process this picture: its dimensions_after_upscaling_are_limited_to_25_megapixels, "
    "写真が大きすぎます; send a smaller one or choose a smaller scale_factor"
)
HOOK = "/hooks/of/an/application/whose/paths/are/long?and=its&query=too&" + "x" * 60
LISTS = (
    ("receiver", "jobs list"),
    ("receiver", "jobs list --lost"),
    ("receiver", "jobs explain {failed}"),
    ("receiver", "jobs show {failed}"),
    ("receiver", "jobs watch {failed}"),
    ("receiver", "evidence list {failed}"),
    ("receiver", "evidence show {failed} {evidence}"),
    ("receiver", "events list"),
    ("receiver", "providers list"),
    ("receiver", "endpoints list"),
    ("receiver", "endpoints show {endpoint}"),
    ("receiver", "deliveries list"),
    ("receiver", "deliveries show {delivery}"),
    ("receiver", "trigger --list"),
    ("receiver", "config"),
    ("submitter", "list"),
    ("submitter", "show {failed}"),
    ("submitter", "providers"),
    ("submitter", "whoami"),
)


@pytest.mark.parametrize(
    ("arguments", "paragraph"),
    [
        ("work", "on one machine they share a SQLite file as well. Only `work` needs the providers' keys."),
        ("signature sign", "Print the three headers that sign a body."),
    ],
)
async def test_the_paragraphs_of_a_help_wrap_at_the_width_of_the_terminal(
    arguments: str, paragraph: str, tmp_path: Path
) -> None:
    environment = bare_environment(COLUMNS="300")
    done = await receiver_command(*arguments.split(), "--help", environment=environment, directory=tmp_path)
    assert paragraph in done.out


@dataclass(frozen=True)
class Place:
    """A receiver with jobs, endpoints and deliveries whose texts are long, and the ids that commands take."""

    receiver: LiveReceiver
    directory: Path
    ids: dict[str, str]

    def environment(self) -> dict[str, str]:
        settings = {"SUBMITTER_RECEIVER_URL": self.receiver.url, "SUBMITTER_TOKEN": TOKEN}
        given = {**bare_environment(**settings), "RECEIVER_DATA_DIR": str(self.receiver.data_dir)}
        return {name: value for name, value in given.items() if name != "COLUMNS"}


@contextlib.asynccontextmanager
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    sandbox = Sandbox(seed=1, turnaround_seconds=(0.05, 0.1), faults=Faults(per_provider={"novita": {"fail": 1.0}}))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        (tmp_path / FILE_NAME).write_bytes(picture_bytes(160, 120))
        hook = f"http://127.0.0.1:{free_port()}{HOOK}"
        events = ["job.succeeded", "job.failed", "job.images_kept", "provider.callbacks_degraded"]
        made = await client.post("/v1/endpoints", json={"url": hook, "event_types": events, "description": ERROR})
        assert made.status_code == 201, made.text
        ids = {"endpoint": made.json()["id"]}
        for name, provider in (("kept", "freepik"), ("failed", "novita")):
            job = await submit(client, provider, picture_bytes(160, 120))
            ids[name] = job["id"]
            await wait_for_state(client, job["id"], kept=name == "kept")
        paused = await client.post("/v1/providers/upscayl/pause", json={"reason": ERROR})
        assert paused.status_code == 200, paused.text
        queued = await submit(client, "upscayl", picture_bytes(160, 120))

        async def tried() -> bool:
            found = (await client.get("/v1/deliveries", params={"endpoint_id": ids["endpoint"]})).json()["items"]
            ids.update(delivery=found[0]["id"] if found else "")
            return len(found) >= 2 and all(delivery["state"] == "given_up" for delivery in found)

        await eventually(tried)
        evidence = (await client.get(f"/v1/jobs/{ids['failed']}/evidence")).json()["items"]
        ids["evidence"] = str(evidence[0]["id"])
        with contextlib.closing(sqlite3.connect(receiver.data_dir / "receiver.db")) as database:
            database.execute("UPDATE jobs SET error_message = ? WHERE id = ?", (ERROR, ids["failed"]))
            database.execute("UPDATE jobs SET last_error = ? WHERE id = ?", (ERROR, queued["id"]))
            database.execute("UPDATE jobs SET input_name = ?", (FILE_NAME,))
            database.execute("UPDATE evidence SET note = ?", (ERROR,))
            database.execute("UPDATE deliveries SET last_error = ?", (ERROR,))
            database.execute("UPDATE images SET state = 'lost', last_error = ? WHERE job_id = ?", (ERROR, ids["kept"]))
            database.commit()
        yield Place(receiver, tmp_path, ids)


@pytest.mark.sqlite(reason="fills the file")
async def test_no_list_loses_a_word_at_80_columns(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        environment = there.environment()
        lost: list[str] = []
        for program, text in LISTS:
            words = text.format(**there.ids).split()
            piped = await forking.run(program, *words, environment=environment, directory=there.directory)  # type: ignore[arg-type]
            status, shown = await on_terminal(program, *words, environment=environment, directory=there.directory)  # type: ignore[arg-type]
            assert (piped[0], status) == (0, 0), (text, piped, shown)
            lost += [f"{program} {text}: {wrong}" for wrong in differences(piped[1].decode(), shown)]
        assert not lost, "\n".join(lost)
        for columns in (30, 40, 60, 100, 200):
            status, shown = await on_terminal(
                "receiver", "jobs", "list", environment=environment, directory=there.directory, columns=columns
            )
            assert there.ids["failed"] in shown.split(), columns
            assert "…" not in shown, columns


def differences(piped: str, shown: str) -> list[str]:
    """Return words that a pipe was shown and a terminal of 80 columns was not, and lines that it would wrap itself."""
    wrong = [f"too wide: {line!r}" for line in shown.splitlines() if cell_len(line) > 80]
    words, squeezed = set(shown.split()), "".join(shown.split())
    for word in piped.split():
        if "…" in word:
            wrong.append(f"cut: {word!r}")
        # A text without blanks that is longer than an id, such as a URL, goes on in the next line.
        if (
            _passing(word)
            or {word, f"{word}:"} & words
            or ((len(word) > 20 or not word.isascii()) and word in squeezed)
        ):
            continue
            wrong.append(f"lost: {word!r}")
    return wrong


def _passing(word: str) -> bool:
    """Return whether *word* is part of an age or a time, which change between two calls."""
    return bool(re.fullmatch(r"[-+]?[\d.]+|\d\d:\d\d:\d\d.*|s|min", word))


@pytest.mark.parametrize("columns", [80, 40])
async def test_a_batch_loses_no_word_however_narrow(tmp_path: Path, columns: int) -> None:
    faults = Faults(per_provider={"novita": {"fail": 1.0}})
    async with live(tmp_path, sandbox=Sandbox(seed=1, turnaround_seconds=(0.05, 0.1), faults=faults)) as (receiver, _):
        (tmp_path / "in").mkdir()
        for name in (FILE_NAME, "a.jpg"):
            (tmp_path / "in" / name).write_bytes(picture_bytes(160, 120) + name.encode())
        (tmp_path / "in" / "猫.heic").write_bytes(b"no image")
        there = Place(receiver, tmp_path, {})
        status, shown = await on_terminal(
            *("submitter", "batch", "in", "--provider", "novita"),
            environment=there.environment(),
            directory=tmp_path,
            columns=columns,
        )
    assert status == 1
    assert "…" not in shown
    assert "2 failed" in shown
    lines = [line for line in shown.replace("\r", "\n").splitlines() if "in/" not in line]
    assert columns < 80 or all(cell_len(line) <= 80 for line in lines), shown
    squeezed = "".join(shown.split())
    assert all(word in squeezed for word in re.split(r"[—・ ]+", FILE_NAME.removesuffix(".jpg")))
    assert "2 failed" in shown
    assert "猫.heic" in shown
