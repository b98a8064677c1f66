"""APIXO's protocol: URL input, three levels of saying no, JSON in a string."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from submitter.errors import (
    AccountRefused,
    AnswerLost,
    CallbackUnreadable,
    ProviderBusy,
    ProviderError,
    ProviderRefused,
    TaskNotFound,
    TaskRefused,
)
from submitter.providers import build
from submitter.vocabulary import Cost, State, Trust
from tests.support.answers import answer, callback, finish, first_request, sample
from tests.support.pictures import small_picture

APIXO = build("apixo", api_key="apx-0123456789")
INPUT = "https://us.example/inputs/tok"
HOOK = "https://us.example/callbacks/apixo/tok"


def sent(tmp_path: Path, given: dict[str, Any], callback_url: str | None) -> Any:
    task = APIXO.task(small_picture(tmp_path, url=INPUT), given)
    return json.loads(first_request(APIXO.submit(task, callback_url)).read())


def test_a_callback_url_makes_it_a_callback_request(tmp_path: Path) -> None:
    given = {"mode": "image-to-image", "resolution": "8K", "output_format": "jpeg"}
    assert sent(tmp_path, given, HOOK) == {
        "request_type": "callback",
        "callback_url": HOOK,
        "input": {
            "mode": "image-to-image",
            "image_urls": [INPUT],
            "resolution": "8k",
            "output_format": "jpg",
        },
    }


def test_without_a_callback_url_it_is_asynchronous(tmp_path: Path) -> None:
    assert sent(tmp_path, {}, None) == {"request_type": "async", "input": {"image_urls": [INPUT]}}


def test_a_caller_that_wants_async_gets_no_callback(tmp_path: Path) -> None:
    assert not APIXO.options_for_callback({"request_type": "async"})
    assert APIXO.options_for_callback({}) and APIXO.options_for_callback({"request_type": "callback"})
    assert sent(tmp_path, {"request_type": "async"}, HOOK) == {
        "request_type": "async",
        "input": {"image_urls": [INPUT]},
    }


def test_a_caller_that_wants_a_callback_is_refused_where_none_is_possible(tmp_path: Path) -> None:
    with pytest.raises(TaskRefused) as caught:
        sent(tmp_path, {"request_type": "callback"}, None)
    assert caught.value.code == "public_url_required"


def test_a_picture_without_an_address_is_refused(tmp_path: Path) -> None:
    task = APIXO.task(small_picture(tmp_path), {})
    with pytest.raises(TaskRefused) as caught:
        next(APIXO.submit(task, HOOK))
    assert (caught.value.code, caught.value.field) == ("public_url_required", "image")


def test_passthrough_goes_deep_and_never_replaces_what_we_manage(tmp_path: Path) -> None:
    extra = {
        "provider": "auto",
        "callback_url": "https://thief.example",
        "request_type": "callback",
        "input": {"image_urls": ["https://thief.example"], "seed": 5},
    }
    body = sent(tmp_path, {"passthrough": extra}, None)
    assert body == {"provider": "auto", "request_type": "async", "input": {"image_urls": [INPUT], "seed": 5}}
    assert sent(tmp_path, {"passthrough": {"input": 5}}, None)["input"] == {"image_urls": [INPUT]}


def test_a_format_that_the_page_does_not_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskRefused) as caught:
        APIXO.task(small_picture(tmp_path, kind="GIF", url=INPUT), {})
    assert caught.value.field == "image"


def test_an_accepted_task_costs_a_cent() -> None:
    report = APIXO.submitted(answer(sample("apixo", "submitted")))
    assert (report.remote_id, report.state) == ("task_12345678", State.RUNNING)
    assert report.cost == Cost(Decimal("0.01"), "USD")


def test_a_status_call_names_the_task_in_its_query() -> None:
    request = first_request(APIXO.poll("task 1&x=2"))
    assert str(request.url) == "https://api.apixo.ai/api/v1/statusTask/image-upscaler?taskId=task+1%26x%3D2"
    assert request.headers["authorization"] == "Bearer apx-0123456789"


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("pending", State.RUNNING),
        ("processing", State.RUNNING),
        ("success", State.SUCCEEDED),
        ("failed", State.FAILED),
    ],
)
def test_poll_and_callback_read_alike(status: str, state: State) -> None:
    body = sample("apixo", f"status_{status}")
    expected = APIXO.polled(answer(body))
    assert (expected.remote_id, expected.state, expected.remote_status) == ("task_12345678", state, status)
    assert APIXO.read(callback(body)) == APIXO.read(callback(body["data"])) == expected
    assert APIXO.trust is Trust.CAPABILITY_TOKEN


def test_results_live_a_day_from_completion() -> None:
    (image,) = APIXO.polled(answer(sample("apixo", "status_success"))).images
    assert image.url == "https://file.apixo.ai/out.jpg"
    assert image.expires_at == datetime(2026, 1, 10, 13, 34, 12, 317000, tzinfo=UTC)


def task(**data: Any) -> dict[str, Any]:
    return {"code": 200, "message": "success", "data": {"taskId": "t", **data}}


@pytest.mark.parametrize("completed", [None, "x", -1, 10**30, 1.5e300, True, [], "1767965652317"])
def test_a_senseless_completion_time_is_no_expiry(completed: Any) -> None:
    body = task(state="success", resultJson='{"resultUrls":["https://a.example/1"]}', completeTime=completed)
    (image,) = APIXO.polled(answer(body)).images
    assert (image.expires_at is None) == (completed != "1767965652317")


@pytest.mark.parametrize("result", [None, "", "{", "[]", "5", '{"resultUrls":[]}', '{"resultUrls":["x"]}', "[" * 9999])
def test_success_without_a_link_is_a_visible_failure(result: Any) -> None:
    report = APIXO.polled(answer(task(state="success", resultJson=result)))
    assert report.error is not None and report.error.code == "no_result_url"
    assert "resultJson" in report.error.message


@pytest.mark.parametrize(
    ("code", "permanent"),
    [
        ("ImageFormatIncorrect", True),
        ("SensitiveContent", True),
        ("NSFW", True),
        ("CONTENT_VIOLATION", True),
        ("RateLimited", False),
        ("Timeout", False),
        ("Unknown error", False),
        ("SomethingNew", False),
    ],
)
def test_fail_codes_are_an_open_set(code: str, permanent: bool) -> None:
    report = APIXO.read(callback(task(state="failed", failCode=code, failMsg="Because.")))
    assert report is not None and report.error is not None
    assert (report.error.code, report.error.message, report.error.permanent) == (code, "Because.", permanent)


def test_a_failure_without_code_and_message_still_says_something() -> None:
    report = APIXO.polled(answer(task(state="failed")))
    assert report.error is not None
    assert report.error.code == "failed" and report.error.message


@pytest.mark.parametrize(
    "body", [task(state=5), task(), {"data": {"state": "success"}}, task(state="success", resultJson=5, taskId=[])]
)
def test_a_callback_with_a_field_of_a_wrong_type_is_unreadable(body: Any) -> None:
    with pytest.raises(CallbackUnreadable):
        APIXO.read(callback(body))


def envelope(code: Any, message: str = "told so") -> dict[str, Any]:
    return {"code": code, "message": message, "data": {"error": "detail"}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (200, envelope(400), ProviderRefused, "400"),
        (200, envelope(404), ProviderRefused, "404"),
        (200, envelope(401), AccountRefused, "401"),
        (200, sample("apixo", "refused_balance"), AccountRefused, "402"),
        (200, envelope("403"), AccountRefused, "403"),
        (200, envelope(429), ProviderBusy, "429"),
        (200, envelope(503), ProviderBusy, "503"),
        (200, envelope(500), ProviderBusy, "500"),
        (200, envelope(502), AnswerLost, "502"),
        (200, envelope(504), AnswerLost, "504"),
        (200, b"", AnswerLost, "unreadable_answer"),
        (200, {"message": "?"}, AnswerLost, "unreadable_answer"),
        (200, envelope(200), AnswerLost, "unreadable_answer"),
        (400, envelope(400), ProviderRefused, "400"),
        (400, envelope(402), AccountRefused, "402"),
        (401, envelope(401), AccountRefused, "401"),
        (402, b"", AccountRefused, "http_402"),
        (429, envelope(429), ProviderBusy, "429"),
        (500, envelope(500), ProviderBusy, "500"),
        (500, b"oops", AnswerLost, "http_500"),
        (502, envelope(502), AnswerLost, "502"),
        (502, envelope(400), AnswerLost, "502"),
        (503, b"", ProviderBusy, "http_503"),
        (504, b"<html>", AnswerLost, "http_504"),
    ],
)
def test_what_a_refusal_means_for_the_money(status: int, body: Any, kind: type[ProviderError], code: str) -> None:
    with pytest.raises(ProviderError) as caught:
        APIXO.submitted(answer(body, status))
    assert type(caught.value) is kind
    assert caught.value.code == code
    if isinstance(caught.value, ProviderBusy):
        assert caught.value.tries == (5 if code == "500" else None)


def test_a_refusal_says_message_and_detail() -> None:
    with pytest.raises(ProviderRefused, match="told so; detail"):
        APIXO.submitted(answer(envelope(400), 400))


@pytest.mark.parametrize("status", [200, 404])
def test_a_status_call_for_an_unknown_task_says_so(status: int) -> None:
    with pytest.raises(TaskNotFound, match="no such task"):
        finish(APIXO.poll("t"), answer(envelope(404, "no such task"), status))
