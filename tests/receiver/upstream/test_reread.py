"""`receiver reread`: what was put aside is read again by the readers and secrets of today."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from receiver.domain.evidence import EvidenceFilter
from receiver.domain.jobs import Job, Source, Verdict
from receiver.store.blobs import Blobs
from receiver.upstream.reread import UNUSED, Reread, Rereading
from submitter.vocabulary import Callback, Report, State
from tests.support.cli import Done, bare_environment, receiver_command
from tests.support.running_receiver import SECRET, RunningReceiver, freepik_body, running_receiver, signed

REFUSED = EvidenceFilter(verdicts=(Verdict.REFUSED,))
ASIDE = EvidenceFilter(verdicts=UNUSED)


async def reread(here: RunningReceiver, selection: EvidenceFilter, **options: bool) -> list[Reread]:
    parts, settings = here.receiver.parts, here.receiver.settings
    rereading = Rereading(
        parts.store,
        {name: slot.provider for name, slot in parts.slots.items()},
        Blobs(settings.data_dir),
        confirm=settings.confirm,
        timing_of=lambda name: parts.slots[name].usual,
    )
    return [reading async for reading in rereading.run(selection, datetime.now(UTC), **options)]


async def unreadable_once(here: RunningReceiver, job: Job, status: str) -> None:
    """A callback that came while the reader did not know its shape."""
    provider = here.receiver.parts.slots[job.provider].provider
    good = type(provider)

    class Older(good):  # type: ignore[misc, valid-type]
        def read(self, callback: Callback) -> Report | None:
            raise KeyError("a shape that it did not know")

    provider.__class__ = Older
    await here.write_events(job, status)
    await here.read()
    provider.__class__ = good
    assert (await here.verdicts(job))[-1:] == ["unreadable"]


async def test_what_was_unreadable_settles_its_job_once_the_reader_is_fixed(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        await unreadable_once(here, job, "COMPLETED")
        (reading,) = await reread(here, ASIDE)
        assert (reading.changed, reading.verdict, reading.state, reading.events) == (
            True,
            "believed",
            "succeeded",
            ("job.succeeded",),
        )
        done = await here.now(job)
        assert (done.state, done.settled_by) == (State.SUCCEEDED, Source.CALLBACK)
        assert await here.verdicts(job) == ["believed"]


async def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        await unreadable_once(here, job, "COMPLETED")
        before = await here.now(job)
        (said,) = await reread(here, ASIDE, dry_run=True)
        assert (said.changed, said.events) == (True, ("job.succeeded",))
        assert await here.now(job) == before
        assert await here.verdicts(job) == ["unreadable"]
        assert await here.events(job) == []
        (done,) = await reread(here, ASIDE)
        assert done == said


async def test_reading_everything_again_changes_and_tells_nothing(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        jobs = [await here.job(), await here.job("novita"), await here.job(state=State.CANCELED), await here.job()]
        for job in jobs[:3]:
            here.upstream.says[job.remote_id or ""] = "COMPLETED"
            for status in ("IN_PROGRESS", "COMPLETED", "FAILED"):
                await here.write_events(job, status)
        await here.write_events(jobs[3], "IN_PROGRESS")
        await here.read()
        await here.becomes(jobs[1], State.SUCCEEDED)
        before = [(await here.now(job), await here.events(job), await here.verdicts(job)) for job in jobs]
        for _ in range(2):
            again = await reread(here, EvidenceFilter())
            assert len(again) >= 11
            assert not any(reading.events for reading in again)
        assert [(await here.now(job), await here.events(job), await here.verdicts(job)) for job in jobs] == before


async def test_an_old_answer_that_said_busy_queues_nothing_again(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        await here.write_events(job, "IN_PROGRESS")
        await here.read()
        (callback,) = await here.evidence(job)
        for status in (429, 400, 500, 200):
            await here.receiver.parts.store.evidence.record(
                [
                    type(callback)(
                        source=Source.RESPONSE,
                        provider="freepik",
                        job_id=job.id,
                        received_at=callback.received_at,
                        read_at=callback.received_at,
                        headers_json="[]",
                        body=b'{"message": "busy"}',
                        status=status,
                        verdict=Verdict.IGNORED,
                    )
                ]
            )
        before = await here.now(job)
        again = await reread(here, ASIDE)
        assert [reading.changed for reading in again] == [False] * 4
        assert await here.now(job) == before


async def test_a_refused_callback_is_believed_once_its_secret_is_set_right(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, webhook_secrets=("the-wrong-one",)) as here:
        job = await here.job()
        assert (await here.write_events(job, "COMPLETED")).status_code == 401
        body = freepik_body(job.remote_id or "", "FAILED")
        assert (await here.post(job, body, signed(body, secret="forged"))).status_code == 401
        still = await reread(here, REFUSED, reverify=True)
        assert [reading.verdict for reading in still] == ["refused"] * 2
    async with running_receiver(tmp_path, webhook_secrets=(SECRET,)) as here:
        assert await reread(here, REFUSED) == [], "only when it is asked for"
        done = await reread(here, REFUSED, reverify=True)
        assert [reading.verdict for reading in done] == ["believed", "refused"]
        assert (await here.now(job)).state is State.SUCCEEDED
        (first, second) = await here.evidence(job)
        assert (first.verdict, first.trust, second.verdict, second.trust) == (
            "believed",
            "signed_body",
            "refused",
            None,
        )


async def test_a_refused_callback_that_came_again_and_was_believed_is_a_duplicate(tmp_path: Path) -> None:
    body = b""
    async with running_receiver(tmp_path, webhook_secrets=("the-wrong-one",)) as here:
        job = await here.job()
        body = freepik_body(job.remote_id or "", "IN_PROGRESS")
        headers = signed(body)
        assert (await here.post(job, body, headers)).status_code == 401
    async with running_receiver(tmp_path) as here:
        assert (await here.post(job, body, headers)).status_code == 200
        await here.read()
        (reading,) = await reread(here, REFUSED, reverify=True)
        assert (reading.verdict, reading.changed) == ("duplicate", False)


async def test_a_stale_callback_stays_refused_however_late_it_is_verified(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        body = freepik_body(job.remote_id or "", "COMPLETED")
        assert (await here.post(job, body, signed(body, at=1_700_000_000))).status_code == 401
        (reading,) = await reread(here, REFUSED, reverify=True)
        assert (reading.verdict, (reading.note or "").partition(":")[0]) == ("refused", "stale")


@pytest.mark.parametrize("dry_run", [True, False])
async def test_the_command_reads_again_beside_nobody(dry_run: bool, tmp_path: Path) -> None:
    async with running_receiver(tmp_path, webhook_secrets=("the-wrong-one",)) as here:
        job, other = await here.job(), await here.job()
        await here.write_events(job, "COMPLETED")
        await here.write_events(other, "COMPLETED")
    done = await _command(tmp_path, "--reverify", "--job", job.id, *(["--dry-run"] if dry_run else []))
    assert done.status == 0, done.err
    assert (done.json["changed"], done.json["dry_run"]) == (1, dry_run)
    (item,) = done.json["items"]
    assert (item["job"], item["verdict_before"], item["verdict"]) == (job.id, "refused", "believed")
    assert item["events"] == ["job.succeeded"]
    async with running_receiver(tmp_path) as here:
        assert (await here.now(job)).state is (State.RUNNING if dry_run else State.SUCCEEDED)
        assert (await here.now(other)).state is State.RUNNING
        assert len(await here.events(job)) == (0 if dry_run else 1)


async def test_the_command_says_what_it_does_not_understand(tmp_path: Path) -> None:
    assert (await _command(tmp_path, "--provider", "leonardo")).status == 2
    assert (await _command(tmp_path, "--since", "yesterday")).status == 2
    async with running_receiver(tmp_path):
        pass
    done = await _command(tmp_path, "--job", "job_no")
    assert (done.status, done.out) == (1, "")
    assert json.loads(done.err)["error"]["message"] == "there is no job job_no"


async def _command(tmp_path: Path, *arguments: str) -> Done:
    environment = bare_environment(RECEIVER_DATA_DIR=str(tmp_path / "data"), FREEPIK_WEBHOOK_SECRET=SECRET)
    assert os.environ.get("FREEPIK_WEBHOOK_SECRET") is None
    return await receiver_command("reread", *arguments, "--json", environment=environment, directory=tmp_path)
