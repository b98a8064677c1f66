"""The rate at which a queue drains, and the estimate of its end."""

from pathlib import Path

import httpx
import pytest

from receiver.domain.ids import new_id
from receiver.runtime.token_bucket import Bucket
from receiver.store.codecs import us
from receiver.store.database import Database
from receiver.upstream.rate_limits import Pace
from submitter.provider_settings import Rate
from submitter.providers import PROVIDERS
from tests.support.clock import Clock
from tests.support.rows import execute_many
from tests.support.upstream_loops import loops

NOVITA = (Rate(20, 60),)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(pace: Pace) -> Pace:
    """A pace whose window is open: enough calls were answered."""
    for n in range(8):
        pace.leaving(str(n))
        pace.answered()
        pace.ended(str(n), made=False)
    return pace


@pytest.mark.slow
async def test_ten_thousand_queued_jobs_drain_at_the_documented_rate(tmp_path: Path) -> None:
    clock = Clock()
    pace = Pace(PROVIDERS["novita"].rates, concurrency=8, clock=clock.seconds)
    async with loops(tmp_path, clock=clock, turnaround=lambda: 5.0, paces={"novita": pace}) as running:
        await _queue(running.store.database, 10_000)
        await running.run(seconds=600)
        sent = running.outside.sent_at
        assert len(sent) == pytest.approx(20 + 600 // 3, abs=2)
        for start in range(0, 540, 30):
            assert sum(start <= at < start + 60 for at in sent) <= 40
        left = 10_000 - len(sent)
        said = running.submissions.done_in_seconds("novita", left, call_seconds=None)
        assert said == pytest.approx(left * 3, abs=5)
        claimed = await running.store.leases.first_queued(["novita"])
        assert claimed["novita"] <= clock.now


def test_all_limits_of_a_provider_hold() -> None:
    time = Time()
    bucket = Bucket((Rate(5, 1), Rate(8, 60)), clock=time)
    assert bucket.available() == 5
    bucket.take(5)
    time.now = 1.0
    assert bucket.available() == 3
    bucket.take(3)
    time.now = 2.0
    assert bucket.available() == 0
    assert bucket.seconds_for(1) == pytest.approx((1 - 2 * 8 / 60) * 60 / 8)


def test_the_window_opens_with_answers_and_closes_when_nothing_was_asked_for_a_while() -> None:
    time = Time()
    pace = Pace((), concurrency=8, clock=time)
    assert pace.allowed() == 1
    pace.leaving("a")
    assert pace.allowed() == 0
    pace.answered()
    pace.ended("a")
    assert pace.allowed() == 2
    assert opened(pace).allowed() == 8
    time.now = 60
    assert pace.allowed() == 1


def test_a_call_that_takes_long_is_no_refusal_and_holds_nobody_back() -> None:
    time = Time()
    pace = Pace((), concurrency=3, clock=time)
    for call in ("a", "b", "c"):
        assert pace.allowed() == 1
        pace.leaving(call)
        assert pace.allowed() == 0
        time.now += 5.1
    assert pace.allowed() == 0


def test_one_busy_answer_slows_down_and_three_in_a_row_hold_back_as_long_as_they_wish() -> None:
    time = Time()
    pace = opened(Pace((), concurrency=8, clock=time))
    pace.not_now(30)
    assert pace.allowed() == 4
    pace.not_now(30)
    pace.not_now(30)
    assert (pace.allowed(), pace.seconds_to_next()) == (0, 30)
    time.now = 30
    assert pace.allowed() == 1
    pace.answered()
    assert pace.allowed() == 2


def test_when_a_queue_is_done_is_reported_by_the_slower_of_rate_and_calls_and_not_at_all_if_unknown() -> None:
    time = Time()
    assert Pace((), concurrency=4, clock=time).seconds_for(10) is None
    assert Pace((), concurrency=4, clock=time).seconds_for(0) == 0
    assert Pace(NOVITA, concurrency=4, clock=time).seconds_for(80) == 180
    slow = Pace(NOVITA, concurrency=4, clock=time)
    assert slow.seconds_for(80, call_seconds=60) == 1200
    slow.leaving("a")
    time.now = 30
    slow.ended("a")
    assert slow.seconds_for(80, call_seconds=60) == 600


async def test_a_dead_host_is_not_stormed_by_a_long_queue(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        calls: list[float] = []

        def unreachable() -> httpx.Response:
            calls.append(running.clock.seconds())
            raise httpx.ConnectError("no")

        running.outside.instead_of_accepting = unreachable
        await running.add("apixo", 200)
        await running.run(seconds=600)
        assert (await running.states())["queued"] == 200
        assert 10 < len(calls) < 60


async def _queue(database: Database, count: int) -> None:
    """*count* queued Novita jobs, written at once."""
    at = us(Clock().now)
    await execute_many(
        database,
        "INSERT INTO jobs (id, provider, state, version, options, metadata, awaits_callback, input_name, tries,"
        " polls, created_at, retry_at) VALUES (?, 'novita', 'queued', 1, '{}', '{}', 0, 'picture', 0, 0, ?, ?)",
        [(new_id("job"), at, at) for _ in range(count)],
    )
