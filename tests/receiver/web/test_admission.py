"""Posted pictures in every wrapping: whole, odd, cut and hostile."""

import base64
import gzip
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.store.blobs import Blobs
from receiver.web.job_request import job_request_from_json
from receiver.web.job_upload import Uploads
from receiver.web.problems import Problem, answer_problem

SMALL, LARGE = b"\xff\xd8\xffpicture", os.urandom(1_500_001)
Part = tuple[str, tuple[str | None, bytes]]


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    made = Blobs(tmp_path)
    made.prepare()
    return made


def parts(blobs: Blobs) -> list[Path]:
    return list((blobs.root / "parts").iterdir())


def wrapped(text: str, **more: object) -> bytes:
    return json.dumps({"provider": "novita", "image": {"base64": text}, **more}).encode()


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_a_picture_is_decoded_from_every_way_to_write_base64(data: bytes, blobs: Blobs) -> None:
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    bodies = [
        wrapped(text),
        wrapped(f"data:image/png;base64,{text}"),
        wrapped(lines),
        wrapped(f"DATA:image/png;charset=utf-8;BASE64,{text.rstrip('=')}"),
        wrapped(text.translate(str.maketrans("+/", "-_")).rstrip("=")),
        wrapped(f"  {text} "),
        wrapped(text).replace(b"/", b"\\/"),
        wrapped(text, metadata={"base64": "a", "note": "x" * 300_000}),
    ]
    asks = [job_request_from_json(body, blobs) for body in bodies]
    assert [ask.part and ask.part.read_bytes() for ask in asks] == [data] * len(asks)
    assert len({ask.digest() for ask in asks[:7]}) == 1


def test_a_long_text_that_only_looks_like_the_picture_is_left_to_the_parser(blobs: Blobs) -> None:
    long = "QUJD" * 200_000
    ask = job_request_from_json(json.dumps({"metadata": {"base64": long}, "image": {"base64": "QUJD"}}).encode(), blobs)
    assert ask.part is not None
    assert ask.part.read_bytes() == b"ABC"
    assert ask.document["metadata"] == {"base64": long}
    twice = b'{"image": {"base64": "' + long.encode() + b'"}, "image": {"base64": "QUJD"}}'
    before = parts(blobs)
    with pytest.raises(Problem, match="the name 'image' more than once"):
        job_request_from_json(twice, blobs)
    assert parts(blobs) == before


@pytest.mark.parametrize(
    "text",
    [
        "####" * 200_000,
        "QUJD" * 200_000 + "=",
        "QQ==" + "QUJD" * 200_000,
        "QUJDQ",
        "QUJDQ=",
        "QUJD+_8A",
        "QUJ/" + "QUJD" * 200_000 + "QUJ-",
        "QQ==QUJD",
        "Zürich==",
    ],
)
def test_what_is_not_base64_is_refused_and_leaves_no_file(text: str, blobs: Blobs) -> None:
    with pytest.raises(Problem) as refused:
        job_request_from_json(wrapped(text), blobs)
    assert (refused.value.status, refused.value.field) == (422, "image.base64")
    assert parts(blobs) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"metadata": "\\ud800"}',
        b"[" * 200_000,
        b'{"a":' * 9000,
        b'{"metadata": ' + b"[" * 200 + b"]" * 200 + b"}",
    ],
)
def test_json_that_is_none_is_refused_in_words(body: bytes, blobs: Blobs) -> None:
    with pytest.raises(Problem) as refused:
        job_request_from_json(body, blobs)
    assert refused.value.code == "invalid_json"


def test_json_that_is_compressed_is_refused_with_what_to_change(blobs: Blobs) -> None:
    with pytest.raises(Problem, match="compressed") as refused:
        job_request_from_json(gzip.compress(b"{}"), blobs)
    assert refused.value.remedy == "send it as it is"


@pytest.fixture
async def posting(blobs: Blobs) -> AsyncIterator[httpx.AsyncClient]:
    """Posts to an application that reads multipart and says what it found."""
    uploads = Uploads(blobs)

    async def post(request: Request) -> Response:
        ask = await uploads.from_multipart(request)
        assert ask.part is not None
        return JSONResponse({"document": ask.document, "bytes": ask.part.stat().st_size, "sha256": ask.part_sha256})

    app = Starlette(routes=[Route("/", post, methods=["POST"])], exception_handlers={Problem: answer_problem})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://receiver") as client:
        yield client


async def test_both_parts_are_read_in_either_order(posting: httpx.AsyncClient) -> None:
    document = b'{"provider": "novita"}'
    job: Part = ("job", (None, document))
    image: Part = ("image", ("x.jpg", LARGE))
    for files in ([job, image], [image, job], [("job", ("job.json", document)), image]):
        answer = await posting.post("/", files=files)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["document"], answer.json()["bytes"]) == ({"provider": "novita"}, len(LARGE))


@pytest.mark.parametrize(
    ("files", "status", "code"),
    [
        ([("job", (None, "{}"))], 422, "missing_part"),
        ([("image", ("x", b"x"))], 422, "missing_part"),
        ([("job", (None, "{")), ("image", ("x", b"x"))], 400, "invalid_json"),
        ([("job", (None, '{"image": {}}')), ("image", ("x", b"x"))], 422, "invalid_image"),
        ([("job", (None, "{}")), ("image", ("x", b"x")), ("image", ("y", b"y"))], 400, "invalid_multipart"),
        ([("job", (None, "{}")), ("image", ("x", b"x")), ("notify_url", (None, "y"))], 422, "unknown_field"),
        ([("job", (None, '{"a": "' + "x" * 2_000_000 + '"}')), ("image", ("x", b"x"))], 413, "too_large"),
    ],
)
async def test_a_form_that_is_not_a_job_and_an_image_is_refused_and_leaves_no_file(
    posting: httpx.AsyncClient,
    blobs: Blobs,
    files: list[tuple[str, tuple[str | None, str | bytes]]],
    status: int,
    code: str,
) -> None:
    answer = await posting.post("/", files=files)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert parts(blobs) == []


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 500, b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"garbage"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\ncut off'),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A" * 100_000 + b": b\r\n\r\n--x--\r\n"),
    ],
)
async def test_multipart_that_is_none_is_refused_in_words(
    posting: httpx.AsyncClient, blobs: Blobs, content_type: str, body: bytes
) -> None:
    answer = await posting.post("/", content=body, headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_multipart")
    assert parts(blobs) == []


async def test_a_picture_beyond_the_limit_is_refused_when_all_of_it_was_read(
    posting: httpx.AsyncClient, blobs: Blobs
) -> None:
    files: list[Part] = [("job", (None, b"{}")), ("image", ("x", b"x" * (100 * 1024 * 1024 + 1)))]
    answer = await posting.post("/", files=files)
    assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")
    assert parts(blobs) == []
