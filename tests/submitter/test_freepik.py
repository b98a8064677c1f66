"""Freepik's protocol: wrapped answers, unwrapped callbacks, string options, no reason for failures."""

from __future__ import annotations

import base64
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
from submitter.vocabulary import Cost, State
from tests.support.answers import answer, callback, finish, first_request, sample
from tests.support.pictures import small_picture

TASK = "046b6c7f-0b8a-43b9-b35d-6489e6daee91"
FREEPIK = build("freepik", api_key="fpk-0123456789")


def test_a_submit_sends_exactly_what_was_given(tmp_path: Path) -> None:
    picture = small_picture(tmp_path)
    assert picture.path is not None
    given = {"scale_factor": "4x", "creativity": -3, "passthrough": {"new": 1, "image": "x", "webhook_url": "y"}}
    request = first_request(FREEPIK.submit(FREEPIK.task(picture, given), "https://hook.example/t"))
    assert (request.method, str(request.url)) == ("POST", "https://api.freepik.com/v1/ai/image-upscaler")
    assert request.headers["x-freepik-api-key"] == "fpk-0123456789"
    assert request.headers["content-type"] == "application/json"
    body = json.loads(request.read())
    assert base64.b64decode(body.pop("image")) == picture.path.read_bytes()
    assert body == {"scale_factor": "4x", "creativity": -3, "new": 1, "webhook_url": "https://hook.example/t"}


def test_without_options_and_callback_only_the_image_is_sent(tmp_path: Path) -> None:
    task = FREEPIK.task(small_picture(tmp_path), {"passthrough": {"webhook_url": "https://elsewhere.example"}})
    assert list(json.loads(first_request(FREEPIK.submit(task, None)).read())) == ["image"]


def test_the_renamed_service_takes_another_header(tmp_path: Path) -> None:
    magnific = build("freepik", api_key="k", base_url="https://api.magnific.com/", api_key_header="x-magnific-api-key")
    request = first_request(magnific.poll("a/b?c"))
    assert str(request.url) == "https://api.magnific.com/v1/ai/image-upscaler/a%2Fb%3Fc"
    assert request.headers["x-magnific-api-key"] == "k"


@pytest.mark.parametrize(
    "given",
    [
        {"scale_factor": 2},
        {"scale_factor": "3x"},
        {"creativity": 11},
        {"creativity": "1"},
        {"hdr": True},
        {"resemblance": 1.0},
        {"filter_nsfw": 1},
        {"engine": "best"},
        {"webhook_url": "https://x.example"},
        {"image": "x"},
    ],
)
def test_an_option_the_page_does_not_allow_is_refused_by_name(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(TaskRefused) as caught:
        FREEPIK.task(small_picture(tmp_path), given)
    assert caught.value.field == f"options.{next(iter(given))}"


@pytest.mark.parametrize(
    ("size", "factor", "fits"),
    [((2515, 2514), None, True), ((2515, 2516), None, False), ((100, 100), "16x", True), ((400, 400), "16x", False)],
)
def test_the_result_may_have_25_million_pixels(
    tmp_path: Path, size: tuple[int, int], factor: str | None, fits: bool
) -> None:
    picture, given = small_picture(tmp_path, size=size), {"scale_factor": factor}
    if fits:
        FREEPIK.task(picture, given)
    else:
        with pytest.raises(TaskRefused) as caught:
            FREEPIK.task(picture, given)
        assert caught.value.field == "options.scale_factor"


@pytest.mark.parametrize("name", ["submitted", "submitted_unwrapped"])
def test_an_accepted_task_is_running_under_its_id(tmp_path: Path, name: str) -> None:
    priced = build("freepik", api_key="k", price=Cost(Decimal("0.1"), "USD"))
    task = priced.task(small_picture(tmp_path), {})
    report = finish(priced.submit(task, None), answer(sample("freepik", name)))
    assert (report.remote_id, report.state, report.cost) == (TASK, State.RUNNING, Cost(Decimal("0.1"), "USD"))


def test_an_oddity_in_an_accepted_answer_does_not_lose_the_id() -> None:
    report = FREEPIK.submitted(answer({"data": {"task_id": TASK, "generated": "what"}}))
    assert (report.remote_id, report.state) == (TASK, State.RUNNING)


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b"{}", b'{"data":{"status":"CREATED"}}', b'{"data":[]}'])
def test_a_2xx_without_a_task_id_may_be_billed(body: bytes) -> None:
    with pytest.raises(AnswerLost):
        FREEPIK.submitted(answer(body))


STATES = [
    ("created", State.RUNNING),
    ("in_progress", State.RUNNING),
    ("completed", State.SUCCEEDED),
    ("failed", State.FAILED),
]


@pytest.mark.parametrize(("status", "state"), STATES)
def test_poll_and_callback_read_alike_wrapped_or_not(status: str, state: State) -> None:
    unwrapped = sample("freepik", f"callback_{status}")
    renamed = {**unwrapped, "task_status": unwrapped["status"]}
    del renamed["status"]
    expected = FREEPIK.polled(answer(sample("freepik", f"polled_{status}")))
    assert (expected.remote_id, expected.state, expected.remote_status) == (TASK, state, status.upper())
    for body in (unwrapped, {"data": unwrapped}, renamed, {"data": renamed}):
        assert FREEPIK.read(callback(body)) == expected
        assert FREEPIK.polled(answer(body)) == expected


def test_a_result_link_shows_when_it_dies() -> None:
    (image,) = FREEPIK.polled(answer(sample("freepik", "polled_completed"))).images
    assert image.expires_at == datetime.fromtimestamp(1767229200, UTC)


@pytest.mark.parametrize(
    ("item", "url"),
    [
        ("https://a.example/x.png", "https://a.example/x.png"),
        ({"url": "http://a.example/x.png", "content_type": "image/png"}, "http://a.example/x.png"),
        ("https://a.example/x?token=exp=" + "9" * 300, "https://a.example/x?token=exp=" + "9" * 300),
    ],
)
def test_results_are_links_or_objects_with_links(item: Any, url: str) -> None:
    body = {"task_id": TASK, "status": "COMPLETED", "generated": ["ftp://no.example", item, "", "javascript:1"]}
    (image,) = FREEPIK.polled(answer(body)).images
    assert (image.url, image.expires_at) == (url, None)


def test_done_without_a_link_is_a_visible_failure_that_names_keys_only() -> None:
    report = FREEPIK.polled(answer({"task_id": TASK, "status": "COMPLETED", "generated": [], "secret": "v4lue"}))
    assert report.state is State.FAILED and report.error is not None
    assert (report.error.code, report.error.permanent) == ("no_result_url", True)
    assert "secret" in report.error.message and "v4lue" not in report.error.message


def test_a_failure_without_a_reason_still_says_something() -> None:
    report = FREEPIK.read(callback(sample("freepik", "callback_failed")))
    assert report is not None and report.error is not None
    assert report.error.code == "failed" and "Freepik" in report.error.message


def test_an_unlisted_status_is_no_error() -> None:
    report = FREEPIK.polled(answer({"data": {"task_id": TASK, "status": "REFINING", "generated": []}}))
    assert (report.state, report.remote_status) == (State.RUNNING, "REFINING")


@pytest.mark.parametrize("changed", [{"status": 5}, {"status": None}, {"generated": 5}, {"task_id": True}])
def test_a_callback_with_a_field_of_a_wrong_type_is_unreadable(changed: dict[str, Any]) -> None:
    with pytest.raises(CallbackUnreadable):
        FREEPIK.read(callback({**sample("freepik", "callback_completed"), **changed}))


@pytest.mark.parametrize(
    ("status", "body", "kind", "permanent"),
    [
        (400, {"message": "Parameter 'page' is not valid"}, ProviderRefused, True),
        (404, {"message": "no such page"}, ProviderRefused, True),
        (408, {"message": "slow"}, ProviderRefused, False),
        (401, sample("freepik", "refused_key"), AccountRefused, False),
        (402, {}, AccountRefused, False),
        (403, {"message": "no"}, AccountRefused, False),
        (429, {"message": "slow down"}, ProviderBusy, False),
        (503, {"message": "Service Unavailable. Please try again later."}, ProviderBusy, False),
        (500, {"message": "Internal Server Error"}, ProviderRefused, False),
        (500, b"Internal Server Error", AnswerLost, False),
        (502, b"<html>bad gateway</html>", AnswerLost, False),
        (504, {"message": "timeout"}, AnswerLost, False),
    ],
)
def test_what_a_refusal_means_for_the_money(status: int, body: Any, kind: type[ProviderError], permanent: bool) -> None:
    with pytest.raises(ProviderError) as caught:
        FREEPIK.submitted(answer(body, status, retry_after="7"))
    assert type(caught.value) is kind
    assert caught.value.permanent is permanent
    assert caught.value.code == f"http_{status}"
    assert caught.value.retry_after_seconds == (7 if kind is ProviderBusy else None)
    if isinstance(body, dict) and "message" in body:
        assert body["message"] in str(caught.value)


@pytest.mark.parametrize("nested", [True, False])
def test_a_problem_names_its_parameters(nested: bool) -> None:
    problem = sample("freepik", "refused_problem")
    body = problem if nested else problem["problem"]
    with pytest.raises(ProviderRefused, match=r"didn't validate\.; creativity: must be at most 10"):
        FREEPIK.submitted(answer(body, 400, content_type="application/problem+json"))


def test_a_refusal_that_repeats_the_prompt_does_not_leak_it(tmp_path: Path) -> None:
    task = FREEPIK.task(small_picture(tmp_path), {"prompt": "my private words"})
    said = {"message": "prompt 'my private words' is not allowed with https://hook.example/secret-path"}
    with pytest.raises(ProviderRefused, match="is not allowed") as caught:
        finish(FREEPIK.submit(task, "https://hook.example/secret-path"), answer(said, 400))
    assert "private" not in str(caught.value) and "secret-path" not in str(caught.value)


def test_a_status_call_for_an_unknown_task_says_so() -> None:
    with pytest.raises(TaskNotFound, match="Task not found"):
        finish(FREEPIK.poll(TASK), answer({"message": "Task not found"}, 404))


def test_a_poll_answer_about_another_task_keeps_its_own_id() -> None:
    body = {**sample("freepik", "callback_completed"), "task_id": "another"}
    assert finish(FREEPIK.poll(TASK), answer(body)).remote_id == "another"


def test_each_delivery_has_its_own_id() -> None:
    assert FREEPIK.delivery_id(callback({}, webhook_id="msg_1")) == "msg_1"
    assert FREEPIK.delivery_id(callback({})) is None
