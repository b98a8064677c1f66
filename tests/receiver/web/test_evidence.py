"""Evidence: everything that was answered 2xx is an item, whatever it is, and no body leaves a job stuck."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from receiver.domain.evidence import Evidence, headers_to_json
from receiver.domain.jobs import Source, Verdict
from receiver.web.kept_refusals import BYTES_OF_A_SOURCE, IN_ALL, MOST_SOURCES, OF_A_SOURCE, KeptRefusals
from submitter.vocabulary import Callback, Report, State
from tests.support.running_receiver import (
    RESULT,
    RunningReceiver,
    freepik_body,
    freepik_task,
    novita_body,
    novita_task,
    running_receiver,
    signed,
)

DEEP = b'{"payload":' * 500 + b"1" + b"}" * 500
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"COMPLETED",
    "not UTF-8": b'{"task": "\xff\xfe"}',
    "UTF-16": '{"task": 1}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "NUL": b"\x00" * 100,
    "nested 500 deep": DEEP,
    "nested beyond the parser": b"[" * 200_000,
    "NaN": b'{"payload": {"task": {"task_id": NaN, "status": "TASK_STATUS_SUCCEED"}}}',
    "Infinity": b'{"task_id": Infinity, "status": "COMPLETED"}',
    "a number of ten thousand digits": b'{"task_id": ' + b"9" * 10_000 + b"}",
    "a float beyond all floats": b'{"task_id": 1e999}',
    "lone surrogate": b'{"task_id": "\\ud800", "status": "COMPLETED"}',
    "a list": b"[]",
    "a string": b'"COMPLETED"',
    "null": b"null",
    "duplicate keys": b'{"task_id": "a", "task_id": "b", "status": "FAILED", "status": "COMPLETED"}',
    "keys without end": json.dumps({f"k{n}": n for n in range(20_000)}).encode(),
    "HTML": b"<html><body>502 Bad Gateway</body></html>",
}
WRONG: list[Any] = [None, True, 0, -1.5, "", "\u0000", "x" * 5000, [], [[]], {}, {"a": 1}]


@pytest.mark.parametrize("provider", ["freepik", "novita"])
async def test_a_hostile_body_is_kept_answered_and_resolved_by_a_poll(provider: str, tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job(provider)
        for name, body in HOSTILE.items():
            answer = await here.post(job, body, signed(body) if provider == "freepik" else {})
            assert answer.status_code == 200, name
        await here.read()
        kept = await here.evidence(job)
        assert [piece.body for piece in kept] == list(HOSTILE.values())
        assert {piece.verdict.value for piece in kept} <= {"unreadable", "ignored", "hint"}
        assert (await here.now(job)).state is State.RUNNING
        here.upstream.says[job.remote_id or ""] = "COMPLETED"
        assert (await here.client.post(f"/v1/jobs/{job.id}/poll")).status_code == 202
        assert (await here.becomes(job, State.SUCCEEDED)).settled_by == "poll"


def _spoilt(value: Any) -> list[Any]:
    """*value* with each of its parts replaced by each wrong one."""
    found: list[Any] = list(WRONG)
    if isinstance(value, dict):
        for key, part in value.items():
            found += [{**value, key: wrong} for wrong in _spoilt(part)]
            found.append({other: kept for other, kept in value.items() if other != key})
    if isinstance(value, list):
        found += [[wrong] for part in value for wrong in _spoilt(part)]
    return found


@pytest.mark.parametrize("provider", ["freepik", "novita"])
async def test_wrong_types_at_every_field_leave_no_job_stuck_and_no_evidence_unread(
    provider: str, tmp_path: Path
) -> None:
    whole = {"freepik": freepik_task, "novita": novita_task}[provider]("task-1", "COMPLETED")
    async with running_receiver(tmp_path) as here:
        job = await here.job(provider, remote_id="task-1")
        bodies = [json.dumps(spoilt).encode() for spoilt in _spoilt(whole)]
        items = [
            Evidence(
                source=piece.source,
                provider=provider,
                job_id=job.id,
                received_at=piece.received_at,
                headers_json=piece.headers_json,
                body=body,
                trust=piece.trust,
            )
            for piece in [await _recorded(here, provider)]
            for body in bodies
        ]
        await here.receiver.parts.store.evidence.record(items)
        here.receiver.parts.intake.loop.wake()
        await here.read()
        verdicts = set(await here.verdicts(job))
        assert verdicts <= {"unreadable", "ignored", "believed", "hint", "late", "duplicate"}
        assert "unreadable" in verdicts


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=8))
@example([])
@example([(b"a", b"")])
@example([(b"x", b'say "\\n", \\\\r and "], ["'), (b"x", b"\xe9\x00\x7f")])
@example([(b"x\n", b"\r"), (b"\r\n", b"\\")])
def test_headers_are_kept_byte_for_byte(headers: list[tuple[bytes, bytes]]) -> None:
    pairs = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]
    assert json.loads(headers_to_json(headers)) == pairs


async def _recorded(here: RunningReceiver, provider: str) -> Evidence:
    """One ordinary piece of evidence, to make others of."""
    job = await here.job(provider)
    await here.write_events(job, "IN_PROGRESS")
    await here.read()
    return (await here.evidence(job))[0]


async def test_every_callback_is_an_item_and_a_replay_is_a_duplicate(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        body = freepik_body(job.remote_id or "", "IN_PROGRESS")
        headers = signed(body)
        for _ in range(3):
            assert (await here.post(job, body, headers)).status_code == 200
        again = signed(body, message=headers["webhook-id"], at=int(headers["webhook-timestamp"]) + 5)
        assert (await here.post(job, body, again)).status_code == 200, "a retry is signed anew, with the same id"
        await here.read()
        assert (await here.verdicts(job))[1:] == ["duplicate"] * 3
        shown = (await here.client.get(f"/v1/jobs/{job.id}/evidence")).json()["items"]
        assert [piece["verdict"] for piece in shown] == await here.verdicts(job)


async def test_a_repeated_id_with_another_body_is_read(tmp_path: Path) -> None:
    """Should a provider number its tasks and not its deliveries, nothing may get lost by that."""
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        for status in ("IN_PROGRESS", "COMPLETED"):
            body = freepik_body(job.remote_id or "", status)
            await here.post(job, body, signed(body, message="msg_1"))
        await here.becomes(job, State.SUCCEEDED)


async def test_a_refused_callback_does_not_make_the_true_one_a_replay(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        body = freepik_body(job.remote_id or "", "COMPLETED")
        assert (await here.post(job, body, signed(body, secret="x", message="msg_1"))).status_code == 401
        assert (await here.post(job, body, signed(body, message="msg_1"))).status_code == 200
        await here.becomes(job, State.SUCCEEDED)


async def test_the_first_believed_end_wins_over_one_that_contradicts_it(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        for status in ("COMPLETED", "FAILED", "IN_PROGRESS", "COMPLETED"):
            await here.write_events(job, status)
        await here.read()
        done = await here.now(job)
        assert (done.state, done.error) == (State.SUCCEEDED, None)
        assert (await here.verdicts(job))[:3] == ["believed", "late", "late"]
        assert [name for name in await here.events(job) if not name.startswith("job.images")] == ["job.succeeded"]


async def test_refusals_are_kept_within_bounds_that_change_no_answer(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        body = freepik_body(job.remote_id or "", "COMPLETED")
        answers = {(await here.post(job, body, {})).status_code for _ in range(OF_A_SOURCE.count + 30)}
        assert answers == {401}
        assert len(await here.evidence(job)) == OF_A_SOURCE.count
        assert (await here.write_events(job, "COMPLETED")).status_code == 200
        await here.becomes(job, State.SUCCEEDED)


def test_refusals_are_bounded_for_each_source_and_in_all_in_number_and_size() -> None:
    few = KeptRefusals()
    assert sum(few.may_keep("203.0.113.1", 100) for _ in range(1000)) == OF_A_SOURCE.count
    assert few.may_keep("203.0.113.2", 100), "another source has its own bound"
    many = KeptRefusals()
    kept = sum(many.may_keep(f"203.0.113.{n}", 100) for n in range(20_000))
    assert IN_ALL.count <= kept < IN_ALL.count + 10, "what fills in meanwhile is little"
    assert many.sources == MOST_SOURCES, "sources are remembered within bounds too"
    large = KeptRefusals()
    kept = sum(large.may_keep("203.0.113.1", 1_000_000) for _ in range(20))
    assert kept == BYTES_OF_A_SOURCE.count // 1_000_000


async def test_a_reader_that_breaks_stops_neither_the_others_nor_its_own_job(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        broken, fine = await here.job("novita"), await here.job("novita")
        provider = here.receiver.parts.slots["novita"].provider
        read = type(provider).read

        class Breaking(type(provider)):  # type: ignore[misc]
            def read(self, callback: Callback) -> Report | None:
                if (broken.remote_id or "").encode() in callback.body:
                    raise ZeroDivisionError
                return read(self, callback)

        provider.__class__ = Breaking
        for job in (broken, fine):
            here.upstream.says[job.remote_id or ""] = "COMPLETED"
            await here.write_events(job, "COMPLETED")
        await here.becomes(fine, State.SUCCEEDED)
        assert await here.verdicts(broken) == [Verdict.UNREADABLE]
        assert (await here.client.post(f"/v1/jobs/{broken.id}/poll")).status_code == 202
        assert (await here.becomes(broken, State.SUCCEEDED)).settled_by == "poll"


async def test_a_piece_that_cannot_be_settled_is_put_aside_and_the_others_are_settled(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        jobs = [await here.job() for _ in range(3)]
        provider = here.receiver.parts.slots["freepik"].provider
        read = type(provider).read

        class Careless(type(provider)):  # type: ignore[misc]
            """No reader lets such a text through; should one ever do, the database can't take it."""

            def read(self, callback: Callback) -> Report | None:
                report = read(self, callback)
                careless = report is not None and report.remote_id == jobs[1].remote_id
                return replace(report, remote_status="\ud800") if report and careless else report

        provider.__class__ = Careless
        async with here.receiver.parts.intake.reading:  # so that all three are settled together
            for job in jobs:
                await here.write_events(job, "COMPLETED")
        for job in (jobs[0], jobs[2]):
            await here.becomes(job, State.SUCCEEDED)
        await here.read()
        assert (await here.now(jobs[1])).state is State.RUNNING


async def test_secrets_are_masked_on_the_way_out_and_kept_within(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        path = here.path(job)
        body = json.dumps({"url": f"https://hooks.example.com{path}"}).encode()
        await here.post(job, body, {"authorization": "Bearer of-theirs", "x-original-url": path})
        (kept,) = await here.evidence(job)
        assert kept.body == body
        shown = (await here.client.get(f"/v1/jobs/{job.id}/evidence")).text
        assert path.rpartition("/")[2] not in shown
        assert "of-theirs" not in shown


def test_the_bodies_of_the_tests_are_what_the_readers_read() -> None:
    """Otherwise the tables above would show nothing."""
    assert json.loads(novita_body("t", "COMPLETED"))["payload"]["images"][0]["image_url"] == RESULT


async def test_a_large_answer_is_kept_as_a_file_and_shown_whole(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        body = b"\x89PNG" + bytes(300_000)
        asked_at = job.created_at
        response = httpx.Response(200, headers={"content-type": "image/png"}, content=body)
        await here.receiver.parts.intake.record_answer(
            response, source=Source.RESPONSE, provider="freepik", job_id=job.id, asked_at=asked_at
        )
        await here.read()
        (kept,) = await here.evidence(job)
        assert (kept.body, kept.body_name is not None) == (b"", True)
        (shown,) = (await here.client.get(f"/v1/jobs/{job.id}/evidence")).json()["items"]
        assert base64.b64decode(shown["body_base64"]) == body
