"""Novita's protocol: flat options sorted into two objects, account errors under 400, enveloped callbacks."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
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
from submitter.vocabulary import State
from tests.support.answers import NOW, answer, callback, finish, first_request, sample
from tests.support.pictures import big_picture, small_picture

TASK = "71dd988e-632e-4339-b217-74bcbe6db0ee"
NOVITA = build("novita", api_key="nvt-0123456789")
HOOK = "https://us.example/callbacks/novita/tok"


def sent(tmp_path: Path, given: dict[str, Any], callback_url: str | None) -> Any:
    picture = small_picture(tmp_path)
    assert picture.path is not None
    body = json.loads(first_request(NOVITA.submit(NOVITA.task(picture, given), callback_url)).read())
    assert base64.b64decode(body["request"].pop("image_base64")) == picture.path.read_bytes()
    return body


def test_required_fields_get_defaults_and_nothing_else_is_sent(tmp_path: Path) -> None:
    assert sent(tmp_path, {}, None) == {"request": {"model_name": "RealESRGAN_x4plus_anime_6B", "scale_factor": 2}}


def test_options_find_their_place_by_leaf_name(tmp_path: Path) -> None:
    given = {
        "model_name": "4x-UltraSharp",
        "scale_factor": 1.5,
        "response_image_type": "jpeg",
        "custom_storage": {"aws_s3": {"region": "r", "bucket": "b", "path": "/p"}},
        "enterprise_plan": {"enabled": True},
        "enable_nsfw_detection": True,
        "nsfw_detection_level": 0,
    }
    assert sent(tmp_path, given, HOOK) == {
        "request": {"model_name": "4x-UltraSharp", "scale_factor": 1.5},
        "extra": {
            "response_image_type": "jpeg",
            "custom_storage": {"aws_s3": {"region": "r", "bucket": "b", "path": "/p"}},
            "enterprise_plan": {"enabled": True},
            "enable_nsfw_detection": True,
            "nsfw_detection_level": 0,
            "webhook": {"url": HOOK},
        },
    }


@pytest.mark.parametrize("factor", [2, 4, 2.0, 1.01])
def test_a_factor_keeps_its_kind_of_number(tmp_path: Path, factor: float) -> None:
    value = sent(tmp_path, {"scale_factor": factor}, None)["request"]["scale_factor"]
    assert (value, type(value)) == (factor, type(factor))


@pytest.mark.parametrize(
    "given",
    [
        {"scale_factor": 1},
        {"scale_factor": 4.001},
        {"scale_factor": "2"},
        {"scale_factor": True},
        {"scale_factor": float("nan")},
        {"nsfw_detection_level": True},
        {"nsfw_detection_level": 1.0},
        {"nsfw_detection_level": 3},
        {"model_name": None},
        {"custom_storage": {"aws_s3": {"region": "r"}}},
        {"custom_storage": {"gcs": {}}},
        {"webhook": {"url": "x"}},
        {"test_mode": {}},
    ],
)
def test_an_option_the_page_does_not_allow_is_refused_by_name(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(TaskRefused) as caught:
        NOVITA.task(small_picture(tmp_path), given)
    assert caught.value.field.startswith(f"options.{next(iter(given))}")


def test_passthrough_goes_deep_and_never_replaces_what_we_manage(tmp_path: Path) -> None:
    extra = {
        "request": {"image_base64": "x", "seed": 1},
        "extra": {"webhook": {"url": "https://thief.example", "test_mode": {"enabled": True}}, "x": 1},
    }
    body = sent(tmp_path, {"passthrough": extra}, HOOK)
    assert body["request"]["seed"] == 1
    assert body["extra"] == {"x": 1, "webhook": {"url": HOOK, "test_mode": {"enabled": True}}}
    assert "webhook" not in sent(tmp_path, {"passthrough": extra}, None)["extra"]
    assert sent(tmp_path, {"passthrough": {"extra": 5, "request": []}}, HOOK)["extra"] == {"webhook": {"url": HOOK}}


@pytest.mark.parametrize(("size", "fits"), [((2048, 2048), True), ((2049, 10), False), ((10, 2049), False)])
def test_no_side_is_longer_than_2048(tmp_path: Path, size: tuple[int, int], fits: bool) -> None:
    picture = small_picture(tmp_path, size=size)
    if fits:
        NOVITA.task(picture, {})
    else:
        with pytest.raises(TaskRefused) as caught:
            NOVITA.task(picture, {})
        assert (caught.value.field, caught.value.code) == ("image", "image_too_large")


def test_files_beyond_thirty_megabytes_are_refused(tmp_path: Path) -> None:
    NOVITA.task(big_picture(tmp_path, 30 << 20), {})
    with pytest.raises(TaskRefused) as caught:
        NOVITA.task(big_picture(tmp_path, (30 << 20) + 1), {})
    assert caught.value.code == "file_too_large"


def test_an_accepted_task_is_running_under_its_id() -> None:
    report = NOVITA.submitted(answer(sample("novita", "submitted")))
    assert (report.remote_id, report.state, report.cost) == (TASK, State.RUNNING, None)


@pytest.mark.parametrize("body", [{}, [], {"task_id": ""}, {"task_id": []}, b"x", {"task_id": None}])
def test_a_2xx_without_a_task_id_may_be_billed(body: Any) -> None:
    with pytest.raises(AnswerLost):
        NOVITA.submitted(answer(body))


@pytest.mark.parametrize(
    ("name", "state"),
    [("queued", State.RUNNING), ("processing", State.RUNNING), ("succeed", State.SUCCEEDED), ("failed", State.FAILED)],
)
def test_status_answers_are_read(name: str, state: State) -> None:
    report = finish(NOVITA.poll(TASK), answer(sample("novita", f"polled_{name}")))
    assert (report.remote_id, report.state) == (TASK, state)
    assert report.remote_status == f"TASK_STATUS_{name.upper()}"


def test_a_status_call_names_the_task_in_its_query() -> None:
    request = first_request(NOVITA.poll(TASK))
    assert str(request.url) == f"https://api.novita.ai/v3/async/task-result?task_id={TASK}"
    assert request.headers["authorization"] == "Bearer nvt-0123456789"


def test_a_presigned_link_shows_when_it_dies() -> None:
    (image,) = NOVITA.polled(answer(sample("novita", "polled_succeed"))).images
    assert (image.expires_at, image.content_type) == (datetime(2026, 1, 1, 10, 33, 38, tzinfo=UTC), "image/jpeg")


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [("3600", 3600), (3600, 3600), (0, None), (-5, None), ("x", None), ("9" * 500, None), (1e300, None), (None, None)],
)
def test_a_lifetime_is_counted_from_the_answer(ttl: Any, seconds: int | None) -> None:
    body = sample("novita", "callback_succeed")
    body["payload"]["images"][0] |= {"image_url": "https://a.example/x.jpeg?X-Amz-Date=9999&X-Amz-Expires=1"}
    body["payload"]["images"][0] |= {"image_url_ttl": ttl}
    expected = None if seconds is None else NOW + timedelta(seconds=seconds)
    for report in (NOVITA.read(callback(body)), NOVITA.polled(answer(body["payload"]))):
        assert report is not None
        assert report.images[0].expires_at == expected
    assert NOVITA.polled(answer(body["payload"], date="nonsense")).images[0].expires_at is None


@pytest.mark.parametrize(("name", "state"), [("succeed", State.SUCCEEDED), ("failed", State.FAILED)])
def test_callbacks_are_read_enveloped_and_bare(name: str, state: State) -> None:
    body = sample("novita", f"callback_{name}")
    report = NOVITA.read(callback(body))
    assert report is not None
    assert (report.remote_id, report.state) == (TASK, state)
    assert NOVITA.read(callback(body["payload"])) == report


def test_other_events_are_not_about_a_task() -> None:
    assert NOVITA.read(callback({"event_type": "BALANCE_LOW", "payload": 5})) is None


def test_a_failure_carries_its_reason() -> None:
    report = NOVITA.polled(answer(sample("novita", "polled_failed")))
    assert report.error is not None
    assert (report.error.code, report.error.permanent) == ("ILLEGAL_IMAGE_CONTENT", True)


def test_done_without_a_link_is_a_visible_failure_that_names_keys_only() -> None:
    body = sample("novita", "callback_succeed")
    body["payload"]["images"] = [{"image_path": "secret/place"}]
    report = NOVITA.read(callback(body))
    assert report is not None and report.error is not None
    assert report.error.code == "no_result_url"
    assert "image_path" in report.error.message and "secret" not in report.error.message


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"task": []},
        {"task": {"task_id": TASK}},
        {"task": {"task_id": TASK, "status": 5}},
        {"task": {"task_id": TASK, "status": "TASK_STATUS_SUCCEED"}, "images": 5},
    ],
)
def test_a_callback_with_a_field_of_a_wrong_type_is_unreadable(payload: Any) -> None:
    with pytest.raises(CallbackUnreadable):
        NOVITA.read(callback({"event_type": "ASYNC_TASK_RESULT", "payload": payload}))


def error(reason: str) -> dict[str, Any]:
    return {"code": 1, "reason": reason, "message": "told so", "metadata": {}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "permanent"),
    [
        (400, error("INVALID_REQUEST_BODY"), ProviderRefused, True),
        (400, sample("novita", "refused_balance"), AccountRefused, False),
        (400, error("MISSING_API_KEY"), AccountRefused, False),
        (400, error("BILLING_AUTH_FAILED"), AccountRefused, False),
        (401, error("X"), AccountRefused, False),
        (403, error("INVALID_API_KEY"), AccountRefused, False),
        (403, error("NEED_REAL_NAME_VERIFY"), AccountRefused, False),
        (404, error("API_NOT_FOUND"), ProviderRefused, True),
        (429, error("RATE_LIMIT_EXCEEDED"), ProviderBusy, False),
        (500, error("BILLING_FAILED"), ProviderRefused, False),
        (500, error("CREATE_TASK_FAILED"), ProviderRefused, False),
        (500, b"<html>", AnswerLost, False),
        (502, error("X"), AnswerLost, False),
        (503, error("X"), ProviderBusy, False),
        (504, error("X"), AnswerLost, False),
    ],
)
def test_what_a_refusal_means_for_the_money(status: int, body: Any, kind: type[ProviderError], permanent: bool) -> None:
    with pytest.raises(ProviderError) as caught:
        NOVITA.submitted(answer(body, status))
    assert type(caught.value) is kind
    assert caught.value.permanent is permanent
    assert caught.value.code == (body["reason"] if isinstance(body, dict) else f"http_{status}")


@pytest.mark.parametrize("status", [400, 404])
def test_a_status_call_for_an_unknown_task_says_so(status: int) -> None:
    with pytest.raises(TaskNotFound):
        finish(NOVITA.poll(TASK), answer(error("TASK_NOT_FOUND"), status))
