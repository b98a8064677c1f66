"""Whatever the bytes, readers raise what they declare and nothing else, and hold the bounds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submitter.errors import CallbackUnreadable, ProviderError
from submitter.parsing import MAX_ID_CHARS, MAX_IMAGES, MAX_URL_CHARS
from submitter.provider import Provider
from submitter.providers import PROVIDERS, build
from submitter.vocabulary import Report, State
from tests.support.answers import DATE, answer, callback, hostile_bodies, samples

NAMES = sorted(PROVIDERS)
CALLING = [name for name in NAMES if PROVIDERS[name].callbacks]
POLLABLE = [name for name in NAMES if PROVIDERS[name].pollable]
KEY = "secret-key-0123456789"
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(["application/json", "text/html", "text/plain", "image/png", ""]),
        "date": st.sampled_from(["Thu, 01 Jan 2026 00:00:00 GMT", "nonsense", "Thu, 99 Foo 99999 99:99:99 +9999", "0"]),
        "retry-after": st.sampled_from(["5", "nan", "inf", "-1", "1e999", "Thu, 01 Jan 2026 00:00:00 GMT", "x"]),
        "x-task-cost": st.sampled_from(["10", "NaN", "-5", "9" * 400, "1e5", ""]),
    },
)
STATUSES = st.sampled_from([200, 201, 204, 301, 400, 401, 402, 403, 404, 408, 413, 429, 500, 502, 503, 504, 520])


def provider(name: str) -> Provider:
    return build(name, api_key=KEY)


def assert_bounded(report: Report) -> None:
    assert report.state in (State.RUNNING, State.SUCCEEDED, State.FAILED)
    assert report.remote_id is None or (0 < len(report.remote_id) <= MAX_ID_CHARS and report.remote_id.isprintable())
    assert len(report.images) <= MAX_IMAGES
    for image in report.images:
        assert (image.url is None) != (image.data is None)
        if image.url is not None:
            assert len(image.url) <= MAX_URL_CHARS
            assert image.url.lower().startswith(("http://", "https://"))
    assert bool(report.images) == (report.state is State.SUCCEEDED)
    assert (report.error is not None) == (report.state is State.FAILED)
    if report.error is not None:
        assert report.error.code and report.error.message
        (report.error.code + report.error.message).encode("utf-8")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_submit_answer_gives_a_report_or_a_provider_error(name: str, data: st.DataObject) -> None:
    response = httpx.Response(data.draw(STATUSES), headers=data.draw(HEADERS), content=data.draw(hostile_bodies(name)))
    try:
        assert_bounded(provider(name).submitted(response))
    except ProviderError as error:
        assert str(error) and error.code
        assert KEY not in str(error)


@pytest.mark.parametrize("name", POLLABLE)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_status_answer_gives_a_report_or_a_provider_error(name: str, data: st.DataObject) -> None:
    response = httpx.Response(data.draw(STATUSES), headers=data.draw(HEADERS), content=data.draw(hostile_bodies(name)))
    try:
        assert_bounded(provider(name).polled(response))
    except ProviderError as error:
        assert str(error) and error.code


@pytest.mark.parametrize("name", CALLING)
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_a_callback_gives_a_report_or_nothing_or_is_unreadable(name: str, data: st.DataObject) -> None:
    try:
        report = provider(name).read(callback(data.draw(hostile_bodies(name))))
    except CallbackUnreadable:
        return
    if report is not None:
        assert_bounded(report)


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_still_makes_sense(name: str) -> None:
    for body in samples(name):
        try:
            assert_bounded(provider(name).submitted(answer(body)))
        except ProviderError as error:
            assert str(error)


@pytest.mark.parametrize("name", CALLING)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"NaN",
        b'{"task_id": NaN}',
        b"null",
        b"[]",
        b'"text"',
        b"9" * 10_000,
        json.dumps({"task_id": 5.5, "status": "COMPLETED"}).encode(),
        json.dumps({"data": {"taskId": False, "state": "success"}}).encode(),
        json.dumps({"payload": {"task": {"task_id": ["x"], "status": "TASK_STATUS_SUCCEED"}}}).encode(),
        json.dumps({"task_id": "x" * 300, "status": "COMPLETED"}).encode(),
        json.dumps({"task_id": "..", "status": "COMPLETED", "generated": []}).encode(),
        json.dumps({"task_id": "a\nb", "status": "COMPLETED", "generated": []}).encode(),
    ],
    ids=lambda body: body[:30].decode("latin-1"),
)
def test_a_hostile_callback_is_unreadable(name: str, body: bytes) -> None:
    with pytest.raises(CallbackUnreadable):
        provider(name).read(callback(body))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_a_refusal_never_repeats_the_key_or_a_callback_address(name: str, status: int) -> None:
    reported = f"key {KEY} may not call https://hook.example/callbacks/{name}/very-secret-token?x=1, sorry"
    for body in (
        {"message": reported},
        {"error": reported, "error_code": "e"},
        {"code": status, "message": reported},
        reported,
    ):
        with pytest.raises(ProviderError) as caught:
            provider(name).submitted(answer(body, status))
        assert KEY not in str(caught.value)
        assert "very-secret-token" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [400, 404, 429, 500, 502, 503, 504])
def test_a_gateways_page_is_not_quoted(name: str, status: int) -> None:
    page = b"<html><body>gateway page</body></html>"
    for kind in ("text/html; charset=utf-8", "text/plain", "application/json"):
        with pytest.raises(ProviderError) as caught:
            provider(name).submitted(answer(page, status, content_type=kind))
        assert "gateway" not in str(caught.value)
        assert str(caught.value) and caught.value.code == f"http_{status}"


@pytest.mark.parametrize("name", NAMES)
def test_a_redirect_says_that_the_base_url_is_wrong(name: str) -> None:
    with pytest.raises(ProviderError, match="base URL"):
        provider(name).submitted(answer(b"", 302, location="https://elsewhere.example/"))


def outcome(read: Callable[[httpx.Response], Report], response: httpx.Response) -> object:
    try:
        return read(response)
    except ProviderError as error:
        return type(error), error.code, str(error)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_before_an_answer_loses_neither_task_id_nor_result(name: str, mark: str) -> None:
    calls = [provider(name).submitted, *([provider(name).polled] if name in POLLABLE else [])]
    for body in samples(name):
        text = json.dumps(body, ensure_ascii=False)
        for read, status in itertools.product(calls, (200, 402, 400)):
            plain, marked = (answer(text.encode(encoding), status, date=DATE) for encoding in ("utf-8", mark))
            assert outcome(read, marked) == outcome(read, plain)


def test_a_byte_order_mark_within_a_result_is_passed_over() -> None:
    (done,) = (body for body in samples("apixo") if (body.get("data") or {}).get("state") == "success")
    plain = provider("apixo").polled(answer(done))
    done["data"]["resultJson"] = "\ufeff" + done["data"]["resultJson"]
    assert provider("apixo").polled(answer(done)) == plain
    assert plain.images
