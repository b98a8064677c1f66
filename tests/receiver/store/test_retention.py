"""Old data is removed, nothing else is, and callbacks are not delayed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.endpoints import Endpoint
from receiver.domain.events import NewEvent
from receiver.domain.evidence import Evidence
from receiver.domain.ids import lowest_id, new_id
from receiver.domain.jobs import Job, Source, Verdict
from receiver.store.blobs import Blobs
from receiver.store.codecs import us
from receiver.store.endpoints import Endpoints
from receiver.store.events import Events
from receiver.store.jobs import JobStore
from receiver.store.object_store import ObjectStore
from receiver.store.outbox import write_events
from receiver.store.retention import Pruned, Pruning, Retention
from receiver.store.statements import NumberEvents, alone
from submitter.vocabulary import Image, State
from tests.support.object_stores import bucket
from tests.support.rows import execute, execute_many, fetch
from tests.support.running_receiver import RunningReceiver, running_receiver
from tests.support.waiting import eventually

NOW = datetime.now(UTC)
OLD, YOUNG = NOW - timedelta(days=31), NOW - timedelta(days=29)


@contextlib.asynccontextmanager
async def unpruned(tmp_path: Path) -> AsyncIterator[RunningReceiver]:
    """A running_receiver whose own loop does not prune beside the test: what goes is counted."""
    async with running_receiver(tmp_path) as here:
        own = next(task for task in asyncio.all_tasks() if task.get_name() == "loop pruning")
        own.cancel()
        await asyncio.wait([own])
        yield here


def pruning(here: RunningReceiver) -> Pruning:
    return Pruning(here.receiver.parts.database, blobs(here), keep=Retention(timedelta(days=30)))


def blobs(here: RunningReceiver) -> Blobs:
    return Blobs(here.receiver.settings.data_dir)


def piece(job: Job | None, received_at: datetime, *, read: bool = True, body_name: str | None = None) -> Evidence:
    return Evidence(
        source=Source.CALLBACK,
        provider="freepik",
        job_id=None if job is None else job.id,
        received_at=received_at,
        read_at=received_at if read else None,
        headers_json='[["host", "x"]]',
        body=b"{}",
        body_name=body_name,
        verdict=Verdict.IGNORED,
    )


async def test_old_evidence_of_ended_jobs_goes(tmp_path: Path) -> None:
    async with unpruned(tmp_path) as here:
        ended, running = await here.job(state=State.SUCCEEDED), await here.job()
        unconfirmed = await here.job(state=State.UNCONFIRMED)
        log = here.receiver.parts.store.evidence
        await log.record(
            [piece(job, at) for at in (OLD, YOUNG) for job in (ended, running, unconfirmed, None)]
            + [piece(ended, OLD), piece(ended, NOW)]
        )
        assert await pruning(here).prune() == Pruned(evidence=3)
        assert [piece.received_at for piece in await log.of(ended.id)] == [YOUNG, NOW]
        assert [piece.received_at for piece in await log.of(running.id)] == [OLD, YOUNG]
        assert len(await log.of(unconfirmed.id)) == 2
        assert await pruning(here).prune() == Pruned()


async def test_what_nobody_has_read_stays(tmp_path: Path) -> None:
    async with unpruned(tmp_path) as here:
        job = await here.job(state=State.FAILED)
        async with here.receiver.parts.intake.reading:
            await here.receiver.parts.store.evidence.record([piece(job, OLD, read=False)])
            assert await pruning(here).prune() == Pruned()
            assert len(await here.evidence(job)) == 1


async def test_the_file_of_a_large_answer_goes_with_its_evidence(tmp_path: Path) -> None:
    async with unpruned(tmp_path) as here:
        job = await here.job(state=State.SUCCEEDED)
        names = [await blobs(here).put_body(b"x" * 1000) for _ in range(3)]
        pieces = [piece(job, at, body_name=name) for at, name in zip((OLD, OLD, YOUNG), names, strict=True)]
        await here.receiver.parts.store.evidence.record(pieces)
        await blobs(here).drop_body(names[0])
        assert (await pruning(here).prune()).evidence == 2, "a file that is gone already is no error"
        answers = here.receiver.settings.data_dir / "answers"
        assert [path.name for path in answers.iterdir()] == [names[2]]


@pytest.mark.parametrize(
    ("state", "finished", "written", "stays"),
    [
        (State.SUCCEEDED, timedelta(hours=25), timedelta(hours=26), False),
        (State.CANCELED, timedelta(hours=25), timedelta(hours=26), False),
        (State.SUCCEEDED, timedelta(hours=23), timedelta(hours=26), True),
        (State.RUNNING, None, timedelta(days=40), True),
        (State.UNCONFIRMED, None, timedelta(days=40), True),
        (State.QUEUED, None, timedelta(days=40), True),
    ],
)
async def test_a_finished_jobs_input_goes_after_a_day(
    state: State, finished: timedelta | None, written: timedelta, stays: bool, tmp_path: Path
) -> None:
    async with unpruned(tmp_path) as here:
        job = await here.job(state=state, finished_at=None if finished is None else NOW - finished)
        path = blobs(here).input_path(job.id)
        path.write_bytes(b"a picture")
        moment = (NOW - written).timestamp()
        os.utime(path, (moment, moment))
        assert (await pruning(here).prune()).inputs == (not stays)
        assert path.exists() == stays


async def test_inputs_that_belong_to_no_job_go_but_not_those_on_their_way_in(tmp_path: Path) -> None:
    async with unpruned(tmp_path) as here:
        lost, arriving = blobs(here).input_path("job_lost"), blobs(here).input_path("job_arriving")
        for path in (lost, arriving):
            path.write_bytes(b"a picture")
        os.utime(lost, (OLD.timestamp(), OLD.timestamp()))
        assert (await pruning(here).prune()).inputs == 1
        assert (lost.exists(), arriving.exists()) == (False, True)


async def test_idempotency_keys_go_after_a_day(tmp_path: Path) -> None:
    async with unpruned(tmp_path) as here:
        store = here.receiver.parts.store
        for age in (25, 23):
            job = await here.job()
            again = replace(job, id=new_id("job"), remote_id=None, created_at=NOW - timedelta(hours=age))
            await store.add_job(again, idempotency=("token", f"key-{age}", "digest"))
        assert (await pruning(here).prune()).idempotency_keys == 1
        assert await fetch(here.receiver.parts.database, "SELECT key FROM idempotency") == [("key-23",)]


async def test_old_attempts_go_unless_their_delivery_is_still_tried(tmp_path: Path) -> None:
    async with unpruned(tmp_path) as here:
        us = [int(at.timestamp() * 1_000_000) for at in (OLD, OLD, YOUNG)]
        await execute_many(
            here.receiver.parts.database,
            "INSERT INTO deliveries (id, event_id, event_type, lane, state, tries, retry, example, created_at,"
            " next_at) VALUES (?, 'evt_1', 'job.failed', 'x', ?, 1, 1, 0, 0, 9000000000000000)",
            [("dlv_done", "delivered"), ("dlv_tried", "pending")],
        )
        await execute_many(
            here.receiver.parts.database,
            "INSERT INTO attempts (delivery_id, started_at, seconds) VALUES (?, ?, 0.1)",
            [("dlv_done", us[0]), ("dlv_tried", us[1]), ("dlv_done", us[2])],
        )
        assert (await pruning(here).prune()).attempts == 1


async def test_finished_jobs_go_with_their_images_and_evidence_where_an_operator_says_when(
    database: Any, tmp_path: Path
) -> None:
    store, files = JobStore(database), Blobs(tmp_path)
    files.prepare()
    old, young = new_id_at("job", OLD), new_id_at("job", YOUNG)
    jobs: dict[str, dict[str, Any]] = {
        old: {"state": State.SUCCEEDED, "finished_at": OLD},
        new_id_at("job", OLD): {"state": State.UNCONFIRMED},
        new_id_at("job", OLD): {"state": State.FAILED, "finished_at": YOUNG},
        new_id_at("job", OLD): {"state": State.SUCCEEDED, "finished_at": OLD, "next_poll_at": NOW},
        young: {"state": State.SUCCEEDED, "finished_at": YOUNG},
    }
    for job_id, fields in jobs.items():
        await store.add_job(Job(job_id, "freepik", version=1, created_at=OLD, **fields))
    body_names = [await files.put_body(b"large") for _ in range(2)]
    for job_id, name in zip((old, young), body_names, strict=True):
        await execute(database, "INSERT INTO images (job_id, n, state, tries) VALUES (?, 0, 'kept', 1)", job_id)
        part = files.new_part()
        part.write_bytes(b"an image")
        await files.keep_thumbnail(part, job_id, 0)
        await store.evidence.record([replace(piece(None, YOUNG, body_name=name), job_id=job_id)])
    assert await Pruning(database, files, keep=Retention(timedelta(days=60))).prune() == Pruned()
    keep = Retention(timedelta(days=60), jobs=timedelta(days=30))
    assert await Pruning(database, files, keep=keep).prune() == Pruned(jobs=1)
    left = [row[0] for row in await fetch(database, "SELECT id FROM jobs")]
    assert sorted(left) == sorted(jobs.keys() - {old})
    for table in ("images", "evidence"):
        assert await fetch(database, f"SELECT job_id FROM {table}") == [(young,)]
    assert (files.thumbnail_path(old, 0).parent.exists(), files.thumbnail_path(young, 0).exists()) == (False, True)
    assert [path.name for path in (tmp_path / "answers").iterdir()] == [body_names[1]]


async def test_copies_of_results_go_where_an_operator_says_when_and_their_jobs_stay(
    database: Any, tmp_path: Path
) -> None:
    files = Blobs(tmp_path)
    files.prepare()
    await assert_old_images_go(database, files, lambda: sorted(path.name for path in (tmp_path / "images").iterdir()))


async def test_copies_of_results_go_from_an_object_store(
    database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bucket() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        files = Blobs(tmp_path, ObjectStore(made.url))
        files.prepare()

        async def there() -> list[str]:
            return sorted(key.split("/")[1] for key in await ObjectStore(made.url).keys("images"))

        await assert_old_images_go(database, files, there)


async def assert_old_images_go(database: Any, files: Blobs, there: Callable[[], Any]) -> None:
    """Of a young copy, an old one and one whose removal was cut off, the first stays; *there* names their jobs."""
    store = JobStore(database)

    async def left() -> list[str]:
        names = there()
        return list(await names if inspect.isawaitable(names) else names)

    for name, state, kept_at, next_at in (
        ("job_young", "kept", YOUNG, None),
        ("job_old", "kept", OLD, None),
        ("job_cut_off", "removed", NOW, us(NOW)),
    ):
        await store.add_job(Job(name, "freepik", version=1, created_at=OLD, state=State.SUCCEEDED, finished_at=OLD))
        row = (name, state, us(kept_at), next_at)
        await execute(
            database, "INSERT INTO images (job_id, n, state, tries, kept_at, next_at) VALUES (?, 0, ?, 1, ?, ?)", *row
        )
        await files.keep_data(name, 0, Image(data=b"an image"))
    assert await Pruning(database, files, keep=Retention(timedelta(days=60))).prune() == Pruned()
    keep = Retention(timedelta(days=60), images=timedelta(days=30))
    assert await Pruning(database, files, keep=keep).prune() == Pruned(images=2)
    assert await left() == ["job_young"]
    rows = await fetch(database, "SELECT job_id, state, next_at FROM images ORDER BY job_id")
    assert rows == [("job_cut_off", "removed", None), ("job_old", "removed", None), ("job_young", "kept", None)]
    assert await Pruning(database, files, keep=keep).prune() == Pruned()


async def test_events_go_with_their_deliveries_and_positions_go_on_behind_the_newest(
    database: Any, tmp_path: Path
) -> None:
    files = Blobs(tmp_path)
    files.prepare()
    await Endpoints(database).add(Endpoint("ep_1", "https://hooks.example", OLD, ()))
    for _ in range(3):
        await database.write(lambda: write_events([NewEvent("job.failed", {})], OLD))
        await database.write(alone(NumberEvents(10)))
    rows = await fetch(database, "SELECT id FROM events ORDER BY position")
    for number, (event_id,) in enumerate(rows):
        await execute(database, "UPDATE events SET id = ? WHERE id = ?", f"evt_{number}", event_id)
        state = "pending" if number == 1 else "delivered"
        await execute(
            database,
            "UPDATE deliveries SET event_id = ?, state = ? WHERE event_id = ?",
            f"evt_{number}",
            state,
            event_id,
        )
    keep = Retention(timedelta(days=60), events=timedelta(days=30))
    assert await Pruning(database, files, keep=keep).prune() == Pruned(events=1)
    assert await fetch(database, "SELECT position FROM events ORDER BY position") == [(2,), (3,)]
    assert await fetch(database, "SELECT event_id FROM deliveries ORDER BY event_id") == [("evt_1",), ("evt_2",)]
    await database.write(lambda: write_events([NewEvent("job.failed", {})], NOW))
    await database.write(alone(NumberEvents(10)))
    assert await Events(database).newest() == 4


def new_id_at(prefix: str, moment: datetime) -> str:
    """An id as it is made at *moment*."""
    return lowest_id(prefix, moment)[:-10] + new_id(prefix)[-10:]


async def test_it_runs_by_itself(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job(state=State.SUCCEEDED)
        await here.receiver.parts.store.evidence.record([piece(job, NOW - timedelta(minutes=1))])
    async with running_receiver(tmp_path, keep_days=0.000001) as again:

        async def gone() -> bool:
            return not await again.evidence(job)

        await eventually(gone)


@pytest.mark.slow
async def test_callbacks_do_not_notice_the_pruning(tmp_path: Path) -> None:
    """Callbacks come one after the other while 5,000 rows go, and none waits for the end of it."""
    rows = 5000
    async with unpruned(tmp_path) as here:
        ended, running = await here.job(state=State.SUCCEEDED), await here.job("novita")
        for _ in range(0, rows, 1000):
            await here.receiver.parts.store.evidence.record([piece(ended, OLD) for _ in range(1000)])
        work = asyncio.create_task(pruning(here).prune())
        acknowledged = 0
        while not work.done():
            assert (await here.write_events(running, "IN_PROGRESS")).status_code == 200
            acknowledged += not work.done()
        assert (await work).evidence == rows
    assert acknowledged >= 20, "the write lock was free between the batches"
