"""Pixelcut's protocol: the answer to the submit call is the result, as a link or as bytes."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as pillow

from submitter.errors import (
    AccountRefused,
    AnswerLost,
    ProviderBusy,
    ProviderError,
    ProviderRefused,
    TaskRefused,
)
from submitter.providers import build
from submitter.vocabulary import Image, Picture, State, Task
from tests.submitter.test_upscayl import form
from tests.support.answers import NOW, answer, finish, first_request, sample
from tests.support.pictures import big_picture, png, small_picture

PIXELCUT = build("pixelcut", api_key="sk-0123456789")
LINK = "https://assets.pixelcut.app/public/result/x.jpg"
INLINE = png(20, 11)


def test_a_file_is_sent_as_a_form_with_its_scale_as_text(tmp_path: Path) -> None:
    picture = small_picture(tmp_path)
    assert picture.path is not None
    task = PIXELCUT.task(picture, {"passthrough": {"image_url": "https://thief.example", "x": 1}})
    request = first_request(PIXELCUT.submit(task, None))
    assert (request.method, str(request.url)) == ("POST", "https://api.developer.pixelcut.ai/v1/upscale")
    assert request.headers["x-api-key"] == "sk-0123456789"
    assert request.headers["accept"] == "application/json"
    assert form(request) == {"image": picture.path.read_bytes(), "scale": b"2", "x": b"1"}


def test_an_address_is_sent_as_json() -> None:
    picture = Picture(None, "https://a.example/x.png", "image/png", 0, 0, 0, "")
    request = first_request(PIXELCUT.submit(Task(picture, {"scale": 4}), None))
    assert json.loads(request.read()) == {"image_url": "https://a.example/x.png", "scale": 4}


@pytest.mark.parametrize("scale", ["2", True, 2.0, 3, None, 8])
def test_the_scale_is_two_or_four_and_a_number(tmp_path: Path, scale: Any) -> None:
    with pytest.raises(TaskRefused) as caught:
        PIXELCUT.task(small_picture(tmp_path), {"scale": scale})
    assert caught.value.field == "options.scale"


@pytest.mark.parametrize(
    ("size", "scale", "code"),
    [
        ((64, 64), 2, None),
        ((63, 64), 2, "image_too_small"),
        ((64, 63), 2, "image_too_small"),
        ((3000, 64), 2, None),
        ((3001, 64), 2, "output_too_large"),
        ((64, 1500), 4, None),
        ((64, 1501), 4, "output_too_large"),
        ((6001, 64), 2, "image_too_large"),
    ],
)
def test_the_documented_sizes_hold(tmp_path: Path, size: tuple[int, int], scale: int, code: str | None) -> None:
    picture = small_picture(tmp_path, size=size)
    if code is None:
        PIXELCUT.task(picture, {"scale": scale})
    else:
        with pytest.raises(TaskRefused) as caught:
            PIXELCUT.task(picture, {"scale": scale})
        assert caught.value.code == code
        assert caught.value.field == ("options.scale" if code == "output_too_large" else "image")


def test_files_beyond_twenty_five_megabytes_are_refused(tmp_path: Path) -> None:
    PIXELCUT.task(big_picture(tmp_path, 25 << 20), {})
    with pytest.raises(TaskRefused):
        PIXELCUT.task(big_picture(tmp_path, (25 << 20) + 1), {})


def test_a_link_is_the_result_and_lives_an_hour(tmp_path: Path) -> None:
    task = PIXELCUT.task(small_picture(tmp_path), {})
    report = finish(PIXELCUT.submit(task, None), answer(sample("pixelcut", "result")))
    assert (report.remote_id, report.state) == (None, State.SUCCEEDED)
    assert report.images == (Image(url=LINK, expires_at=NOW + timedelta(hours=1)),)
    assert PIXELCUT.submitted(answer({"result_url": LINK}, date="x")).images == (Image(url=LINK),)


@pytest.mark.parametrize(
    "body",
    [
        {"image": base64.b64encode(INLINE).decode()},
        {"image": f"data:image/png;base64,{base64.b64encode(INLINE).decode()}"},
        {"result_url": f"data:image/png;base64,{base64.b64encode(INLINE).decode()}"},
        {"data": {"image": base64.b64encode(INLINE).decode()}},
        {"images": [base64.b64encode(INLINE).decode()]},
    ],
)
def test_an_image_that_is_written_out_in_the_answer_is_the_result(body: dict[str, Any]) -> None:
    assert PIXELCUT.submitted(answer(body)).images == (Image(data=INLINE, content_type="image/png"),)


@pytest.mark.parametrize(
    "body", [{"url": LINK}, {"result": {"url": LINK}}, {"result_url": LINK.removeprefix("https:")}, {"output": [LINK]}]
)
def test_a_link_is_found_wherever_it_is(body: dict[str, Any]) -> None:
    assert PIXELCUT.submitted(answer(body, date="x")).images == (Image(url=LINK),)


@pytest.mark.parametrize("said", ["image/jpeg", "image/png", "application/octet-stream"])
def test_bytes_are_the_result_and_named_by_their_magic(tmp_path: Path, said: str) -> None:
    path = small_picture(tmp_path, kind="JPEG").path
    assert path is not None
    report = PIXELCUT.submitted(answer(path.read_bytes(), content_type=said))
    assert report.images == (Image(data=path.read_bytes(), content_type="image/jpeg"),)


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (400, sample("pixelcut", "refused_size"), ProviderRefused, "file_size_too_large"),
        (
            401,
            {"error": "API Token not found", "error_code": "invalid_auth_token"},
            AccountRefused,
            "invalid_auth_token",
        ),
        (403, sample("pixelcut", "refused_credits"), AccountRefused, "insufficient_api_credits"),
        (429, {"error": "Too many requests", "error_code": "rate_limit_exceeded"}, ProviderBusy, "rate_limit_exceeded"),
        (413, b"<html>", ProviderRefused, "http_413"),
        (500, b"", ProviderBusy, "http_500"),
        (500, {"error": "oops", "error_code": "internal"}, ProviderBusy, "internal"),
        (502, b"", AnswerLost, "http_502"),
        (503, b"", ProviderBusy, "http_503"),
        (504, b"", AnswerLost, "http_504"),
        (200, {}, AnswerLost, "no_result_url"),
        (200, {"result_url": "not a link"}, AnswerLost, "no_result_url"),
        (200, [], AnswerLost, "no_result_url"),
        (200, b"", AnswerLost, "unreadable_answer"),
        (200, {"error": "no", "error_code": "malformed_image"}, ProviderRefused, "malformed_image"),
        (200, {"error": "no", "error_code": "bad_input", "url": LINK}, ProviderRefused, "bad_input"),
        (200, {"message": "see https://www.pixelcut.ai/docs"}, AnswerLost, "no_result_url"),
        (200, {"image": base64.b64encode(INLINE[:-8]).decode()}, AnswerLost, "no_result_url"),
    ],
)
def test_what_a_refusal_means_for_the_money(status: int, body: Any, kind: type[ProviderError], code: str) -> None:
    with pytest.raises(ProviderError) as caught:
        PIXELCUT.submitted(answer(body, status))
    assert type(caught.value) is kind
    assert caught.value.code == code
    if isinstance(caught.value, ProviderBusy):
        assert caught.value.tries == (5 if status == 500 else None)


def test_an_empty_image_may_be_billed() -> None:
    with pytest.raises(AnswerLost):
        PIXELCUT.submitted(answer(b"", content_type="image/png"))


def test_it_can_not_be_asked() -> None:
    with pytest.raises(TypeError):
        PIXELCUT.poll("x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_half_a_picture_is_a_lost_answer_and_never_a_success(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "x"
    pillow.effect_noise((300, 200), 90).convert("RGB").save(path, kind)
    whole = path.read_bytes()
    with pytest.raises(AnswerLost, match="not whole") as caught:
        PIXELCUT.submitted(answer(whole[: int(len(whole) * share)], content_type="image/jpeg"))
    assert caught.value.code == "answer_cut"
