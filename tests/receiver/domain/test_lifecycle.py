"""The transition table, row by row, and what stands behind it: pure, so it is simply called."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from receiver.domain.jobs import Job, Source, Verdict
from receiver.domain.lifecycle import Update, advance
from receiver.domain.polling import Timing
from submitter.vocabulary import Cost, Failure, Image, Report, State

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
TIMING = Timing(first=5, interval=5, silence=120, lifetime=3600)
SECOND = timedelta(seconds=1)
ENDED = (State.SUCCEEDED, State.FAILED, State.EXPIRED, State.CANCELED)


def job(state: State, **fields: object) -> Job:
    made = Job("job_1", "freepik", state, 3, NOW - timedelta(minutes=10), remote_id="task-1", awaits_callback=True)
    if state is not State.QUEUED:
        made = replace(made, sent_at=NOW - timedelta(minutes=5), deadline_at=NOW + timedelta(minutes=55), tries=1)
    if state in (State.QUEUED, State.SENDING, State.UNCONFIRMED):
        made = replace(made, remote_id=None)
    if state in ENDED:
        made = replace(made, finished_at=NOW - SECOND)
    return replace(made, **fields)  # type: ignore[arg-type]


def says(
    state: State, *, source: Source | None = Source.CALLBACK, task: str | None = "task-1", **more: object
) -> Update:
    images = (Image(url="https://x.example/1.png"),) if state is State.SUCCEEDED else ()
    error = Failure("bad_input", "it did not like it", permanent=True) if state is State.FAILED else None
    return Update(Report(task, state, images, error, remote_status=state.value), source, **more)  # type: ignore[arg-type]


R, S, F, Q, U, E, C = (
    State.RUNNING,
    State.SUCCEEDED,
    State.FAILED,
    State.QUEUED,
    State.UNCONFIRMED,
    State.EXPIRED,
    State.CANCELED,
)
TABLE: dict[State, dict[State, tuple[State, str | None]]] = {
    Q: {R: (R, "running"), S: (S, "succeeded"), F: (F, "failed"), Q: (Q, None), U: (Q, None), E: (Q, None)},
    State.SENDING: {R: (R, "running"), S: (S, "succeeded"), F: (F, "failed"), Q: (Q, None), U: (U, "unconfirmed")},
    R: {R: (R, None), S: (S, "succeeded"), F: (F, "failed"), Q: (R, None), U: (R, None), E: (E, "expired")},
    U: {R: (R, "running"), S: (S, "succeeded"), F: (F, "failed"), Q: (Q, None), U: (U, None), E: (U, None)},
    S: {R: (S, None), S: (S, None), F: (S, None), Q: (S, None), U: (S, None), E: (S, None), C: (S, None)},
    F: {R: (F, None), S: (F, None), F: (F, None), Q: (F, None), U: (F, None), E: (F, None), C: (F, None)},
    E: {R: (E, None), S: (E, "late_result"), F: (E, "late_result"), Q: (E, None), U: (E, None), C: (E, None)},
    C: {R: (C, None), S: (C, "late_result"), F: (C, "late_result"), Q: (C, None), U: (C, None), E: (C, None)},
}
for _before in (Q, State.SENDING, R, U):
    TABLE[_before][C] = (C, "canceled")
ROWS = [(before, said, *after) for before, row in TABLE.items() for said, after in row.items()]


@pytest.mark.parametrize(("before", "said", "after", "event"), ROWS, ids=[f"{b}-{s}" for b, s, *_ in ROWS])
def test_a_believed_update_moves_a_job_by_the_table(
    before: State, said: State, after: State, event: str | None
) -> None:
    source = None if said in (E, C) else Source.CALLBACK
    change = advance(job(before), says(said, source=source), NOW, TIMING)
    assert change.job.state is after
    assert change.events == (() if event is None else (f"job.{event}",))
    assert (change.job.finished_at is not None) == after.terminal


def test_a_queued_job_that_may_have_been_sent_is_unconfirmed_by_our_own_word_alone() -> None:
    change = advance(job(Q, retry_at=NOW), says(U, source=None), NOW, TIMING)
    assert (change.job.state, change.job.retry_at, change.events) == (U, None, ("job.unconfirmed",))
    assert change.job.deadline_at is not None  # so that it is reported as overdue


@pytest.mark.parametrize("before", [R, U, State.SENDING])
@pytest.mark.parametrize("said", [S, F])
def test_the_channel_that_brought_the_end_is_noted(before: State, said: State) -> None:
    for source in Source:
        assert advance(job(before), says(said, source=source), NOW, TIMING).job.settled_by is source


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("said", [S, F, R])
@pytest.mark.parametrize("believed", [True, False])
def test_an_update_of_another_task_is_ignored_signed_or_not(before: State, said: State, believed: bool) -> None:
    had = job(before, remote_id="task-1")
    change = advance(had, says(said, task="task-2", believed=believed), NOW, TIMING)
    assert (change.job, change.verdict, change.events) == (had, Verdict.IGNORED, ())


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("said", [S, F, R])
def test_a_hint_changes_nothing_and_emits_nothing(before: State, said: State) -> None:
    change = advance(job(before), says(said, believed=False), NOW, TIMING)
    assert (change.job.state, change.events, change.images) == (before, (), ())
    assert change.verdict is (Verdict.LATE if before in (S, F) else Verdict.HINT)


def test_a_hint_makes_the_poll_due_now_but_not_before_the_interval() -> None:
    fresh = advance(job(R, next_poll_at=NOW + timedelta(minutes=2)), says(S, believed=False), NOW, TIMING).job
    assert fresh.next_poll_at == NOW
    polled = job(R, next_poll_at=NOW + timedelta(minutes=2), polled_at=NOW - 2 * SECOND)
    assert advance(polled, says(S, believed=False), NOW, TIMING).job.next_poll_at == NOW + 3 * SECOND


def test_a_hint_that_came_after_the_poll_left_wants_another_one() -> None:
    left = NOW - 2 * SECOND
    hinted = advance(job(R), says(S, believed=False, received_at=NOW - 9 * SECOND), NOW, TIMING).job
    again = advance(hinted, says(S, believed=False, received_at=NOW - SECOND), NOW, TIMING).job
    polled = advance(again, says(R, source=Source.POLL, asked_at=left), NOW, TIMING).job
    assert polled.hinted_at == NOW - SECOND
    assert polled.next_poll_at is not None and polled.next_poll_at <= NOW + timedelta(seconds=5)
    done = advance(polled, says(S, source=Source.POLL, asked_at=NOW), NOW + SECOND, TIMING).job
    assert done.settled_by is Source.CALLBACK
    for_nothing = advance(hinted, says(R, source=Source.POLL, asked_at=left), NOW, TIMING).job
    assert for_nothing.hinted_at is None, "the poll left after the hint, and says otherwise"


def test_a_poll_that_fails_keeps_the_hint() -> None:
    hinted = job(R, hinted_at=NOW - SECOND)
    polled = advance(hinted, Update(None, Source.POLL, asked_at=NOW, last_error="poll: busy"), NOW, TIMING).job
    assert polled.hinted_at == hinted.hinted_at
    assert polled.last_error == "poll: busy"


def test_a_claim_is_dropped_only_by_the_poll_that_was_made_for_it() -> None:
    claimed = job(U, claimed_id="forged", hinted_at=NOW - 9 * SECOND)
    nobodys = Update(None, Source.POLL, asked_at=NOW - 5 * SECOND, forget_claim=True)
    assert advance(claimed, nobodys, NOW, TIMING).job.claimed_id is None
    newer = advance(claimed, says(S, task="real", believed=False, received_at=NOW - SECOND), NOW, TIMING).job
    assert newer.claimed_id == "real"
    kept = advance(newer, nobodys, NOW, TIMING).job
    assert (kept.claimed_id, kept.next_poll_at is not None) == ("real", True)


def test_a_poll_by_a_claim_that_brings_another_task_is_booked_and_ignored() -> None:
    claimed = job(U, claimed_id="a", hinted_at=NOW - 9 * SECOND, next_poll_at=NOW)
    change = advance(claimed, says(S, task="b", source=Source.POLL, asked_at=NOW), NOW, TIMING)
    assert (change.verdict, change.job.state, change.job.remote_id) == (Verdict.IGNORED, U, None)
    assert change.job.polls == 1
    assert change.job.next_poll_at is None or change.job.next_poll_at > NOW


def test_a_job_expires_after_one_poll_that_left_at_its_deadline_or_later() -> None:
    due = job(R, deadline_at=NOW)
    early = advance(due, says(R, source=Source.POLL, asked_at=NOW - SECOND), NOW + SECOND, TIMING).job
    assert (early.state, early.next_poll_at) == (R, NOW), "that was not the last poll yet"
    late = advance(early, says(R, source=Source.POLL, asked_at=NOW + SECOND), NOW + SECOND, TIMING)
    assert (late.job.state, late.events, late.job.settled_by) == (E, ("job.expired",), None)
    assert late.job.error is not None and late.job.error.message
    done = advance(early, says(S, source=Source.POLL, asked_at=NOW + SECOND), NOW + SECOND, TIMING).job
    assert done.state is S


def test_a_hint_that_came_during_the_last_poll_may_become_a_late_result() -> None:
    due = job(R, deadline_at=NOW - SECOND, hinted_at=NOW)
    expired = advance(due, says(R, source=Source.POLL, asked_at=NOW - SECOND), NOW, TIMING).job
    assert (expired.state, expired.hinted_at) == (E, NOW)
    assert expired.next_poll_at is not None
    late = advance(expired, says(S, source=Source.POLL, asked_at=NOW + SECOND), NOW + SECOND, TIMING)
    assert (late.job.state, late.events, len(late.images)) == (E, ("job.late_result",), 1)


def test_an_unconfirmed_job_never_expires_but_is_reported_overdue_once() -> None:
    waiting = job(U, deadline_at=NOW)
    first = advance(waiting, Update(None, Source.POLL, asked_at=NOW), NOW, TIMING)
    assert (first.job.state, first.events, first.job.next_poll_at) == (U, ("job.overdue",), None)
    again = advance(first.job, Update(None, Source.POLL, asked_at=NOW + SECOND), NOW + SECOND, TIMING)
    assert again.events == ()


def test_a_late_result_is_reported_once_with_its_images_and_its_cost() -> None:
    cost = Cost(Decimal("10"), "credits")
    update = says(S)
    assert update.report is not None
    first = advance(job(C), replace(update, report=replace(update.report, cost=cost)), NOW, TIMING)
    assert (first.job.state, first.events, len(first.images), first.job.cost) == (C, ("job.late_result",), 1, cost)
    again = advance(first.job, says(F), NOW, TIMING)
    assert (again.events, again.images, again.verdict) == ((), (), Verdict.LATE)


def test_what_was_read_again_is_no_poll_and_breaks_no_silence() -> None:
    waiting = job(R, next_poll_at=NOW + SECOND, polls=2)
    for source in (Source.POLL, Source.CALLBACK):
        after = advance(waiting, says(R, source=source, again=True), NOW, TIMING).job
        assert (after.next_poll_at, after.polls) == (waiting.next_poll_at, 2)
    assert advance(waiting, says(S, source=Source.POLL, again=True), NOW, TIMING).job.state is S


def test_a_no_to_an_earlier_try_says_nothing_about_the_one_under_way() -> None:
    sending = job(State.SENDING, tries=2)
    for said in (Q, F, U):
        old = says(said, source=Source.RESPONSE, task=None, asked_at=NOW - timedelta(minutes=9))
        assert advance(sending, old, NOW, TIMING).job == sending


def test_a_refused_job_whose_callback_names_a_task_is_polled_and_not_sent_again() -> None:
    hinted = job(State.SENDING, hinted_at=NOW, claimed_id="task-9")
    change = advance(hinted, says(Q, source=Source.RESPONSE, task=None), NOW, TIMING)
    assert (change.job.state, change.job.claimed_id, change.job.next_poll_at) == (U, "task-9", NOW)
    assert change.events == ("job.unconfirmed",)
    again = advance(change.job, says(Q, source=Source.RESPONSE, task=None), NOW, TIMING)
    assert (again.job.state, again.events) == (U, ())


def test_a_job_that_waits_to_be_sent_again_is_held_by_a_callback_that_names_its_task() -> None:
    waiting = job(Q, tries=1, retry_at=NOW + SECOND)
    change = advance(waiting, says(S, task="task-9", believed=False), NOW, TIMING)
    assert (change.job.state, change.job.claimed_id, change.job.next_poll_at) == (U, "task-9", NOW)
    assert change.job.deadline_at is not None
    assert change.events == ("job.unconfirmed",)
    unsent = job(Q, retry_at=NOW)
    assert advance(unsent, says(S, task="task-9", believed=False), NOW, TIMING).job.state is Q


def test_an_unlisted_remote_status_is_kept() -> None:
    update = Update(Report("task-1", State.RUNNING, remote_status="POLISHING"), Source.POLL, asked_at=NOW)
    assert advance(job(R), update, NOW, TIMING).job.remote_status == "POLISHING"
