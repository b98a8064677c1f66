"""
No list, claim or sweep reads a large table from end to end, on either engine.

The plans are read, not timed. The rows are as many, and of such kinds, that the planner of PostgreSQL has the choice
that it has with a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.deliveries import DeliveryFilter
from receiver.domain.events import EventFilter
from receiver.domain.evidence import EvidenceFilter
from receiver.store import attention
from receiver.store.backlog import Backlog
from receiver.store.blobs import Blobs
from receiver.store.codecs import us
from receiver.store.deliveries import Deliveries
from receiver.store.delivery_log import DeliveryLog
from receiver.store.engines.sqlite import SqliteDatabase
from receiver.store.events import Events
from receiver.store.job_list import JobFilter
from receiver.store.jobs import JobStore
from receiver.store.pace import Allowance
from receiver.store.providers import ProviderTable
from receiver.store.retention import Pruning, Retention
from receiver.store.statements import Fetch, alone
from receiver.store.timeline import explain
from submitter.provider_settings import Rate
from tests.support.recorded import Recorded, tables_read_whole
from tests.support.rows import execute

ROWS = 30_000
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LEASE = timedelta(seconds=8)
LARGE = {"jobs", "evidence", "images", "events", "deliveries", "attempts", "idempotency"}
JOB = "job_01m8a1bc2h3ssrh63q{:08d}"
PROVIDERS = ("freepik", "apixo", "novita", "upscayl", "pixelcut")

_NUMBERS = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
_PADDED = "substr(CAST(100000000 + n AS TEXT), 2)"
_PROVIDER = "CASE n % 5 WHEN 0 THEN 'freepik' WHEN 1 THEN 'apixo' WHEN 2 THEN 'novita' WHEN 3 THEN 'upscayl'" + (
    " ELSE 'pixelcut' END"
)
_AT = f"{us(NOW - timedelta(days=60))} + CAST(n AS BIGINT) * 1000000"
_FILL = (
    f"INSERT INTO jobs (id, provider, state, version, options, metadata, awaits_callback, tries, polls, created_at,"
    f" retry_at, next_poll_at, sent_at, finished_at, settled_by, input_name, remote_id)"
    f" {_NUMBERS} SELECT 'job_01m8a1bc2h3ssrh63q' || {_PADDED}, {_PROVIDER},"
    " CASE n % 100 WHEN 7 THEN 'queued' WHEN 8 THEN 'running' WHEN 9 THEN 'unconfirmed' WHEN 10 THEN 'failed'"
    f" ELSE 'succeeded' END, 1, '{{}}', '{{}}', 1, 1, 0, {_AT}, CASE n % 100 WHEN 7 THEN {_AT} END,"
    f" CASE n % 100 WHEN 8 THEN {_AT} END, {_AT}, CASE WHEN n % 100 IN (7, 8, 9) THEN NULL ELSE {_AT} END,"
    " 'callback', 'x', 'task-' || CAST(n AS TEXT) FROM numbers",
    "INSERT INTO evidence (source, provider, job_id, received_at, read_at, headers, body, verdict, trust)"
    f" {_NUMBERS} SELECT 'callback', {_PROVIDER}, 'job_01m8a1bc2h3ssrh63q' || {_PADDED}, {_AT},"
    f" CASE WHEN n % 500 = 0 THEN NULL ELSE {_AT} END, '[]', BYTES, 'believed', 'signed_body' FROM numbers",
    "INSERT INTO images (job_id, n, state, tries, next_at, give_up_at, kept_at)"
    f" {_NUMBERS} SELECT 'job_01m8a1bc2h3ssrh63q' || {_PADDED}, 0,"
    " CASE n % 100 WHEN 1 THEN 'wanted' WHEN 2 THEN 'lost' ELSE 'kept' END, 0,"
    f" CASE n % 100 WHEN 1 THEN {_AT} END, {_AT}, {_AT} FROM numbers",
    "INSERT INTO events (id, position, type, job_id, provider, created_at, body, example)"
    f" {_NUMBERS} SELECT 'evt_01m8a1bc2h3ssrh63q' || {_PADDED}, n, 'job.succeeded',"
    f" 'job_01m8a1bc2h3ssrh63q' || {_PADDED}, {_PROVIDER}, {_AT}, '{{}}', 0 FROM numbers",
    "INSERT INTO deliveries (id, event_id, event_type, job_id, endpoint_id, lane, state, tries, retry, example,"
    f" created_at, next_at) {_NUMBERS} SELECT 'dlv_01m8a1bc2h3ssrh63q' || {_PADDED},"
    f" 'evt_01m8a1bc2h3ssrh63q' || {_PADDED}, 'job.succeeded', 'job_01m8a1bc2h3ssrh63q' || {_PADDED},"
    " 'ep_' || CAST(n % 50 AS TEXT), 'ep_' || CAST(n % 50 AS TEXT),"
    f" CASE n % 100 WHEN 1 THEN 'pending' WHEN 2 THEN 'given_up' ELSE 'delivered' END, 1, 0, 0, {_AT}, {_AT}"
    " FROM numbers",
    "INSERT INTO attempts (delivery_id, started_at, seconds)"
    f" {_NUMBERS} SELECT 'dlv_01m8a1bc2h3ssrh63q' || {_PADDED}, {_AT}, 0.1 FROM numbers",
    "INSERT INTO idempotency (token_id, key, digest, job_id, created_at)"
    f" {_NUMBERS} SELECT 'token', CAST(n AS TEXT), 'x', 'job_01m8a1bc2h3ssrh63q' || {_PADDED}, {_AT} FROM numbers",
)


async def filled(database: Any) -> Recorded:
    """The database with many rows in every large table, and its planner told of them."""
    some_bytes = "X'78'" if isinstance(database, SqliteDatabase) else "'x'::bytea"
    for statement in _FILL:
        # A row of this table is so short that reading it whole is cheapest until it is longer than the others.
        rows = 5 * ROWS if "INTO idempotency" in statement else ROWS
        await execute(database, statement.replace("BYTES", some_bytes), rows)
    await database.write(alone(Fetch("ANALYZE")))
    return Recorded(database)


@pytest.mark.slow
async def test_claims_and_sweeps_are_index_scans(database: Any, tmp_path: Path) -> None:
    recorded = await filled(database)
    store = JobStore(recorded)
    await store.leases.first_queued(PROVIDERS)
    await store.leases.first_due(PROVIDERS)
    allowance = Allowance("apixo/submit", (Rate(20, 1),), places=8)
    claimed = await store.leases.claim_queued("novita", NOW, owner="x", lease=LEASE, limit=8, allowance=allowance)
    await store.leases.claim_due(dict.fromkeys(PROVIDERS, 8), NOW, owner="x", lease=LEASE)
    await store.leases.lapsed_sending(NOW)
    await store.leases.renew([job.id for job in claimed.jobs], NOW, owner="x", lease=LEASE)
    await store.leases.hand_back([job.id for job in claimed.jobs], NOW, owner="x")
    await store.evidence.unread(limit=300)
    await store.images.next_at()
    await store.images.claim(NOW, lease=LEASE, limit=16)
    deliveries = Deliveries(recorded)
    await deliveries.agenda(NOW)
    await deliveries.claim({("ep_1", False): 5}, NOW, owner="x", lease=LEASE)
    blobs = Blobs(tmp_path)
    blobs.prepare()
    days = timedelta(days=61)
    keep = Retention(days, jobs=days, events=days, images=days)
    await Pruning(recorded, blobs, keep=keep, clock=lambda: NOW).prune()
    await assert_no_table_is_read_whole(database, recorded)


@pytest.mark.slow
async def test_lists_are_index_scans(database: Any) -> None:
    recorded = await filled(database)
    store, log, events = JobStore(recorded), DeliveryLog(recorded), Events(recorded)
    job = JOB.format(20_000)
    filters: Sequence[JobFilter] = (
        JobFilter(),
        JobFilter(states=("queued",)),
        JobFilter(providers=("novita",)),
        JobFilter(states=("failed", "running"), providers=("novita", "apixo")),
        JobFilter(since=NOW - timedelta(days=1), until=NOW),
        JobFilter(lost=True),
        JobFilter(lost=True, states=("failed",), providers=("novita", "apixo")),
    )
    for wanted in filters:
        await store.page(wanted, limit=50)
        await store.page(wanted, before=job, limit=50)
    await store.job(job)
    await store.queue_lengths()
    await explain(recorded, job, NOW)
    await store.evidence.of(job)
    await store.evidence.unsigned_bytes(job)
    await store.evidence.read_before(EvidenceFilter(job_id=job), after=0, limit=100)
    await store.evidence.read_before(EvidenceFilter(), after=1000, limit=100)
    for choice in (EventFilter(), EventFilter(job_id=job), EventFilter(types=frozenset({"job.failed"}))):
        await events.after(ROWS - 100, limit=50, choice=choice)
    for delivery_filter in (
        DeliveryFilter(),
        DeliveryFilter(states=("given_up",)),
        DeliveryFilter(endpoint_id="ep_7"),
        DeliveryFilter(job_id=job),
        DeliveryFilter(event_id="evt_01m8a1bc2h3ssrh63q00020000"),
        DeliveryFilter(undelivered=True),
    ):
        await log.page(delivery_filter, limit=50)
    await log.get("dlv_01m8a1bc2h3ssrh63q00020000")
    await Backlog(recorded).unread(most=1000)
    await Backlog(recorded).measure(NOW, PROVIDERS)
    await attention.concerns(recorded, NOW)
    await attention.open_jobs(recorded, PROVIDERS)
    await ProviderTable(recorded).last_finished("novita", limit=20, awaited=True)
    await ProviderTable(recorded).costs(NOW + timedelta(days=30))
    await assert_no_table_is_read_whole(database, recorded)


async def assert_no_table_is_read_whole(database: Any, recorded: Recorded) -> None:
    assert len(recorded.texts) > 15
    whole = {
        text: tables
        for text, values in recorded.texts.items()
        if (tables := set(await tables_read_whole(database, text, values)) & LARGE)
    }
    assert whole == {}
