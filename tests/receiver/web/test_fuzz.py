"""Anything at all, at every door: no 5xx, no exception but ours, no job moved by what nobody signed."""

from __future__ import annotations

import asyncio
import base64
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from submitter.errors import CallbackRefused, CallbackUnreadable
from submitter.providers import PROVIDERS, build
from submitter.signatures import Encoding
from submitter.vocabulary import Callback, Report, State
from tests.support.answers import hostile_bodies
from tests.support.fuzz import hammer
from tests.support.processes import TOKEN, live
from tests.support.running_receiver import RunningReceiver, freepik_body, novita_body, running_receiver, signed

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
VALUES = st.one_of(
    st.binary(max_size=80),
    st.sampled_from([b"v1,AAAA", b"msg_1", str(int(NOW.timestamp())).encode(), b"v1," + b"A" * 43 + b"="]),
)
NAMES = st.one_of(
    st.sampled_from([b"webhook-id", b"webhook-timestamp", b"webhook-signature", b"content-type"]),
    st.from_regex(rb"[a-z-]{1,20}", fullmatch=True),
)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=12).map(tuple)


@pytest.mark.parametrize("name", sorted(PROVIDERS))
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_verify_and_read_raise_what_they_declare_and_nothing_else(name: str, data: st.DataObject) -> None:
    secrets: dict[str, Any] = {"webhook_secrets": ["a", "b"]} if name == "freepik" else {}
    provider = build(name, api_key="-", **secrets)
    callback = Callback(data.draw(HEADERS), data.draw(st.binary(max_size=300) | hostile_bodies(name)), NOW)
    try:
        provider.verify(callback, NOW)
    except CallbackRefused:
        pass
    else:
        assert name != "freepik", "nobody signed this"
    try:
        report = provider.read(callback)
    except CallbackUnreadable:
        pass
    else:
        assert report is None or isinstance(report, Report)
    provider.delivery_id(callback)


def test_many_thousand_hostile_callbacks_are_refused_in_one_way() -> None:
    came = hammer(20_000, seed=3)
    assert came["verified"] > 1000
    assert set(came) >= {"no_match", "stale", "future", "missing_header", "bad_timestamp", "no_known_version"}


@pytest.mark.parametrize("encoding", ["utf8", "base64", "hex"])
@given(body=st.text(max_size=200), key=st.binary(min_size=24, max_size=64), message=st.from_regex(r"\Amsg_\w{1,30}\Z"))
@settings(max_examples=50, deadline=None)
def test_freepiks_signatures_in_all_key_encodings_agree_with_the_official_library(
    encoding: Encoding, body: str, key: bytes, message: str
) -> None:
    text = {
        "utf8": base64.b64encode(key).decode(),
        "base64": base64.b64encode(key).decode(),
        "hex": key.hex(),
    }[encoding]
    really = text.encode() if encoding == "utf8" else key
    official = standardwebhooks.Webhook(really).sign(message, NOW, body)
    headers = {"webhook-id": message, "webhook-timestamp": str(int(NOW.timestamp())), "webhook-signature": official}
    provider = build("freepik", api_key="-", webhook_secrets=[text], secret_encoding=encoding)
    raw = tuple((name.encode(), value.encode()) for name, value in headers.items())
    provider.verify(Callback(raw, body.encode(), NOW), NOW)
    with pytest.raises(CallbackRefused):
        provider.verify(Callback(raw, body.encode() + b" ", NOW), NOW)


# --- Through the whole receiver ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running_house() -> Iterator[tuple[asyncio.AbstractEventLoop, RunningReceiver]]:
    """One receiver for all examples, on a loop of its own."""
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()
    with tempfile.TemporaryDirectory() as directory:
        here = loop.run_until_complete(stack.enter_async_context(running_receiver(Path(directory), poll_interval=3000)))
        yield loop, here
        loop.run_until_complete(stack.aclose())
    loop.close()


PIECES = st.one_of(
    st.tuples(st.just("raw"), st.binary(max_size=400)),
    st.tuples(st.just("hostile"), hostile_bodies("freepik") | hostile_bodies("novita")),
    st.tuples(st.just("true"), st.sampled_from(["CREATED", "IN_PROGRESS", "COMPLETED", "FAILED", "POLISHING"])),
)


# A thread of the receiver may roll its dice while a piece is drawn; Hypothesis takes that for the strategy's doing.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    provider=st.sampled_from(["freepik", "novita"]),
    pieces=st.lists(st.tuples(PIECES, HEADERS, st.booleans(), st.integers(1, 2)), min_size=1, max_size=6),
)
def test_any_callbacks_in_any_order_are_answered_and_move_a_job_only_by_a_signed_word(
    provider: str, pieces: list[Any], running_house: tuple[asyncio.AbstractEventLoop, RunningReceiver]
) -> None:
    loop, here = running_house
    loop.run_until_complete(_post_all(here, provider, pieces))


async def _post_all(here: RunningReceiver, provider: str, pieces: list[Any]) -> None:
    job = await here.job(provider)
    first_end: State | None = None
    acknowledged = 0
    for (kind, what), headers, sign, times in pieces:
        true = {"freepik": freepik_body, "novita": novita_body}[provider]
        body = true(job.remote_id or "", what) if kind == "true" else what
        given_headers = [(name, value.strip()) for name, value in headers if b"\n" not in value and b"\r" not in value]
        if sign:
            given_headers = [(k.encode(), v.encode()) for k, v in signed(body).items()]
        for _ in range(times):
            answer = await here.client.post(here.path(job), content=body, headers=given_headers)
            assert answer.status_code == (200 if sign or provider == "novita" else 401)
            acknowledged += answer.status_code == 200
        if kind == "true" and sign and provider == "freepik" and what in ("COMPLETED", "FAILED"):
            first_end = first_end or {"COMPLETED": State.SUCCEEDED, "FAILED": State.FAILED}[what]
    await here.read()
    kept = [piece for piece in await here.evidence(job) if piece.source == "callback" and piece.verdict != "refused"]
    assert len(kept) == acknowledged, "every callback that was answered 2xx is an item"
    assert all(piece.verdict != "received" and piece.read_at is not None for piece in kept)
    assert (await here.now(job)).state is (first_end or State.RUNNING)
    ends = [name for name in await here.events(job) if name in ("job.succeeded", "job.failed")]
    assert len(ends) == (first_end is not None)


# --- The API, as it describes itself ----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_whatever_the_api_describes_never_answers_5xx(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _):
        await asyncio.to_thread(_call_everything, receiver.url)


def _call_everything(url: str) -> None:
    import schemathesis  # takes a second, which only the process that runs this test spends

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]

        @settings(
            max_examples=15,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def call(case: schemathesis.Case[Any]) -> None:
            if isinstance(case.body, dict) and isinstance(image := case.body.get("image"), dict):
                image.pop("url", None)  # nothing is fetched from elsewhere
            headers = {"authorization": f"Bearer {TOKEN}", "accept": "application/json"}
            answer = case.call(base_url=url, headers=headers, timeout=20)
            assert answer.status_code < 500, (case.method, case.path, case.body, answer.text[:500])

        call()
