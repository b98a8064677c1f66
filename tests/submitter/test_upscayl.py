"""Upscayl's protocol: a form, a POST to ask, two nested statuses, links under many names."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from email import message_from_bytes
from pathlib import Path
from typing import Any

import httpx
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
from submitter.vocabulary import Cost, Picture, State, Task
from tests.support.answers import answer, callback, finish, first_request, sample
from tests.support.pictures import small_picture

TASK = "123e4567-e89b-12d3-a456-426614174000"
UPSCAYL = build("upscayl", api_key="ups-0123456789")
DEFAULTS = {"enhanceFace": "false", "model": "upscayl-standard-4x", "scale": "4", "saveImageAs": "jpg"}


def form(request: httpx.Request) -> dict[str, bytes]:
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    parts: dict[str, bytes] = {}
    for part in list(message_from_bytes(head + request.read()).walk())[1:]:
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        parts[str(part.get_param("name", header="content-disposition"))] = payload
    return parts


def test_required_fields_are_sent_as_text_with_the_file(tmp_path: Path) -> None:
    picture = small_picture(tmp_path)
    assert picture.path is not None
    request = first_request(UPSCAYL.submit(UPSCAYL.task(picture, {}), None))
    assert (request.method, str(request.url)) == ("POST", "https://api.upscayl.org/start-task")
    assert request.headers["x-api-key"] == "ups-0123456789"
    sent = form(request)
    assert sent.pop("file") == picture.path.read_bytes()
    assert {name: value.decode() for name, value in sent.items()} == DEFAULTS


def test_given_options_and_passthrough_are_sent_and_never_replace_the_file(tmp_path: Path) -> None:
    given = {
        "enhanceFace": True,
        "scale": 2,
        "passthrough": {"compression": 80, "batchMode": False, "tags": ["a"], "none": None, "file": "x", "urls": "y"},
    }
    sent = form(first_request(UPSCAYL.submit(UPSCAYL.task(small_picture(tmp_path), given), None)))
    assert sent.pop("file").startswith(b"\x89PNG")
    assert {name: value.decode() for name, value in sent.items()} == {
        **DEFAULTS,
        "enhanceFace": "true",
        "scale": "2",
        "compression": "80",
        "batchMode": "false",
        "tags": '["a"]',
    }


def test_a_picture_that_is_only_an_address_is_sent_as_one() -> None:
    picture = Picture(None, "https://a.example/x.png", "image/png", 0, 0, 0, "")
    sent = form(first_request(UPSCAYL.submit(Task(picture, {"scale": 2}), None)))
    assert sent == {"scale": b"2", "urls": b"https://a.example/x.png"}


@pytest.mark.parametrize(
    "given", [{"scale": 0}, {"scale": 9}, {"scale": "2"}, {"enhanceFace": "true"}, {"saveImageAs": "gif"}, {"file": ""}]
)
def test_an_option_the_page_does_not_allow_is_refused_by_name(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(TaskRefused) as caught:
        UPSCAYL.task(small_picture(tmp_path), given)
    assert caught.value.field == f"options.{next(iter(given))}"


def test_a_format_that_the_page_does_not_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskRefused):
        UPSCAYL.task(small_picture(tmp_path, kind="TIFF"), {})


@pytest.mark.parametrize(("header", "credits"), [("12", 12), ("", 10), ("x", 10)])
def test_an_accepted_task_includes_its_cost(header: str, credits: int) -> None:
    report = UPSCAYL.submitted(answer(sample("upscayl", "submitted"), x_task_cost=header))
    assert (report.remote_id, report.state) == (TASK, State.RUNNING)
    assert report.cost == Cost(Decimal(credits), "credits")


def test_asking_is_a_post_and_the_report_is_about_the_asked_task() -> None:
    request = first_request(UPSCAYL.poll(TASK))
    assert (request.method, str(request.url)) == ("POST", "https://api.upscayl.org/get-task-status")
    assert json.loads(request.read()) == {"data": {"taskId": TASK}}
    report = finish(UPSCAYL.poll(TASK), answer(sample("upscayl", "polled_processed")))
    assert (report.remote_id, report.state) == (TASK, State.SUCCEEDED)
    assert report.cost == Cost(Decimal(10), "credits")
    (image,) = report.images
    assert image.url == "https://files.upscayl.example/1k2.jpg?sig=1"
    assert image.expires_at == datetime(2026, 1, 2, tzinfo=UTC)


def test_an_answer_about_another_task_keeps_its_own_id() -> None:
    body = sample("upscayl", "polled_processed")
    body["data"]["taskId"] = "another"
    assert finish(UPSCAYL.poll(TASK), answer(body)).remote_id == "another"


def polled(**data: Any) -> Any:
    return UPSCAYL.polled(answer({"status": "success", "data": data}))


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("ENHANCING", State.RUNNING),
        ("PROCESSING", State.RUNNING),
        ("pending", State.RUNNING),
        ("Queued-or-so", State.RUNNING),
        ("PROCESSED", State.SUCCEEDED),
        ("completed", State.SUCCEEDED),
        ("PROCESSING_FAILED", State.FAILED),
        ("failed", State.FAILED),
    ],
)
def test_status_words_old_and_new_in_any_case(word: str, state: State) -> None:
    report = polled(status=word, files=[{"downloadLink": "https://a.example/1"}])
    assert (report.state, report.remote_status) == (state, word)


@pytest.mark.parametrize("name", ["downloadLink", "downloadUrl", "signedUrl", "presignedUrl", "url", "fileUrl"])
def test_the_link_is_found_under_any_of_its_names(name: str) -> None:
    report = polled(status="PROCESSED", files=[{"path": "users/x.jpg", name: "https://a.example/1"}])
    assert [image.url for image in report.images] == ["https://a.example/1"]


def test_no_link_is_ever_built_from_a_path() -> None:
    report = polled(status="PROCESSED", files=[{"path": "users/x.jpg", "downloadLink": "users/x.jpg"}])
    assert report.error is not None and report.error.code == "no_result_url"
    assert "path" in report.error.message and "users" not in report.error.message


@pytest.mark.parametrize(
    ("expires", "at"),
    [
        (1767312000, datetime(2026, 1, 2, tzinfo=UTC)),
        (1767312000000, datetime(2026, 1, 2, tzinfo=UTC)),
        ("1767312000", datetime(2026, 1, 2, tzinfo=UTC)),
        (0, None),
        (-5, None),
        (10**40, None),
        ("soon", None),
        (True, None),
        (None, None),
        ({}, None),
    ],
)
def test_an_expiry_is_read_by_magnitude_and_nonsense_ignored(expires: Any, at: datetime | None) -> None:
    report = polled(status="PROCESSED", files=[{"downloadLink": "https://a.example/1", "expiresAt": expires}])
    assert report.images[0].expires_at == at


@pytest.mark.parametrize("reason", ["Could not decode", {"message": "Could not decode"}])
def test_a_failure_carries_its_reason(reason: Any) -> None:
    error = polled(status="PROCESSING_FAILED", error=reason).error
    assert error is not None and (error.code, error.message) == ("failed", "Could not decode")
    silent = polled(status="failed").error
    assert silent is not None and silent.message


@pytest.mark.parametrize(
    ("status", "body", "kind", "code", "permanent"),
    [
        (400, "Bad Request: Missing User", ProviderRefused, "http_400", True),
        (400, {"error": "INVALID_FILE_TYPE", "message": "no"}, ProviderRefused, "INVALID_FILE_TYPE", True),
        (402, "Insufficient credits", AccountRefused, "http_402", False),
        (401, {"error": "UNAUTHORIZED", "message": "no"}, AccountRefused, "UNAUTHORIZED", False),
        (404, "User not found", ProviderRefused, "http_404", True),
        (429, b"Too many requests. Try again in 1 hour", ProviderBusy, "http_429", False),
        (500, "Error processing request", ProviderRefused, "http_500", False),
        (500, b"<html>", AnswerLost, "http_500", False),
        (502, "x", AnswerLost, "http_502", False),
        (503, b"", ProviderBusy, "http_503", False),
        (200, {"status": "error", "message": "no"}, ProviderRefused, "error", True),
        (200, {"error": "INSUFFICIENT_CREDITS", "message": "no"}, AccountRefused, "INSUFFICIENT_CREDITS", False),
        (200, {"error": "RATE_LIMIT_EXCEEDED"}, ProviderBusy, "RATE_LIMIT_EXCEEDED", False),
        (200, {"error": "INTERNAL_SERVER_ERROR"}, ProviderRefused, "INTERNAL_SERVER_ERROR", False),
        (200, {"status": "success"}, AnswerLost, "unreadable_answer", False),
        (200, {"status": "success", "data": {"taskId": [5]}}, AnswerLost, "unreadable_answer", False),
        (200, b"ok", AnswerLost, "unreadable_answer", False),
    ],
)
def test_what_a_refusal_means_for_the_money(
    status: int, body: Any, kind: type[ProviderError], code: str, permanent: bool
) -> None:
    with pytest.raises(ProviderError) as caught:
        UPSCAYL.submitted(answer(body, status))
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.permanent) == (code, permanent)


def test_plain_text_is_quoted() -> None:
    with pytest.raises(TaskNotFound, match="No such document"):
        finish(UPSCAYL.poll(TASK), answer(b"No such document", 404, content_type="text/plain"))


def test_it_sends_no_callbacks() -> None:
    with pytest.raises(CallbackUnreadable):
        UPSCAYL.read(callback({"status": "PROCESSED"}))
