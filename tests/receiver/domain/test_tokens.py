"""Tokens: bound to job, provider and purpose, rotated without a gap, and valid in one spelling only."""

from __future__ import annotations

import hashlib
import string
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import Signer
from starlette.applications import Starlette
from starlette.routing import Route

from receiver.domain.tokens import TokenInvalid, Tokens
from receiver.runtime.metrics import Metrics
from receiver.store.database import open_database
from receiver.store.jobs import JobStore
from receiver.upstream.intake import Intake
from receiver.web.callbacks import CallbackLimits, Callbacks
from submitter.providers.freepik import Freepik
from submitter.vocabulary import State
from tests.support.engines import database_of
from tests.support.running_receiver import SECRET_KEY, running_receiver

TOKENS = Tokens(["new", "old"])
JOB = "job_01k0000000000000000000000"
ALPHABET = string.ascii_letters + string.digits + "-_.= \n"


def test_a_token_says_whose_it_is() -> None:
    claim = TOKENS.read_callback(TOKENS.callback(JOB, "novita"))
    assert (claim.job_id, claim.provider) == (JOB, "novita")
    assert abs(claim.minted_at - datetime.now(UTC)) < timedelta(seconds=3)


def test_a_token_fits_into_a_path() -> None:
    assert set(TOKENS.callback(JOB, "freepik")) <= set(string.ascii_letters + string.digits + "-_.")


def test_keys_are_rotated_without_losing_a_callback_in_flight() -> None:
    before = Tokens(["old"]).callback(JOB, "freepik")
    assert TOKENS.read_callback(before).job_id == JOB, "the second key verifies"
    with pytest.raises(TokenInvalid):
        Tokens(["old"]).read_callback(TOKENS.callback(JOB, "freepik"))
    assert Tokens(["new"]).read_callback(TOKENS.callback(JOB, "freepik")).job_id == JOB, "the first key signs"
    with pytest.raises(TokenInvalid):
        Tokens(["new"]).read_callback(before)


def test_an_input_link_is_no_callback_token_and_the_other_way_round() -> None:
    with pytest.raises(TokenInvalid):
        TOKENS.read_callback(TOKENS.input(JOB))
    with pytest.raises(TokenInvalid):
        TOKENS.read_input(TOKENS.callback(JOB, "freepik"))


@pytest.mark.parametrize("place", range(len(TOKENS.callback(JOB, "freepik"))))
def test_no_character_can_be_another(place: int) -> None:
    """Not even the last one, of which base64 ignores two bits."""
    token = TOKENS.callback(JOB, "freepik")
    for other in ALPHABET:
        if other != token[place]:
            with pytest.raises(TokenInvalid):
                TOKENS.read_callback(token[:place] + other + token[place + 1 :])


@pytest.mark.parametrize("change", [lambda t: t + "=", lambda t: t + "A", lambda t: " " + t, lambda t: t[:-1]])
def test_nothing_can_be_added_or_left_out(change: object) -> None:
    with pytest.raises(TokenInvalid):
        TOKENS.read_callback(change(TOKENS.callback(JOB, "freepik")))  # type: ignore[operator]


@pytest.mark.parametrize(
    "text", ["", "x", f"{JOB}.apixo", f"{JOB}.apixo.A", f"{JOB}.apixo.____________", f"{JOB}..AAAA"]
)
def test_what_our_key_signed_without_being_a_token_is_refused(text: str) -> None:
    ours = Signer("new", salt="receiver.callback", sep=".", key_derivation="hmac", digest_method=hashlib.sha256)
    signature = ours.get_signature(text).decode()
    assert ours.validate(TOKENS.callback(JOB, "freepik")), "it signs as the tokens are signed"
    with pytest.raises(TokenInvalid):
        TOKENS.read_callback(f"{text}.{signature}")


@given(st.one_of(st.text(max_size=600), st.text(ALPHABET, max_size=200), st.from_regex(r"[a-z.]+\.[\w-]{0,43}")))
def test_whatever_is_no_token_is_refused_in_one_way(text: str) -> None:
    with pytest.raises(TokenInvalid):
        TOKENS.read_callback(text)


@pytest.mark.parametrize(
    ("state", "age", "answer"),
    [
        (State.SUCCEEDED, timedelta(hours=24, minutes=59), 200),
        (State.SUCCEEDED, timedelta(hours=25, minutes=1), 404),
        (State.CANCELED, timedelta(days=30), 404),
        (State.RUNNING, timedelta(days=30), 200),
        (State.UNCONFIRMED, timedelta(days=300), 200),
    ],
)
async def test_a_token_holds_for_a_day_longer_than_its_job_may_run_and_while_it_is_open(
    state: State, age: timedelta, answer: int, tmp_path: Path
) -> None:
    async with running_receiver(tmp_path, job_timeout=3600) as here:
        job = await here.job(state=state)
        old = Tokens([SECRET_KEY], clock=lambda: time.time() - age.total_seconds()).callback(job.id, job.provider)
        assert (await here.client.get(f"/callbacks/{job.provider}/{old}")).status_code == answer


async def test_a_bad_token_is_answered_without_intake_or_database(tmp_path: Path) -> None:
    """There is no intake, and the database is closed: a use of either would fail."""
    database = await open_database(database_of(tmp_path))
    await database.close()
    providers = {"freepik": Freepik(api_key="-", webhook_secrets=["-"])}
    callbacks = Callbacks(
        cast(Intake, None),
        JobStore(database),
        providers,
        TOKENS,
        Metrics(),
        CallbackLimits(max_bytes=10, budget_bytes=10, token_lifetime=timedelta(1)),
    )
    app = Starlette(routes=[Route("/callbacks/{provider}/{token}", callbacks)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        token = TOKENS.callback(JOB, "freepik")
        assert (await client.post(f"/callbacks/freepik/{token[:-1]}", content=b"{}")).status_code == 404
        assert (await client.get(f"/callbacks/freepik/{token}")).status_code == 200


def test_the_short_way_takes_fresh_tokens_of_the_newest_key_alone() -> None:
    tokens = Tokens(["the-new-key", "the-old-key"], clock=lambda: 1_790_000_000)
    token = tokens.callback("job_1", "freepik").encode()
    assert tokens.job_of_callback(token, b"freepik", not_before=1_790_000_000) == "job_1"
    assert tokens.job_of_callback(token, b"freepik", not_before=1_790_000_001) is None
    assert tokens.job_of_callback(token, b"novita", not_before=0) is None
    old = Tokens(["the-old-key"]).callback("job_1", "freepik")
    assert tokens.read_callback(old).job_id == "job_1"
    assert tokens.job_of_callback(old.encode(), b"freepik", not_before=0) is None
    assert tokens.job_of_callback(tokens.input("job_1").encode(), b"-", not_before=0) is None


def test_the_short_way_takes_no_altered_token() -> None:
    tokens = Tokens(["a-key"])
    token = tokens.callback("job_1", "freepik").encode()
    altered = [token[:n] + bytes([token[n] ^ 1]) + token[n + 1 :] for n in range(len(token))]
    altered += [token[:n] + token[n + 1 :] for n in range(len(token))]
    for text in [*altered, token + b"=", token + b"A", b"." + token, token + b".", b"", b".", b"..", b"...."]:
        assert tokens.job_of_callback(text, b"freepik", not_before=0) is None, text
