"""
Polling: when a job's next poll is due once one was made. Pure, as `lifecycle`, which applies it.

A table decides, its rows tried from the top; it also says whether an open hint stays open. A hint is *newer* if it came
after the poll was sent: that poll may have been too early to see what the hint reports.

    the job now                          a newer hint came    the poll was answered    it was not
    succeeded, failed, or late result    stop                 stop                     stop
    ended by us, without a task id       drop                 drop                     drop
    ended by us, hint over an hour old   soon                 drop                     drop
    ended by us                          soon                 drop                     ask_again
    running, past its deadline           expire_hinted        expire                   expire
    unconfirmed, without a task id       hold_briefly         hold                     hold
    any other open job                   soon                 wait                     retry
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from receiver.domain.jobs import Job
from submitter.vocabulary import Failure, State

_HINT_LIFETIME = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Timing:
    """
    The times at which a provider's jobs are polled, in seconds.

    `silence` is how long to wait for a callback before the first poll. `lifetime` is how long a job may run before it
    expires; at half of it a running job is overdue. `growth` is at least 1.
    """

    first: float
    interval: float
    silence: float
    growth: float = 1.5
    cap: float = 60.0
    lifetime: float = 3600.0
    pollable: bool = True

    def after(self, polls: int, *, jitter: float = 0.0) -> timedelta:
        """The pause before the next poll once *polls* were made; *jitter* in [0, 1] lengthens it by up to a tenth."""
        pause = min(self.interval * self.growth ** min(polls, 40), max(self.cap, self.interval))
        return timedelta(seconds=pause * (1 + 0.1 * jitter))


@dataclass(frozen=True, slots=True)
class Poll:
    """A poll that was made: sent at `asked_at`, finished at `now`."""

    now: datetime
    asked_at: datetime | None
    answered: bool
    retry_at: datetime | None = None
    """No poll before this time: the provider asked for a pause."""
    forget_claim: bool = False
    """The provider knows no task with the claimed id."""


def after_poll(job: Job, poll: Poll, timing: Timing, *, jitter: float = 0.0) -> tuple[Job, str | None]:
    """
    Count *poll* and schedule the next one.

    *job* is as the answer left it. Returns the job and an event to emit: `job.expired`, `job.overdue` or None.
    """
    newer_hint = job.hinted_at is not None and poll.asked_at is not None and job.hinted_at > poll.asked_at
    polled = replace(
        job,
        polled_at=poll.now,
        polls=job.polls + 1,
        claimed_id=None if poll.forget_claim and not newer_hint else job.claimed_id,
    )
    row = next(row for applies, row in _TABLE if applies(polled, poll))
    cell = row.newer_hint if newer_hint else row.answered if poll.answered else row.unanswered
    after = cell(polled, _Due(poll, timing, jitter))
    if after.state is not job.state:
        return after, "job.expired"
    if not after.state.terminal and after.overdue_at is None and _is_overdue(after, poll.now):
        return replace(after, overdue_at=poll.now), "job.overdue"
    return after, None


def not_after_deadline(job: Job, moment: datetime) -> datetime:
    """*moment*, or the job's deadline if that is earlier."""
    return moment if job.deadline_at is None else min(moment, job.deadline_at)


# --- The cells ------------------------------------------------------------------------------------------------------


class _Due(NamedTuple):
    """The input from which the cells compute times."""

    poll: Poll
    timing: Timing
    jitter: float

    @property
    def soon(self) -> datetime:
        return self.poll.now + timedelta(seconds=self.timing.interval)

    def after(self, polls: int) -> datetime:
        return self.poll.now + self.timing.after(polls, jitter=self.jitter)


def _stop(job: Job, due: _Due) -> Job:
    """Nothing is left to ask for."""
    return replace(job, next_poll_at=None)


def _drop(job: Job, due: _Due) -> Job:
    """The hint proved empty, or nothing can confirm it."""
    return replace(job, next_poll_at=None, hinted_at=None)


def _soon(job: Job, due: _Due) -> Job:
    """The hint is still open: poll once more, one interval from now."""
    return replace(job, next_poll_at=_while_running(job, due.soon))


def _ask_again(job: Job, due: _Due) -> Job:
    """A job that we ended has an open hint: its result may still be confirmed."""
    return replace(job, next_poll_at=due.poll.retry_at or due.after(job.polls))


def _expire(job: Job, due: _Due) -> Job:
    """The last poll found no result."""
    error = Failure("expired", f"no result came before the job's deadline; {_last_word(job)}", permanent=False)
    return replace(
        job,
        state=State.EXPIRED,
        error=error,
        next_poll_at=None,
        hinted_at=None,
        finished_at=due.poll.now,
        settled_by=None,
    )


def _last_word(job: Job) -> str:
    """Describe the result of the last poll of *job*."""
    if job.last_error is not None:
        return f"the last poll failed: {job.last_error.removeprefix('poll: ')}"
    if job.remote_status is not None:
        return f"its status was still {job.remote_status!r} at the last poll"
    return "the last poll found none"


def _expire_hinted(job: Job, due: _Due) -> Job:
    """Expire, and keep the hint open: what it reports may become a late result."""
    return replace(_expire(job, due), next_poll_at=due.soon, hinted_at=job.hinted_at)


def _hold(job: Job, due: _Due) -> Job:
    """No poll is possible without a task id; at the deadline the job becomes overdue."""
    past_deadline = job.deadline_at is not None and due.poll.now >= job.deadline_at
    return replace(job, next_poll_at=None if past_deadline else job.deadline_at, hinted_at=None)


def _hold_briefly(job: Job, due: _Due) -> Job:
    """As `hold`, but a callback that names no task has just arrived: another may name it soon."""
    held = _hold(job, due)
    return held if held.next_poll_at is None else replace(held, next_poll_at=min(held.next_poll_at, due.soon))


def _retry(job: Job, due: _Due) -> Job:
    """No answer: a hint stays open."""
    return replace(job, next_poll_at=_paused(job, due))


def _wait(job: Job, due: _Due) -> Job:
    """Not finished yet: that answers a hint, too."""
    return replace(job, next_poll_at=_paused(job, due), hinted_at=None)


def _paused(job: Job, due: _Due) -> datetime:
    pause = due.after(max(job.polls - 1, 0))
    return _while_running(job, max(pause, due.poll.retry_at) if due.poll.retry_at else pause)


# --- The rows -------------------------------------------------------------------------------------------------------


def _has_result(job: Job, poll: Poll) -> bool:
    return job.state in (State.SUCCEEDED, State.FAILED) or job.late_at is not None


def _ended_without_id(job: Job, poll: Poll) -> bool:
    return job.state.terminal and not (job.remote_id or job.claimed_id)


def _ended_with_old_hint(job: Job, poll: Poll) -> bool:
    return job.state.terminal and job.hinted_at is not None and poll.now - job.hinted_at > _HINT_LIFETIME


def _ended(job: Job, poll: Poll) -> bool:
    return job.state.terminal


def _last_poll(job: Job, poll: Poll) -> bool:
    """Return whether the poll was sent at the deadline or later."""
    if job.state is not State.RUNNING or job.deadline_at is None:
        return False
    return (poll.asked_at or poll.now) >= job.deadline_at


def _unconfirmed_without_id(job: Job, poll: Poll) -> bool:
    return job.state is State.UNCONFIRMED and not (job.remote_id or job.claimed_id)


def _open(job: Job, poll: Poll) -> bool:
    return not job.state.terminal


class _Row(NamedTuple):
    newer_hint: Callable[[Job, _Due], Job]
    answered: Callable[[Job, _Due], Job]
    unanswered: Callable[[Job, _Due], Job]


_TABLE: tuple[tuple[Callable[[Job, Poll], bool], _Row], ...] = (
    (_has_result, _Row(_stop, _stop, _stop)),
    (_ended_without_id, _Row(_drop, _drop, _drop)),
    (_ended_with_old_hint, _Row(_soon, _drop, _drop)),
    (_ended, _Row(_soon, _drop, _ask_again)),
    (_last_poll, _Row(_expire_hinted, _expire, _expire)),
    (_unconfirmed_without_id, _Row(_hold_briefly, _hold, _hold)),
    (_open, _Row(_soon, _wait, _retry)),
)


def _is_overdue(job: Job, now: datetime) -> bool:
    """Return whether an unconfirmed job is past its deadline, or any other past half of its lifetime."""
    if job.deadline_at is None or job.sent_at is None:
        return False
    if job.state is State.UNCONFIRMED:
        return now >= job.deadline_at
    return now >= job.sent_at + (job.deadline_at - job.sent_at) / 2


def _while_running(job: Job, moment: datetime) -> datetime:
    return not_after_deadline(job, moment) if job.state is State.RUNNING else moment
