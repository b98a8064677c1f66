"""Each stand-in accepts what its provider's page documents and refuses the rest in the documented words."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from PIL import Image

from submitter.sandbox import API_KEYS, Sandbox, test_picture
from tests.support.listener import Listener, listening
from tests.support.sandbox_requests import (
    APIXO_KEY,
    FREEPIK_KEY,
    NOVITA_KEY,
    PICTURE,
    PICTURE_BASE64,
    PIXELCUT_KEY,
    UPSCAYL_FORM,
    UPSCAYL_KEY,
    Caller,
)


@pytest.fixture
async def host() -> AsyncIterator[Listener]:
    """A host of input pictures."""
    async with listening({"/a.jpg": PICTURE, "/a.txt": b"not an image"}) as listener:
        yield listener


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox(turnaround_seconds=(0, 0), seed=1)


@asynccontextmanager
async def calling(sandbox: Sandbox, host: Listener) -> AsyncIterator[Caller]:
    """Straight into the app: nothing here needs a socket, except the hosted pictures."""
    transport = httpx.ASGITransport(sandbox.app)
    async with sandbox.app.router.lifespan_context(sandbox.app), httpx.AsyncClient(transport=transport) as http:
        yield Caller(http, "http://sandbox", f"{host.origin}/a.jpg")


@pytest.fixture
async def caller(sandbox: Sandbox, host: Listener) -> AsyncIterator[Caller]:
    async with calling(sandbox, host) as caller:
        yield caller


def shape(data: bytes) -> tuple[str | None, int, int]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.format, image.width, image.height


def encoded(width: int, height: int, format: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, format)
    return out.getvalue()


# --- Freepik --------------------------------------------------------------------------------------------------------


async def test_freepik_takes_the_documented_request_and_upscales(caller: Caller, sandbox: Sandbox) -> None:
    answer = await caller.freepik(
        scale_factor="4x", optimized_for="3d_renders", prompt="a lake", creativity=2, hdr=-10, engine="magnific_sparkle"
    )
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert (data["status"], data["generated"]) == ("CREATED", [])
    await sandbox.idle()
    status = (await caller.freepik_status(data["task_id"])).json()["data"]
    assert status["status"] == "COMPLETED"
    assert "?token=exp=" in status["generated"][0]
    result = await caller.http.get(status["generated"][0])
    assert (result.status_code, result.headers["content-type"]) == (200, "image/jpeg")
    assert shape(result.content) == ("JPEG", 384, 288)


async def test_freepik_signs_result_links(caller: Caller, sandbox: Sandbox) -> None:
    answer = await caller.freepik()
    await sandbox.idle()
    link = (await caller.freepik_status(answer.json()["data"]["task_id"])).json()["data"]["generated"][0]
    assert (await caller.http.get(link.partition("?")[0])).status_code == 403
    assert (await caller.http.get(link[:-1] + ("0" if link[-1] != "0" else "1"))).status_code == 403


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "Parameter 'image' must not be empty"),
        ({"image": "data:image/jpeg;base64," + PICTURE_BASE64}, "Parameter 'image' is not valid"),
        ({"image": base64.b64encode(b"not an image").decode()}, "Parameter 'image' is not valid"),
        ({"scale_factor": 2}, "Parameter 'scale_factor' is not valid"),
        ({"scale_factor": "3x"}, "Parameter 'scale_factor' is not valid"),
        ({"optimized_for": "cats"}, "Parameter 'optimized_for' is not valid"),
        ({"engine": "v8"}, "Parameter 'engine' is not valid"),
        ({"hdr": 11}, "Parameter 'hdr' is not valid"),
        ({"creativity": "1"}, "Parameter 'creativity' is not valid"),
        ({"fractality": True}, "Parameter 'fractality' is not valid"),
        ({"prompt": 3}, "Parameter 'prompt' is not valid"),
        ({"webhook_url": "hook.example"}, "Parameter 'webhook_url' is not valid"),
        (
            {"image": base64.b64encode(encoded(2000, 800, "PNG")).decode(), "scale_factor": "4x"},
            "The resulted image can't exceed maximum allowed size of 25.3 million pixels.",
        ),
    ],
)
async def test_freepik_refuses(caller: Caller, sandbox: Sandbox, changes: dict[str, Any], message: str) -> None:
    answer = await caller.freepik(**changes)
    assert (answer.status_code, answer.json()) == (400, {"message": message})
    assert sandbox.tasks == []


async def test_freepik_reports_several_wrong_fields_as_a_problem(caller: Caller) -> None:
    answer = await caller.freepik(hdr=11, engine="v8")
    assert answer.headers["content-type"] == "application/problem+json"
    assert {param["name"] for param in answer.json()["invalid_params"]} == {"hdr", "engine"}


# --- APIXO ----------------------------------------------------------------------------------------------------------


async def test_apixo_fetches_the_picture_itself_and_upscales(caller: Caller, sandbox: Sandbox) -> None:
    answer = await caller.apixo(resolution="2K", output_format="webp")
    assert (answer.status_code, answer.json()["code"], answer.json()["message"]) == (200, 200, "success")
    task_id = answer.json()["data"]["taskId"]
    await sandbox.idle()
    data = (await caller.apixo_status(task_id)).json()["data"]
    assert (data["taskId"], data["state"]) == (task_id, "success")
    assert data["completeTime"] - data["createTime"] == data["costTime"]
    result = await caller.http.get(json.loads(data["resultJson"])["resultUrls"][0])
    assert shape(result.content) == ("WEBP", 2048, 1536)


@pytest.mark.parametrize("path", ["/missing.jpg", "/a.txt"])
async def test_apixo_fails_a_task_whose_picture_is_no_good(
    caller: Caller, sandbox: Sandbox, host: Listener, path: str
) -> None:
    answer = await caller.apixo(image_urls=[host.origin + path])
    await sandbox.idle()
    status = await caller.apixo_status(answer.json()["data"]["taskId"])
    assert (status.status_code, status.json()["code"]) == (200, 200)
    assert (status.json()["data"]["state"], status.json()["data"]["failCode"]) == ("failed", "ImageFormatIncorrect")


@pytest.mark.parametrize(
    ("top", "changes", "message"),
    [
        ({"input": None}, {}, "The required parameter {{input}} is missing."),
        ({"request_type": "webhook"}, {}, "The parameter {{request_type}} must be either 'async' or 'callback'."),
        ({"request_type": "callback"}, {}, "The required parameter {{callback_url}} is missing."),
        ({}, {"mode": "text-to-image"}, "Invalid mode type. Supported: image-to-image"),
        ({}, {"image_urls": None}, "The required parameter {{image_urls}} is missing."),
        ({}, {"image_urls": "http://a.example/a.jpg"}, "The parameter {{image_urls}} must be Array type."),
        ({}, {"image_urls": []}, "The parameter {{image_urls}} must contain exactly 1 image."),
        ({}, {"image_urls": ["a", "b"]}, "The parameter {{image_urls}} must contain exactly 1 image."),
        ({}, {"image_urls": [1]}, "The parameter {{image_urls}} Array elements must be String type."),
        ({}, {"image_urls": [""]}, "The parameter {{image_urls}} cannot contain empty string."),
        ({}, {"resolution": "16k"}, "The parameter {{resolution}} must be either '2k', '4k' or '8k'."),
        ({}, {"output_format": "gif"}, "The parameter {{output_format}} must be either 'jpg', 'png' or 'webp'."),
    ],
)
async def test_apixo_refuses(
    caller: Caller, sandbox: Sandbox, top: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    answer = await caller.apixo(top=top, **changes)
    assert answer.status_code == 400
    assert (answer.json()["code"], answer.json()["message"]) == (400, message)
    assert sandbox.tasks == []


# --- Novita ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_type", "format", "scale", "size"),
    [(None, "PNG", 2, (192, 144)), ("jpeg", "JPEG", 1.5, (144, 108)), ("webp", "WEBP", 4, (384, 288))],
)
async def test_novita_upscales_to_the_asked_type(
    caller: Caller, sandbox: Sandbox, image_type: str | None, format: str, scale: float, size: tuple[int, int]
) -> None:
    answer = await caller.novita(extra={"response_image_type": image_type}, scale_factor=scale)
    assert (answer.status_code, list(answer.json())) == (200, ["task_id"])
    await sandbox.idle()
    result = (await caller.novita_status(answer.json()["task_id"])).json()
    assert (result["task"]["status"], result["task"]["task_type"]) == ("TASK_STATUS_SUCCEED", "UPSCALE")
    [image] = result["images"]
    assert (image["image_url_ttl"], image["image_type"]) == ("3600", format.lower())
    assert "X-Amz-Expires=3600" in image["image_url"]
    assert shape((await caller.http.get(image["image_url"])).content) == (format, *size)
    assert (await caller.http.get(image["image_url"].partition("?")[0])).status_code == 403


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_name": "ESRGAN"}, "INVALID_REQUEST_BODY"),
        ({"model_name": None}, "INVALID_REQUEST_BODY"),
        ({"scale_factor": 1}, "INVALID_REQUEST_BODY"),
        ({"scale_factor": 4.1}, "INVALID_REQUEST_BODY"),
        ({"scale_factor": "2"}, "INVALID_REQUEST_BODY"),
        ({"image_base64": None}, "INVALID_REQUEST_BODY"),
        ({"image_base64": "@@"}, "INVALID_IMAGE_FORMAT"),
        ({"image_base64": base64.b64encode(PICTURE[:200]).decode()}, "INVALID_IMAGE_FORMAT"),
        ({"image_base64": base64.b64encode(encoded(2049, 10, "PNG")).decode()}, "IMAGE_EXCEEDS_MAX_RESOLUTION"),
        ({"extra": {"response_image_type": "gif"}}, "INVALID_REQUEST_BODY"),
        ({"extra": {"webhook": {}}}, "INVALID_REQUEST_BODY"),
        ({"extra": {"webhook": {"url": "https://h.example", "test_mode": {"enabled": True}}}}, "INVALID_REQUEST_BODY"),
        ({"extra": {"nsfw_detection_level": 3}}, "INVALID_REQUEST_BODY"),
        ({"extra": {"custom_storage": {"aws_s3": {"region": "x"}}}}, "INVALID_REQUEST_BODY"),
    ],
)
async def test_novita_refuses(caller: Caller, sandbox: Sandbox, changes: dict[str, Any], reason: str) -> None:
    answer = await caller.novita(**changes)
    assert answer.status_code == 400
    assert (answer.json()["code"], answer.json()["reason"], answer.json()["metadata"]) == (400, reason, {})
    assert answer.json()["message"]
    assert sandbox.tasks == []


async def test_novita_refuses_more_than_30_mb(caller: Caller) -> None:
    answer = await caller.novita(image_base64=base64.b64encode(bytes(30 * 1024 * 1024 + 1)).decode())
    assert answer.json()["reason"] == "IMAGE_FILE_EXCEEDS_MAX_SIZE"


# --- Upscayl --------------------------------------------------------------------------------------------------------


async def test_upscayl_deducts_when_it_is_asked_about_a_processed_task(caller: Caller, sandbox: Sandbox) -> None:
    answer = await caller.upscayl(saveImageAs="webp", scale="3")
    assert (answer.status_code, answer.headers["x-task-cost"]) == (200, "10")
    assert answer.json()["data"]["creditsToDeduct"] == 10
    await sandbox.idle()
    assert not sandbox.tasks[0].billed
    data = (await caller.upscayl_status(answer.json()["data"]["taskId"])).json()["data"]
    assert (data["status"], data["progress"], data["deductedCredits"], data["creditsDeducted"]) == (
        "PROCESSED",
        "100",
        10,
        True,
    )
    assert sandbox.tasks[0].billed
    [file] = data["files"]
    assert file["dimensions"] == {"width": 288, "height": 216}
    assert shape((await caller.http.get(file["downloadLink"])).content) == ("WEBP", 288, 216)


@pytest.mark.parametrize("as_list", [True, False])
async def test_upscayl_takes_one_url(caller: Caller, sandbox: Sandbox, as_list: bool) -> None:
    urls = json.dumps([caller.image_url]) if as_list else caller.image_url
    answer = await caller.upscayl(file=None, urls=urls)
    await sandbox.idle()
    data = (await caller.upscayl_status(answer.json()["data"]["taskId"])).json()["data"]
    assert data["status"] == "PROCESSED"


async def test_upscayl_can_use_the_older_words(host: Listener) -> None:
    sandbox = Sandbox(upscayl_older_words=True, turnaround_seconds=(0, 0))
    async with calling(sandbox, host) as caller:
        answer = await caller.upscayl()
        await sandbox.idle()
        data = (await caller.upscayl_status(answer.json()["data"]["taskId"])).json()["data"]
    assert data["status"] == "completed"


@pytest.mark.parametrize(
    ("changes", "body"),
    [
        ({"enhanceFace": None}, "Bad Request: Missing enhanceFace"),
        ({"enhanceFace": "1"}, "Bad Request: Invalid enhanceFace"),
        ({"model": "waifu"}, "Bad Request: Invalid model"),
        ({"scale": "9"}, "Bad Request: Invalid scale"),
        ({"saveImageAs": "jpeg"}, "Bad Request: Invalid saveImageAs"),
        ({"file": None}, "Bad Request: Exactly one of file, files and urls is required"),
        ({"urls": "https://a.example/a.jpg"}, "Bad Request: Exactly one of file, files and urls is required"),
        ({"file": None, "files": "[]"}, "Bad Request: files needs uploads made with Get Upload URL"),
        ({"file": None, "urls": "a.jpg"}, "Bad Request: Invalid urls"),
        ({"file": b"text"}, {"error": "INVALID_FILE_TYPE", "message": "The file is not an image"}),
        (
            {"file": encoded(9, 9, "GIF", "L")},
            {"error": "INVALID_FILE_TYPE", "message": "Supported formats: JPG, PNG, WEBP"},
        ),
    ],
)
async def test_upscayl_refuses(caller: Caller, sandbox: Sandbox, changes: dict[str, Any], body: Any) -> None:
    answer = await caller.upscayl(**changes)
    assert (answer.status_code, answer.json()) == (400, body)
    assert sandbox.tasks == []


# --- Pixelcut -------------------------------------------------------------------------------------------------------


async def test_pixelcut_answers_with_a_link_or_with_the_bytes(caller: Caller, sandbox: Sandbox) -> None:
    linked = await caller.pixelcut()
    assert shape((await caller.http.get(linked.json()["result_url"])).content) == ("JPEG", 192, 144)
    straight = await caller.pixelcut(image=encoded(64, 64, "PNG", "RGBA"), scale="4", accept="image/*")
    assert straight.headers["content-type"] == "image/png"
    assert shape(straight.content) == ("PNG", 256, 256)
    by_url = await caller.http.post(
        f"{caller.base['pixelcut']}/v1/upscale", json={"image_url": caller.image_url, "scale": 2}, headers=PIXELCUT_KEY
    )
    assert by_url.status_code == 200
    assert [task.billed for task in sandbox.accepted("pixelcut")] == [True] * 3


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"scale": "3"}, "invalid_parameter"),
        ({"scale": ""}, "invalid_parameter"),
        ({"image": b"text"}, "malformed_image"),
        ({"image": PICTURE[:300]}, "malformed_image"),
        ({"image": encoded(70, 70, "GIF", "L")}, "unsupported_image_format"),
        ({"image": encoded(63, 200, "PNG")}, "invalid_parameter"),
        ({"image": encoded(3001, 64, "PNG")}, "resolution_too_high"),
        ({"image": bytes(25 * 1024 * 1024 + 1)}, "file_size_too_large"),
    ],
)
async def test_pixelcut_refuses_even_if_bytes_are_wanted(
    caller: Caller, sandbox: Sandbox, changes: dict[str, Any], code: str
) -> None:
    answer = await caller.pixelcut(accept="image/*", **changes)
    assert (answer.status_code, answer.json()["error_code"]) == (400, code)
    assert answer.json()["error"]
    assert sandbox.tasks == []


@pytest.mark.parametrize(
    ("content", "content_type", "code"),
    [
        (b"", "application/json", "invalid_request_body"),
        (b"[]", "application/json", "invalid_request_body"),
        (b'{"image_url": "https://a.example/a.jpg"}', "application/json", "missing_parameter"),
        (b'{"scale": 2}', "application/json", "missing_parameter"),
        (b'{"image_url": "https://a.example/a.jpg", "scale": "2"}', "application/json", "invalid_parameter"),
        (b'{"image_url": "a.jpg", "scale": 2}', "application/json", "invalid_parameter"),
        (b"scale=2", "application/x-www-form-urlencoded", "unsupported_content_type"),
        (b"--x", "multipart/form-data", "invalid_request_body"),
    ],
)
async def test_pixelcut_refuses_bodies(caller: Caller, content: bytes, content_type: str, code: str) -> None:
    headers = PIXELCUT_KEY | {"content-type": content_type}
    answer = await caller.http.post(f"{caller.base['pixelcut']}/v1/upscale", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (400, code)


# --- All ------------------------------------------------------------------------------------------------------------


SUBMIT_PATHS = {
    "freepik": "/v1/ai/image-upscaler",
    "apixo": "/generateTask/image-upscaler",
    "novita": "/v3/async/upscale",
    "upscayl": "/start-task",
    "pixelcut": "/v1/upscale",
}


@pytest.mark.parametrize(
    ("provider", "headers", "status", "body"),
    [
        ("freepik", {}, 401, {"message": "Missing API key"}),
        ("freepik", {"x-freepik-api-key": "no"}, 401, {"message": "Invalid API key"}),
        ("apixo", {}, 401, None),
        ("apixo", {"authorization": f"Basic {API_KEYS['apixo']}"}, 401, None),
        ("novita", {}, 400, {"code": 400, "reason": "MISSING_API_KEY", "message": "missing api key", "metadata": {}}),
        (
            "novita",
            {"authorization": API_KEYS["novita"]},
            403,
            {"code": 403, "reason": "INVALID_API_KEY", "message": "invalid api key", "metadata": {}},
        ),
        ("upscayl", {}, 400, "Bad Request: Missing User"),
        ("upscayl", {"x-api-key": "no"}, 401, {"error": "UNAUTHORIZED", "message": "Invalid API key"}),
        ("pixelcut", {}, 401, {"error": "API Token not found", "error_code": "invalid_auth_token"}),
    ],
)
async def test_a_bad_key_is_refused(
    caller: Caller, sandbox: Sandbox, provider: str, headers: dict[str, str], status: int, body: Any
) -> None:
    answer = await caller.http.post(caller.base[provider] + SUBMIT_PATHS[provider], json={}, headers=headers)
    assert answer.status_code == status
    if body is None:
        assert answer.json()["code"] == status
    else:
        assert answer.json() == body
    assert sandbox.tasks == []
    assert sandbox.calls(provider) == 1


async def test_an_unknown_task_is_not_found_in_each_dialect(caller: Caller) -> None:
    freepik = await caller.freepik_status("46b6c7f0")
    assert (freepik.status_code, freepik.json()) == (404, {"message": "Task not found"})
    apixo = await caller.apixo_status("task_0")
    assert (apixo.status_code, apixo.json()["code"]) == (404, 404)
    novita = await caller.novita_status("71dd988e")
    assert (novita.status_code, novita.json()["reason"]) == (404, "TASK_NOT_FOUND")
    upscayl = await caller.upscayl_status("123e4567")
    assert (upscayl.status_code, upscayl.text) == (404, "No such document")


async def test_apixo_knows_a_task_under_its_own_model_only(caller: Caller) -> None:
    task_id = (await caller.apixo()).json()["data"]["taskId"]
    assert (await caller.apixo_status(task_id)).status_code == 200
    assert (await caller.apixo_status(task_id, model="flux-2")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/freepik/v1/ai/image-upscaler/x", {}, 401),
        ("GET", "/apixo/api/v1/statusTask/image-upscaler?taskId=x", {}, 401),
        ("GET", "/apixo/api/v1/statusTask/image-upscaler", APIXO_KEY, 400),
        ("GET", "/novita/v3/async/task-result?task_id=x", {}, 400),
        ("GET", "/novita/v3/async/task-result", NOVITA_KEY, 400),
        ("POST", "/upscayl/get-task-status", {}, 400),
        ("POST", "/upscayl/get-task-status", UPSCAYL_KEY, 400),
        ("GET", "/freepik/v2/other", FREEPIK_KEY, 404),
        ("GET", "/novita/v2/upscale", NOVITA_KEY, 404),
    ],
)
async def test_status_calls_are_checked_too(
    caller: Caller, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = await caller.http.request(method, caller.origin + path, headers=headers)
    assert answer.status_code == status


async def test_unknown_fields_are_ignored_but_remembered(caller: Caller, sandbox: Sandbox) -> None:
    assert (await caller.freepik(colour="red")).status_code == 200
    assert (await caller.apixo(top={"extra": 1}, colour="red")).status_code == 200
    assert (await caller.novita(extra={"colour": "red"}, tone=1)).status_code == 200
    assert (await caller.upscayl(colour="red")).status_code == 200
    assert [task.unknown_fields for task in sandbox.tasks] == [
        ("colour",),
        ("extra", "input.colour"),
        ("extra.colour", "request.tone"),
        ("colour",),
    ]


async def test_a_task_remembers_its_options(caller: Caller, sandbox: Sandbox) -> None:
    await caller.freepik(hdr=3)
    await caller.upscayl()
    assert [task.options for task in sandbox.tasks] == [{"hdr": 3}, UPSCAYL_FORM]


@pytest.mark.parametrize(
    ("provider", "status"), [("freepik", 403), ("novita", 403), ("upscayl", 403), ("apixo", 410), ("pixelcut", 410)]
)
async def test_a_link_dies_after_its_time(host: Listener, provider: str, status: int) -> None:
    sandbox = Sandbox(turnaround_seconds=(0, 0), link_seconds={provider: 0.0})
    async with calling(sandbox, host) as caller:
        await caller.submit(provider)
        await sandbox.idle()
        [task] = sandbox.tasks
        link = sandbox.stand_ins[provider].link(task, task.files[0])
        assert (await caller.http.get(link)).status_code == status


async def test_the_test_picture_is_a_picture_and_the_same_every_time() -> None:
    assert shape(test_picture(200, 150)) == ("JPEG", 200, 150)
    assert test_picture(200, 150, seed=3) == test_picture(200, 150, seed=3)
    assert test_picture(200, 150, seed=3) != test_picture(200, 150, seed=4)
    assert shape(test_picture(1, 1)) == ("JPEG", 1, 1)
