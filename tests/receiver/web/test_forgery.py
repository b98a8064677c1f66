"""Every way to forge a callback, through the whole receiver: the answer, what is kept of it, and an unchanged job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from receiver.domain.jobs import Job
from receiver.domain.tokens import Tokens
from submitter.vocabulary import State
from tests.support.rows import fetch
from tests.support.running_receiver import (
    RESULT,
    SECRET,
    RunningReceiver,
    freepik_body,
    novita_body,
    running_receiver,
    signed,
)
from tests.support.waiting import patience

pytestmark = pytest.mark.usefixtures("way")


@dataclass(frozen=True)
class Attempt:
    """A forged request: a path, headers and a body, for a job and another one."""

    answer: int
    headers: Callable[[bytes], dict[str, str]] = signed
    path: Callable[[RunningReceiver, Job, Job], str] = lambda here, job, other: here.path(job)
    sent: Callable[[bytes], bytes] = lambda body: body
    kept: int = 0


def _with(**changed: str) -> Callable[[bytes], dict[str, str]]:
    names = {name: name.replace("_", "-") for name in changed}
    return lambda body: {**signed(body), **{names[name]: value for name, value in changed.items()}}


def _without(*names: str) -> Callable[[bytes], dict[str, str]]:
    return lambda body: {name: value for name, value in signed(body).items() if name not in names}


def _last_character_of_token_altered(here: RunningReceiver, job: Job, other: Job) -> str:
    """Another last character that base64 decodes to the same bytes."""
    path = here.path(job)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return path[:-1] + alphabet[alphabet.index(path[-1]) ^ 1]


def _token_of_an_expired_key(here: RunningReceiver, job: Job, other: Job) -> str:
    return f"/callbacks/freepik/{Tokens(['a-key-that-was-rotated-out']).callback(job.id, 'freepik')}"


REFUSED = {
    "wrong secret": Attempt(401, lambda body: signed(body, secret="not-" + SECRET), kept=1),
    "right secret and stale time": Attempt(401, lambda body: signed(body, at=time.time() - 301), kept=1),
    "right secret and future time": Attempt(401, lambda body: signed(body, at=time.time() + 302), kept=1),
    "altered byte": Attempt(401, sent=lambda body: body.replace(b"COMPLETED", b"COMPLETEd"), kept=1),
    "one byte more": Attempt(401, sent=lambda body: body + b" ", kept=1),
    "signature of another body": Attempt(401, lambda body: signed(body.replace(b"COMPLETED", b"FAILED")), kept=1),
    "signature of another id": Attempt(401, _with(webhook_id="msg_another"), kept=1),
    "no headers": Attempt(401, lambda body: {}, kept=1),
    "no signature": Attempt(401, _without("webhook-signature"), kept=1),
    "no id": Attempt(401, _without("webhook-id"), kept=1),
    "no timestamp": Attempt(401, _without("webhook-timestamp"), kept=1),
    "empty signature": Attempt(401, _with(webhook_signature=""), kept=1),
    "signature without version": Attempt(
        401, lambda body: {**signed(body), "webhook-signature": signed(body)["webhook-signature"][3:]}, kept=1
    ),
    "signature in hex": Attempt(401, _with(webhook_signature="v1," + "ab" * 32), kept=1),
    "a thousand signatures": Attempt(401, _with(webhook_signature=" ".join(["v1,AAAA"] * 1000)), kept=1),
    "timestamp not a number": Attempt(401, _with(webhook_timestamp="now"), kept=1),
    "timestamp beyond all time": Attempt(401, _with(webhook_timestamp="9" * 15), kept=1),
    "another job's token": Attempt(200, path=lambda here, job, other: here.path(other)),
    "another provider's token": Attempt(
        404,
        path=lambda here, job, other: (
            f"/callbacks/freepik/{here.receiver.credentials.tokens.callback(job.id, 'novita')}"
        ),
    ),
    "the token under another provider's address": Attempt(
        404, path=lambda here, job, other: here.path(job).replace("/freepik/", "/novita/")
    ),
    "an input token": Attempt(
        404, path=lambda here, job, other: f"/callbacks/freepik/{here.receiver.credentials.tokens.input(job.id)}"
    ),
    "expired key": Attempt(404, path=_token_of_an_expired_key),
    "token with its last character altered": Attempt(404, path=_last_character_of_token_altered),
    "token cut short": Attempt(404, path=lambda here, job, other: here.path(job)[:-1]),
    "token of another job's id": Attempt(404, path=lambda here, job, other: here.path(job).replace(job.id, other.id)),
    "no token": Attempt(404, path=lambda here, job, other: "/callbacks/freepik/"),
    "non-ASCII token": Attempt(404, path=lambda here, job, other: here.path(job) + "%C3%A9"),
    "unknown provider": Attempt(404, path=lambda here, job, other: here.path(job).replace("freepik", "leonardo")),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_forged_callback_changes_no_job(name: str, tmp_path: Path) -> None:
    attempt = REFUSED[name]
    async with running_receiver(tmp_path) as here:
        job, other = await here.job(), await here.job()
        body = freepik_body(job.remote_id or "", "COMPLETED")
        answer = await here.client.post(
            attempt.path(here, job, other), content=attempt.sent(body), headers=attempt.headers(body)
        )
        await here.read()
        assert answer.status_code == attempt.answer
        assert await here.now(job) == job
        assert await here.now(other) == other
        assert await here.verdicts(job) == ["refused"] * attempt.kept
        assert await here.events(job) == await here.events(other) == []
        if attempt.answer == 200:
            assert await here.verdicts(other) == ["ignored"], "it names a task that is not the other job's"


async def test_a_non_ascii_signature_is_refused(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        body = freepik_body(job.remote_id or "", "COMPLETED")
        raw = [(name.encode(), value.encode()) for name, value in signed(body).items() if name != "webhook-signature"]
        answer = await here.client.post(
            here.path(job), content=body, headers=[*raw, (b"webhook-signature", b"v1,\xc3\xa9\xff=")]
        )
        assert answer.status_code == 401
        assert await here.now(job) == job


@pytest.mark.parametrize(
    "entries",
    ["{wrong} {right}", "{right} {wrong}", "v2,{bare}", "v1,nonsense v27,{bare} v1,", "{right} {right}"],
)
async def test_one_right_signature_among_several_is_enough(entries: str, tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        body = freepik_body(job.remote_id or "", "COMPLETED")
        headers = signed(body)
        right = headers["webhook-signature"]
        wrong = signed(body, secret="wrong", message=headers["webhook-id"])["webhook-signature"]
        headers["webhook-signature"] = entries.format(right=right, wrong=wrong, bare=right[3:])
        assert (await here.post(job, body, headers)).status_code == 200
        assert (await here.becomes(job, State.SUCCEEDED)).settled_by == "callback"


async def test_both_secrets_hold_while_they_are_rotated(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, webhook_secrets=("the-new-one", SECRET)) as here:
        for secret in ("the-new-one", SECRET):
            job = await here.job()
            body = freepik_body(job.remote_id or "", "COMPLETED")
            assert (await here.post(job, body, signed(body, secret=secret))).status_code == 200
            await here.becomes(job, State.SUCCEEDED)


async def test_a_forged_result_of_an_unsigned_callback_is_not_stored_fetched_or_reported(tmp_path: Path) -> None:
    """Whoever knows the URL of a Novita job can say what he likes: the status call decides, and brings its own link."""
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        here.upstream.says[job.remote_id or ""] = "COMPLETED"
        forged = "https://evil.example.com/forged.png"
        answer = await here.post(job, novita_body(job.remote_id or "", "COMPLETED", url=forged))
        assert answer.status_code == 200
        done = await here.becomes(job, State.SUCCEEDED)
        assert done.settled_by == "callback"
        _, images = await here.whole(job)
        assert [image.source_url for image in images] == [RESULT]
        assert await fetch(here.receiver.parts.database, "SELECT id FROM events WHERE body LIKE '%evil%'") == []


async def test_a_forged_end_of_a_running_job_is_only_confirmed_by_a_poll(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        here.upstream.says[job.remote_id or ""] = "IN_PROGRESS"
        await here.post(job, novita_body(job.remote_id or "", "FAILED"))
        await here.read()
        async with patience():
            await here.upstream.entered.wait()
        assert (await here.now(job)).state is State.RUNNING
        assert await here.verdicts(job) == ["hint"]
        assert await here.events(job) == []
