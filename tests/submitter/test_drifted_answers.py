"""Answers that drifted a little from the pages are understood, and a refusal shows its words whatever its status."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from submitter.errors import AccountRefused, AnswerLost, ProviderBusy, ProviderError, ProviderRefused
from submitter.parsing import NO_RESULT, link, moment
from submitter.providers import build
from submitter.vocabulary import Report, State
from tests.support.answers import answer
from tests.support.pictures import chunk, png

LINK = "https://cdn.example/r/a.png"
BARE = LINK.removeprefix("https:")
KEY = "secret-key-0123456789"


def freepik(**task: Any) -> Report:
    body = {"task_id": "t-1", "status": "COMPLETED", "generated": [LINK], **task}
    return build("freepik", api_key=KEY).polled(answer({"data": body}))


def apixo(**data: Any) -> Report:
    body = {"taskId": "t-1", "state": "success", "resultJson": json.dumps({"resultUrls": [LINK]}), **data}
    return build("apixo", api_key=KEY).polled(answer({"code": 200, "message": "success", "data": body}))


def novita(*, images: Any = ({"image_url": LINK},), **task: Any) -> Report:
    body = {"task_id": "t-1", "status": "TASK_STATUS_SUCCEED", "reason": "", **task}
    shown = list(images) if isinstance(images, tuple) else images
    return build("novita", api_key=KEY).polled(answer({"task": body, "images": shown}))


def upscayl(**data: Any) -> Report:
    body = {"status": "PROCESSED", "files": [{"downloadLink": LINK}], **data}
    return build("upscayl", api_key=KEY).polled(answer({"status": "success", "data": body}))


@pytest.mark.parametrize(
    ("poll", "changed"),
    [
        (freepik, {"status": "completed"}),
        (freepik, {"generated": [None, LINK]}),
        (freepik, {"generated": LINK}),
        (freepik, {"generated": {"url": LINK}}),
        (freepik, {"generated": [{"url": LINK, "content_type": "image/png", "width": 200}, 5, {}]}),
        (freepik, {"generated": [LINK + "\n"]}),
        (freepik, {"generated": [BARE]}),
        (freepik, {"task_id": 12345}),
        (apixo, {"state": "SUCCESS"}),
        (apixo, {"resultJson": json.dumps({"resultUrls": LINK})}),
        (apixo, {"resultJson": json.dumps({"resultUrls": [None, {"url": LINK}]})}),
        (apixo, {"resultJson": {"resultUrls": [LINK]}}),
        (apixo, {"resultJson": {"resultUrls": [BARE]}}),
        (apixo, {"taskId": 12345}),
        (novita, {"status": "task_status_succeed"}),
        (novita, {"status": "TASK_STATUS_SUCCEEDED"}),
        (novita, {"images": [LINK]}),
        (novita, {"images": [None, {"image_url": None}, {"image_url": LINK}]}),
        (novita, {"images": {"image_url": LINK}}),
        (novita, {"images": [{"image_url": BARE}]}),
        (novita, {"task_id": 12345}),
        (upscayl, {"status": "Processed"}),
        (upscayl, {"files": {"downloadLink": LINK}}),
        (upscayl, {"files": [LINK]}),
        (upscayl, {"files": [None, {"downloadLink": None, "url": LINK}]}),
        (upscayl, {"files": {"downloadLink": BARE}}),
        (upscayl, {"taskId": 12345}),
    ],
)
def test_a_result_is_found_in_every_shape(poll: Callable[..., Report], changed: dict[str, Any]) -> None:
    report = poll(**changed)
    assert report.state is State.SUCCEEDED
    assert [image.url for image in report.images] == [LINK]


@pytest.mark.parametrize(
    ("poll", "changed"),
    [
        (freepik, {"status": "Failed", "generated": [None]}),
        (apixo, {"state": "Failed", "failCode": 500, "failMsg": None}),
        (apixo, {"state": "failed", "failCode": ["x"], "failMsg": {}}),
        (novita, {"status": "TASK_STATUS_FAILED", "images": [None]}),
        (novita, {"status": "TASK_STATUS_FAILED", "images": None, "reason": {"code": 1}}),
        (upscayl, {"status": "Processing_Failed", "files": None}),
    ],
)
def test_a_failure_is_understood_in_every_shape(poll: Callable[..., Report], changed: dict[str, Any]) -> None:
    report = poll(**changed)
    assert report.state is State.FAILED
    assert report.error is not None and report.error.message and report.error.code != NO_RESULT


@pytest.mark.parametrize(
    ("poll", "changed"),
    [
        (freepik, {"generated": [None]}),
        (freepik, {"generated": "soon"}),
        (novita, {"images": None}),
        (apixo, {"resultJson": "{"}),
    ],
)
def test_done_without_a_usable_link_has_a_code_of_its_own(poll: Callable[..., Report], changed: dict[str, Any]) -> None:
    error = poll(**changed).error
    assert error is not None and error.code == NO_RESULT


def test_a_link_without_a_scheme_has_that_of_the_providers_base_url() -> None:
    body = {"task_id": "t-1", "status": "COMPLETED", "generated": ["//cdn.example/r/a.png"]}
    report = build("freepik", api_key=KEY, base_url="http://127.0.0.1:8080/x").polled(answer({"data": body}))
    assert [image.url for image in report.images] == ["http://cdn.example/r/a.png"]


@pytest.mark.parametrize("value", ["//", "///x.png", "//exa mple/x.png", "/x.png", "\\\\host\\x.png", "//\\host/x.png"])
def test_half_a_link_is_none(value: str) -> None:
    assert link(value) is None


@pytest.mark.parametrize("status", ["ERROR", "CANCELLED", "REFINING"])
def test_an_unlisted_word_is_still_running(status: str) -> None:
    assert freepik(status=status).state is State.RUNNING


INLINE = png(
    20, 11, extra=chunk(b"teXt", bytes([251, 255, 190, 239] * 6 + [7]))
)  # its base64 has + and /, and is padded
STANDARD, URLSAFE = base64.b64encode(INLINE).decode(), base64.urlsafe_b64encode(INLINE).decode()
ESCAPED = "".join(f"%{byte:02x}" for byte in INLINE)


@pytest.mark.parametrize(
    "said",
    [
        f"data:image/png;base64,{STANDARD}",
        f"data:image/png;base64,{URLSAFE}",
        f"data:image/png;base64,{URLSAFE.rstrip('=')}",
        f"data:image/png;charset=utf-8;BASE64,{quote(STANDARD, safe='')}",
        f" DATA:;base64,{STANDARD[:50]}\r\n {STANDARD[50:]}\n",
        f"data:image/png,{ESCAPED}",
        STANDARD,
        URLSAFE.rstrip("="),
        base64.encodebytes(INLINE).decode(),
    ],
)
def test_an_image_that_is_written_out_is_a_result(said: str) -> None:
    reports = [
        freepik(generated=[said]),
        apixo(resultJson={"resultUrls": [said]}),
        novita(images=[{"image_url": said}]),
        upscayl(files=[{"downloadLink": said}]),
    ]
    for report in reports:
        assert [(image.data, image.content_type) for image in report.images] == [(INLINE, "image/png")]


@pytest.mark.parametrize(
    "said",
    [
        f"data:image/png;base64,{base64.b64encode(INLINE[:-8]).decode()}",
        f"data:image/png;base64,{STANDARD.replace('+', '-', 1)}",  # two alphabets
        f"data:image/png;base64,{STANDARD[:40]}*{STANDARD[40:]}",
        f"data:image/png;base64,{STANDARD[:40]}=={STANDARD[40:]}",
        f"data:image/png;base64,{STANDARD.rstrip('=')}===",
        f"data:image/png;base64,{STANDARD.rstrip('=')[:-3]}",
        f"data:image/png,{STANDARD}",
        "data:image/png;base64,",
        "data:",
        "IMAGE",
        "",
    ],
)
def test_what_is_no_whole_image_without_doubt_is_no_result(said: str) -> None:
    assert freepik(generated=[said]).state is State.FAILED


@pytest.mark.parametrize(
    ("value", "year"), [("2026-12-01T00:00:00Z", 2026), ("2026-12-01 00:00:00+02:00", 2026), (0, None), ("soon", None)]
)
def test_a_moment_may_be_written_out(value: Any, year: int | None) -> None:
    found = moment(value)
    assert (found and found.year) == year


@pytest.mark.parametrize(
    ("name", "body", "kind", "said"),
    [
        ("freepik", {"error": {"code": 402, "message": "no credit"}}, AccountRefused, "no credit"),
        ("freepik", {"message": "Error consuming credits"}, AnswerLost, "Error consuming credits"),
        (
            "freepik",
            {"detail": [{"loc": ["image"], "msg": "invalid image"}], "code": 422},
            ProviderRefused,
            "invalid image",
        ),
        (
            "apixo",
            {"code": 402, "message": "Insufficient balance", "data": None},
            AccountRefused,
            "Insufficient balance",
        ),
        ("apixo", {"code": "429", "msg": "too many"}, ProviderBusy, "too many"),
        ("novita", {"code": 400, "reason": "ILLEGAL_IMAGE_CONTENT", "message": "nsfw"}, ProviderRefused, "nsfw"),
        ("novita", {"code": 400, "reason": "BILLING_BALANCE_NOT_ENOUGH", "message": "pay"}, AccountRefused, "pay"),
        ("upscayl", {"error": "INSUFFICIENT_CREDITS", "message": "no credit"}, AccountRefused, "no credit"),
        ("upscayl", {"errors": [{"message": "bad scale"}]}, ProviderRefused, "bad scale"),
        ("pixelcut", {"errors": [{"message": "bad scale"}]}, ProviderRefused, "bad scale"),
        ("pixelcut", {"status": 503, "message": "come again"}, ProviderBusy, "come again"),
    ],
)
def test_a_refusal_with_http_200_is_a_refusal_and_shows_its_text(
    name: str, body: dict[str, Any], kind: type[ProviderError], said: str
) -> None:
    with pytest.raises(ProviderError, match=said) as caught:
        build(name, api_key=KEY).submitted(answer(body))
    assert type(caught.value) is kind


@pytest.mark.parametrize("name", ["freepik", "apixo", "novita", "upscayl", "pixelcut"])
@pytest.mark.parametrize(
    "body",
    [
        {"errors": [{"message": "bad scale"}]},
        {"detail": [{"loc": ["body", "image"], "msg": "bad scale", "type": "v"}]},
        {"error": {"message": "bad scale"}},
        {"detail": "bad scale"},
    ],
)
def test_a_refusal_shows_its_words_wherever_they_stand(name: str, body: dict[str, Any]) -> None:
    with pytest.raises(ProviderRefused, match="bad scale"):
        build(name, api_key=KEY).submitted(answer(body, 422))
