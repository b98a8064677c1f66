"""`/healthz`, `/readyz` and `/metrics`: what they see, and what seeing it costs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from receiver.runtime.loops import DEAD_AFTER_SECONDS, LONGEST_IDLE_SECONDS, Loop
from receiver.runtime.metrics import Metrics
from receiver.store import backlog
from receiver.store.codecs import us
from receiver.store.database import Database, open_database
from receiver.upstream.statistics import ProviderStatistics
from receiver.web.health import Health
from submitter.providers import PROVIDERS
from submitter.sandbox import test_picture as picture_bytes
from tests.support.engines import database_of
from tests.support.processes import live, submit, wait_for_state
from tests.support.rows import define, execute
from tests.support.running_receiver import running_receiver
from tests.support.waiting import eventually

ROWS = 1000


@contextlib.asynccontextmanager
async def probed(path: Path, *loops: Loop) -> AsyncIterator[tuple[Database, httpx.AsyncClient]]:
    """A client of the probes over a real database."""
    database = await open_database(database_of(path))
    health = Health(database, loops, Metrics(), ProviderStatistics(database), list(PROVIDERS))
    transport = httpx.ASGITransport(Starlette(routes=health.routes()))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
            yield database, client
    finally:
        await database.close()


async def test_a_loop_whose_step_hangs_shows(tmp_path: Path) -> None:
    async def hang() -> float:
        await asyncio.Event().wait()
        return 0.0

    loop = Loop("archive", hang)
    running = asyncio.create_task(loop.run())
    async with probed(tmp_path, loop) as (_, client):
        assert (await client.get("/readyz")).status_code == 200
        loop.beat_at = time.monotonic() - 31
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["loops"] == "not running: archive"
        scraped = (await client.get("/metrics")).text
        age = re.search(r'receiver_loop_age_seconds\{loop="archive"\} ([0-9.]+)', scraped)
        assert age is not None and float(age[1]) >= 31
        assert (await client.get("/healthz")).status_code == 200
    running.cancel()


def test_no_loop_waits_so_long_that_it_looks_dead() -> None:
    """The loop of a worker that records its keys once a minute made `/readyz` fail for half of each minute."""

    async def step() -> float:
        return 0.0

    assert 2 * LONGEST_IDLE_SECONDS <= DEAD_AFTER_SECONDS
    Loop("presence", step, idle_seconds=LONGEST_IDLE_SECONDS)
    with pytest.raises(ValueError, match="taken for dead"):
        Loop("presence", step, idle_seconds=60)


async def test_a_loop_that_fails_again_and_again_shows(tmp_path: Path) -> None:
    async def fail() -> float:
        raise OSError("the disk is gone")

    loop = Loop("reader", fail)
    loop.failures = 4
    async with probed(tmp_path, loop) as (_, client):
        assert (await client.get("/readyz")).json()["checks"]["loops"] == "not running: reader"


async def test_an_older_schema_and_a_backlog_show(tmp_path: Path) -> None:
    async with probed(tmp_path) as (database, client):
        await execute(database, "UPDATE alembic_version SET version_num = 'older'")
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["checks"]["migrations"]) == (503, "behind; run receiver migrate")
        assert answer.json()["checks"]["backlog"] == "ok"


@pytest.mark.sqlite(reason="another process holds the one writer's lock")
async def test_a_database_that_can_be_read_and_not_written_shows(tmp_path: Path) -> None:
    async with probed(tmp_path) as (_, client):
        holder = sqlite3.connect(tmp_path / "receiver.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        answers = await asyncio.gather(*(client.get("/readyz") for _ in range(3)))
        assert [answer.status_code for answer in answers] == [503] * 3
        assert answers[0].json()["checks"]["database"] == "nothing could be written for 2 s"
        holder.execute("ROLLBACK")
        holder.close()
        await eventually(lambda: _is_ready(client))


async def _is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def test_a_database_that_is_gone_shows(tmp_path: Path) -> None:
    async with probed(tmp_path) as (database, client):
        await define(database, "DROP TABLE evidence")
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["database"].startswith(("unavailable: ", "failed: "))


@pytest.mark.sqlite(reason="reads the plans of SQLite; tests/receiver/store/test_plans.py has both")
def test_no_count_reads_a_table_from_end_to_end(tmp_path: Path) -> None:
    asyncio.run(_made(tmp_path / "receiver.db"))
    queries = {**backlog.QUEUES, "open": backlog.OPEN, "backlog": backlog.UNREAD, "polls": backlog.DUE_POLLS}
    with contextlib.closing(sqlite3.connect(tmp_path / "receiver.db")) as database:
        for name, text in queries.items():
            sql = text.replace("??", "?")
            plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {sql}", ("x",) * sql.count("?"))]
            tables = [step for step in plan if re.match(r"SCAN (jobs|evidence|deliveries|images)\b(?!.*INDEX)", step)]
            assert tables == [], (name, plan)


async def _made(path: Path) -> None:
    await (await open_database(path)).close()


async def test_a_scrape_counts_what_waits(tmp_path: Path) -> None:
    async with probed(tmp_path) as (database, client):
        await _fill(database, ROWS)
        scraped = await client.get("/metrics")
        assert scraped.status_code == 200
        assert f'receiver_waiting{{queue="deliveries"}} {ROWS // 20}.0' in scraped.text
        assert 'receiver_jobs{provider="freepik",state="running"}' in scraped.text


async def _fill(database: Database, count: int) -> None:
    """Jobs, one of twenty running and the others finished, with evidence and deliveries."""
    now = us(datetime.now(UTC))
    jobs, deliveries = [], []
    for n in range(count):
        open_ = n % 20 == 0
        ends = ("running", None, None) if open_ else ("succeeded", now, "callback")
        jobs.append((f"job_{n:026}", "freepik", 1, "{}", "{}", 1, "x", 1, 0, now - n, now - n, *ends))
        deliveries.append((f"dlv_{n:026}", "evt_x", "job.succeeded", "ep_x", 1, 0, now, now, 0, _STATES[open_]))
    columns = "id provider version options metadata awaits_callback input_name tries polls created_at sent_at"
    await database.append("jobs", (*columns.split(), "state", "finished_at", "settled_by"), jobs)
    columns = "job_id provider source verdict received_at read_at headers body"
    evidence = [(job[0], "freepik", "callback", "believed", now, now, "[]", b"{}") for job in jobs]
    await database.append("evidence", tuple(columns.split()), evidence)
    columns = "id event_id event_type lane tries retry next_at created_at example state"
    await database.append("deliveries", tuple(columns.split()), deliveries)


_STATES = ("delivered", "pending")


async def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, sandbox), receiver.client() as client:
        jobs = [await submit(client, name, picture_bytes(160, 120)) for name in PROVIDERS]
        for job in jobs:
            await wait_for_state(client, job["id"], kept=True)
        path = (sandbox.accepted("freepik")[0].callback_url or "").removeprefix(receiver.url)
        assert (await client.post(path, content=b"{}")).status_code == 401
        wanted = [
            'receiver_callbacks_total{provider="freepik",verdict="recorded"}',
            'receiver_callbacks_total{provider="freepik",verdict="refused"} 1.0',
            'receiver_callback_ack_seconds_count{provider="apixo"}',
            'receiver_callback_timeout_seconds{provider="novita"} 5.0',
            "receiver_callback_settle_seconds_count",
            'receiver_jobs_settled_total{by="callback",provider="novita"} 1.0',
            'receiver_jobs_settled_total{by="poll",provider="upscayl"} 1.0',
            'receiver_jobs_settled_total{by="response",provider="pixelcut"} 1.0',
            'receiver_submits_total{outcome="accepted",provider="freepik"} 1.0',
            'receiver_polls_total{outcome="succeeded",provider="upscayl"} 1.0',
            'receiver_images_total{outcome="kept"} 5.0',
            'receiver_lost_callback_ratio{provider="freepik"} 0.0',
            'receiver_spend_today{provider="upscayl",unit="credits"} 10.0',
            'receiver_oldest_seconds{queue="unread"}',
            'receiver_waiting{queue="deliveries"} 0.0',
            "receiver_jobs_overdue 0.0",
            'receiver_loop_age_seconds{loop="poller"}',
        ]
        text = ""

        async def reported() -> bool:
            nonlocal text
            text = (await client.get("/metrics")).text
            return all(line in text for line in wanted)

        await eventually(reported, what=lambda: str([line for line in wanted if line not in text]))
        assert "job_0" not in text
        assert "http" not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


async def test_behind_the_public_name_only_the_public_side_answers(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        for host in ("hooks.example.com", "HOOKS.example.com", "hooks.example.com:8443"):
            for path in ("/metrics", "/readyz"):
                answer = await here.client.get(path, headers={"host": host})
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
            assert (await here.client.get("/healthz", headers={"host": host})).status_code == 200
            assert (await here.client.get("/v1/jobs", headers={"host": host})).status_code == 200
        for host in ("127.0.0.1:8000", "receiver:8000", "10.0.0.5"):
            for path in ("/metrics", "/readyz"):
                assert (await here.client.get(path, headers={"host": host})).status_code == 200
    async with running_receiver(tmp_path, public_metrics=True) as here:
        assert (await here.client.get("/metrics")).status_code == 200
    async with running_receiver(tmp_path, public_url="http://127.0.0.1:8000") as here:
        assert (await here.client.get("/metrics", headers={"host": "127.0.0.1:8000"})).status_code == 200
