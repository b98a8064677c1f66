"""
A model of the job's life against the real store: any reports through any channel, in any order and number, with polls,
cancels, submit answers and the passing of time between.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import tempfile
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from receiver.domain.ids import new_id
from receiver.domain.jobs import Job, Source
from receiver.domain.lifecycle import Update
from receiver.domain.polling import Timing
from receiver.store.database import open_database
from receiver.store.jobs import JobStore
from receiver.store.settling import JobUpdate
from submitter.vocabulary import Failure, Image, Report, State
from tests.support.engines import ON_POSTGRESQL, database_of, drop_databases, known_databases
from tests.support.rows import fetch

T = TypeVar("T")
TIMING = Timing(first=5, interval=5, silence=120, lifetime=600)
ENDED = (State.SUCCEEDED, State.FAILED, State.EXPIRED, State.CANCELED)
REPORTED = {State.RUNNING, State.UNCONFIRMED, *ENDED}
IDS = st.sampled_from(["task-1", "task-1", "task-1", "task-2", "held", None])
STATES = st.sampled_from([State.RUNNING, State.SUCCEEDED, State.FAILED])


@functools.cache
def _empty_database() -> Path:
    """A database at the newest schema, to be copied: making one takes longer than a life."""
    path = Path(tempfile.mkdtemp()) / "empty.db"

    async def make() -> None:
        await (await open_database(path)).close()

    asyncio.run(make())
    return path


class Life(RuleBasedStateMachine):
    """One job, and another one that holds the task `held`."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp())
        if not ON_POSTGRESQL:
            shutil.copy(_empty_database(), self.directory / "receiver.db")
        self.others = known_databases()
        self.clock = datetime(2026, 11, 1, tzinfo=UTC)
        self.database = self.run(open_database(database_of(self.directory)))
        self.store = JobStore(self.database, public_url=lambda: "")
        self.decided: State | None = None
        self.changes: list[State] = []

    def run(self, work: Awaitable[T]) -> T:
        self.seen: Job | None = None
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.database.close())
        self.loop.close()
        shutil.rmtree(self.directory)
        drop_databases(but=self.others)

    @initialize()
    def submitted(self) -> None:
        self.id, self.holder = new_id("job"), new_id("job")
        mine = Job(
            self.id, "freepik", State.QUEUED, 1, self.clock, retry_at=self.clock, notify_url="https://x.example/n"
        )
        held = replace(mine, id=self.holder, state=State.RUNNING, remote_id="held", sent_at=self.clock)
        self.run(self.store.add_job(held))
        self.run(self.store.add_job(mine))
        self.before = self.job

    @property
    def job(self) -> Job:
        if self.seen is None:
            found = self.run(self.store.job(self.id))
            assert found is not None
            self.seen = found[0]
        return self.seen

    def settle(self, *update: Update) -> None:
        self.before = self.job
        self.run(self.store.settle([JobUpdate(self.id, each) for each in update], self.clock, lambda _: TIMING))
        self.note()

    def note(self) -> None:
        if self.job.state is not self.before.state:
            self.changes.append(self.job.state)

    # --- What may happen --------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0, 1, 6, 130, 400]))
    def time_passes(self, seconds: int) -> None:
        self.clock += timedelta(seconds=seconds)

    @precondition(lambda self: self.job.state is State.QUEUED)
    @rule()
    def sent(self) -> None:
        self.before = self.job
        lease = timedelta(seconds=8)
        claimed = self.run(self.store.leases.claim_queued("freepik", self.clock, owner="me", lease=lease, limit=9))
        for job in claimed.jobs:
            deadline = self.clock + timedelta(seconds=TIMING.lifetime)
            begun = self.store.leases.begin_sending(
                job, self.clock, owner="me", lease=lease, deadline_at=deadline, awaits_callback=True
            )
            assert self.run(begun)
        self.note()

    @rule(
        task=st.sampled_from(["task-1", "held"]),
        state=st.sampled_from([State.RUNNING, State.SUCCEEDED, State.FAILED, State.QUEUED, State.UNCONFIRMED]),
    )
    def submit_is_answered(self, task: str, state: State) -> None:
        if self.job.state is State.QUEUED or self.job.tries == 0:
            return
        said = state in (State.RUNNING, State.SUCCEEDED)
        report = self.report(task if said else None, state)
        self.settle(Update(report, Source.RESPONSE, asked_at=self.job.sent_at or self.clock))

    @rule(task=IDS, state=STATES, signed=st.booleans(), twice=st.booleans())
    def callback(self, task: str | None, state: State, signed: bool, twice: bool) -> None:
        update = Update(self.report(task, state), Source.CALLBACK, believed=signed, received_at=self.clock)
        self.settle(*([update] * (1 + twice)))
        ours = task in (None, self.before.remote_id) if self.before.remote_id else task != "held"
        open_before = self.before.state in (State.SENDING, State.RUNNING, State.UNCONFIRMED)
        if signed and ours and open_before and state is not State.RUNNING:
            assert (self.job.state, self.job.settled_by) == (state, Source.CALLBACK), "the first believed end decides"
        # Refused with "not now", and yet somebody who knows its URL names a task: only a poll can tell.
        # What names another job's task says nothing about this one.
        named = not signed and state.terminal and task != "held" and (task or self.before.claimed_id) is not None
        if named and self.before.state is State.QUEUED and self.before.tries > 0:
            assert self.job.state is State.UNCONFIRMED, "it is not sent again before a poll has decided"
        elif not signed or not ours:
            assert self.job.state is self.before.state, "a hint moves nothing, nor what names another task"

    @rule(state=STATES, answered=st.booleans(), unknown=st.booleans())
    def poll(self, state: State, answered: bool, unknown: bool) -> None:
        """Only what is due is polled, by its own id or the claimed one."""
        lease = timedelta(seconds=8)
        due = self.run(self.store.leases.claim_due({"freepik": 10}, self.clock, owner="me", lease=lease))
        for job in due["freepik"].jobs:
            if job.id != self.id:
                continue
            task = job.remote_id or job.claimed_id
            report = self.report(task, state) if answered and task is not None else None
            forget = report is None and unknown
            self.settle(Update(report, Source.POLL, asked_at=self.clock, forget_claim=forget))

    @rule(abandon=st.booleans())
    def cancel(self, abandon: bool) -> None:
        self.before = self.job
        canceled = self.run(self.store.cancel(self.id, self.clock, abandon=abandon))
        assert canceled == (self.job.state is State.CANCELED and self.before.state is not State.CANCELED)
        self.note()

    @precondition(lambda self: self.job.state is State.SENDING)
    @rule()
    def holder_dies(self) -> None:
        self.settle(Update(Report(None, State.UNCONFIRMED), None, last_error="holder died"))

    def report(self, task: str | None, state: State) -> Report:
        images = (Image(url="https://x.example/1.png"),) if state is State.SUCCEEDED else ()
        error = Failure("failed", "it failed", permanent=True) if state is State.FAILED else None
        return Report(task, state, images=images, error=error, remote_status=state.value)

    # --- What must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def an_end_is_final(self) -> None:
        job = self.job
        if self.decided is not None:
            assert job.state is self.decided
        elif job.state in ENDED:
            self.decided = job.state
            assert job.finished_at is not None

    @invariant()
    def each_change_has_one_event(self) -> None:
        """And each end exactly one; `queued` again and `sending` are nobody's business."""
        events = self.run(self.events())
        reported = [f"job.{state.value}" for state in self.changes if state in REPORTED]
        assert [name for name in events if name.removeprefix("job.") in {state.value for state in REPORTED}] == reported
        assert sum(name.removeprefix("job.") in ENDED for name in events) == (self.decided is not None)
        assert events.count("job.overdue") <= 1
        assert events.count("job.late_result") <= (self.decided in (State.EXPIRED, State.CANCELED))

    @invariant()
    def another_jobs_task_is_never_taken(self) -> None:
        assert self.job.remote_id != "held"
        assert self.job.claimed_id != "held"
        found = self.run(self.store.job(self.holder))
        assert found is not None
        assert (found[0].state, found[0].remote_id) == (State.RUNNING, "held")

    @invariant()
    def a_task_once_known_stays_the_jobs(self) -> None:
        if self.before.remote_id is not None and self.job.state is not State.QUEUED:
            assert self.job.remote_id == self.before.remote_id

    @invariant()
    def no_open_job_is_forgotten(self) -> None:
        """Something is due, or somebody must decide."""
        job = self.job
        if job.state is State.QUEUED:
            assert job.retry_at is not None
        if job.state is State.RUNNING:
            assert job.next_poll_at is not None
            assert job.deadline_at is not None
        if job.state is State.UNCONFIRMED:
            assert job.next_poll_at is not None or job.overdue_at is not None
        if job.hinted_at is not None and job.state not in (State.QUEUED, State.SENDING):
            task = job.remote_id or (job.claimed_id if job.state is State.UNCONFIRMED else None)
            assert task is None or job.next_poll_at is not None

    @invariant()
    def words_of_the_provider_have_a_source_and_ours_have_none(self) -> None:
        job = self.job
        assert (job.settled_by is not None) == (job.state in (State.SUCCEEDED, State.FAILED))
        assert (job.error is not None and job.error.message != "") or job.state is not State.FAILED

    async def events(self) -> list[str]:
        rows = await fetch(self.database, "SELECT type FROM events WHERE job_id = ? ORDER BY position, id", self.id)
        return [row[0] for row in rows]


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=int(os.environ.get("RECEIVER_TEST_LIVES", "60")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
