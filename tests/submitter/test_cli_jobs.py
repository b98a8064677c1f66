"""Commands that act on a job or show one, as processes against a live receiver."""

import json
import os
import re
import signal
import tempfile
from pathlib import Path
from typing import Any

from submitter.sandbox import test_picture as picture_bytes
from tests.support import forking
from tests.support.cli import Done, bare_environment, receiver_command
from tests.support.engines import on_engine
from tests.support.processes import LiveReceiver, live, submit, wait_for_state
from tests.support.submitter_cli import environment, started, submitter
from tests.support.waiting import patiently


async def receiver_says(receiver: LiveReceiver, *arguments: str) -> Done:
    directory = receiver.data_dir.parent
    return await receiver_command(
        *arguments, environment=on_engine(environment(receiver), directory), directory=directory
    )


async def test_a_job_that_waits_is_canceled_and_resubmitted_and_its_result_downloaded(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    async with live(tmp_path) as (receiver, sandbox):
        paused = await receiver_says(receiver, "providers", "pause", "upscayl", "--reason", "invoice is open")
        assert paused.status == 0, paused.err
        assert "invoice is open" in (await submitter(receiver, "providers")).out
        sent = await submitter(receiver, "send", "cat.jpg", "--provider", "upscayl")
        job_id = sent.out.split()[0]

        canceled = await submitter(receiver, "cancel", job_id, "--json")
        assert (canceled.status, canceled.json["state"]) == (0, "canceled"), canceled.err
        again = await submitter(receiver, "cancel", job_id)
        assert (again.status, "canceled" in again.err, again.out) == (1, True, "")
        nothing = await submitter(receiver, "download", job_id)
        assert (nothing.status, "canceled" in nothing.err, list(tmp_path.glob("cat*"))) == (
            1,
            True,
            [tmp_path / "cat.jpg"],
        )
        assert sandbox.calls("upscayl") == 0

        assert (await receiver_says(receiver, "providers", "resume", "upscayl")).status == 0
        anew = await submitter(receiver, "resubmit", job_id, "--json")
        assert (anew.status, anew.json["resubmit_of"]) == (0, job_id), anew.err
        assert (await submitter(receiver, "wait", anew.json["id"])).status == 0
        saved = await submitter(receiver, "download", anew.json["id"], "--out", "out", "--json")
        assert saved.status == 0, saved.err
        (name,) = saved.json["saved"]
        async with receiver.client() as client:
            kept = await client.get(f"/v1/jobs/{anew.json['id']}/images/0")
        assert (tmp_path / name).read_bytes() == kept.content
        assert len(sandbox.accepted("upscayl")) == 1


async def test_a_poll_of_a_job_that_ended_or_is_unknown_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        job = await submit(client, "freepik", picture_bytes(160, 120))
        await wait_for_state(client, job["id"], "succeeded", kept=True)
        settled = await submitter(receiver, "poll", job["id"])
        assert (settled.status, "is succeeded already" in settled.err) == (1, True)
        unknown = await submitter(receiver, "poll", "job_01m8bv8xjmdah03r1j71k3ft5n")
        assert (unknown.status, "no such job" in unknown.err) == (1, True)


async def test_a_poll_that_is_asked_for_comes_within_seconds_and_prints_what_it_found(tmp_path: Path) -> None:
    hourly = {"RECEIVER_POLL_INTERVAL": "3600"}
    async with live(tmp_path, environment=hourly) as (receiver, _), receiver.client() as client:
        job = await submit(client, "upscayl", picture_bytes(160, 120))
        await wait_for_state(client, job["id"], "running")
        said: list[str] = []
        while not said or not said[-1].endswith("succeeded"):
            polled = await submitter(receiver, "poll", job["id"])
            assert polled.status == 0, polled.err
            said.append(polled.out.strip())
        assert set(said[:-1]) <= {f"{job['id']} running"}
        evidence = (await client.get(f"/v1/jobs/{job['id']}/evidence")).json()["items"]
        assert [piece["source"] for piece in evidence].count("poll") == len(said)

        other = await submit(client, "upscayl", picture_bytes(160, 120))
        await wait_for_state(client, other["id"], "running")
        at_once = await submitter(receiver, "poll", other["id"], "--wait", "0")
        assert (at_once.status, at_once.out) == (0, f"{other['id']} running: its poll is due\n")


async def test_what_a_provider_sent_can_be_had_byte_for_byte(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        job = await submit(client, "novita", picture_bytes(160, 120))
        job = await wait_for_state(client, job["id"], "succeeded", kept=True)
        listed = await receiver_says(receiver, "evidence", "list", job["id"], "--json")
        (callback,) = [piece for piece in listed.json["items"] if piece["source"] == "callback"]
        number = str(callback["id"])
        raw = await receiver_says(receiver, "evidence", "raw", job["id"], number)
        assert raw.status == 0, raw.err
        assert json.loads(raw.out)["payload"]["task"]["task_id"] == job["remote_id"]
        headers = await receiver_says(receiver, "evidence", "raw", job["id"], number, "--headers")
        assert re.findall(r"(?im)^content-length: (\d+)$", headers.out) == [str(len(raw.out.encode()))]
        missing = await receiver_says(receiver, "evidence", "raw", job["id"], "999999")
        assert (missing.status, missing.out, "Traceback" in missing.err) == (1, "", False)


async def test_events_are_followed_until_interrupted(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        job = await submit(client, "apixo", picture_bytes(160, 120))
        other = await submit(client, "upscayl", picture_bytes(160, 120))
        await wait_for_state(client, job["id"], "succeeded", kept=True)
        await wait_for_state(client, other["id"], "succeeded", kept=True)
        arguments = ("tail", "--after", "0", "--job", job["id"], "--json")
        there = on_engine({}, tmp_path)
        process = await started(receiver, "events", *arguments, program="receiver", **there)
        assert process.stdout is not None
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1]["type"] != "job.images_kept":
            line = await patiently(process.stdout.readline())
            assert line, (await patiently(process.communicate()))[1]
            seen.append(json.loads(line))
        assert {event["data"]["id"] for event in seen} == {job["id"]}
        assert [event["type"] for event in seen] == ["job.queued", "job.running", "job.succeeded", "job.images_kept"]
        process.send_signal(signal.SIGINT)
        _, err = await patiently(process.communicate())
        assert (process.returncode, b"Traceback" in err) == (0, False)


async def test_following_ends_when_nobody_reads_any_more(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        await submit(client, "apixo", picture_bytes(160, 120))
        for command in (("events", "tail"), ("jobs", "watch")):
            reader, writer = os.pipe()
            with open(writer, "wb") as out, tempfile.TemporaryFile() as err:
                process = await forking.fork(
                    "receiver", *command, environment=environment(receiver), directory=tmp_path, out=out, err=err
                )
                out.close()
                os.close(reader)
                assert await patiently(process.wait()) == 1
                err.seek(0)
                assert err.read() == b""


async def test_a_body_is_signed_and_its_signature_verified(tmp_path: Path) -> None:
    (tmp_path / "body.json").write_bytes(b'{"type": "job.succeeded"}')
    (tmp_path / "other.json").write_bytes(b'{"type": "job.failed"}')
    secret = ("--secret", "whsec_" + "A" * 32)

    async def says(*arguments: str) -> Done:
        return await receiver_command("signature", *arguments, environment=bare_environment(), directory=tmp_path)

    def given(signed: Done) -> list[str]:
        return [part for line in signed.out.splitlines() for part in ("-H", line)]

    signed = await says("sign", "body.json", *secret)
    assert (signed.status, len(signed.out.splitlines())) == (0, 3), signed.err
    assert (await says("verify", "body.json", *secret, *given(signed))).status == 0
    assert (await says("verify", "other.json", *secret, *given(signed))).status == 1
    assert (await says("verify", "body.json", "--secret", "whsec_" + "B" * 32, *given(signed))).status == 1

    old = await says("sign", "body.json", *secret, "--timestamp", "1700000000")
    assert (await says("verify", "body.json", *secret, *given(old))).status == 1
    assert (await says("verify", "body.json", *secret, *given(old), "--any-age")).status == 0
    for odd in ("9" * 400, "-1", "soon", ""):
        headers = [re.sub("(?i)^(webhook-timestamp: ).*", rf"\g<1>{odd}", part) for part in given(old)]
        done = await says("verify", "body.json", *secret, *headers, "--any-age")
        assert (done.status in (1, 2), "Traceback" in done.err) == (True, False), (odd, done)
