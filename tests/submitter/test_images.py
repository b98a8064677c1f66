"""Pictures are judged by their bytes, and streamed without being held."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import tracemalloc
from email import message_from_bytes
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from submitter.errors import TaskRefused
from submitter.images import CHUNK_BYTES, Body, inspect, json_request, multipart_request, plain_request
from submitter.vocabulary import Picture
from tests.support.pictures import big_picture, small_picture

KINDS = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
}


async def streamed(request: httpx.Request) -> list[bytes]:
    assert isinstance(request.stream, httpx.AsyncByteStream)
    return [chunk async for chunk in request.stream]


def synchronously(request: httpx.Request) -> bytes:
    assert isinstance(request.stream, httpx.SyncByteStream)
    return b"".join(request.stream)


@pytest.mark.parametrize(("kind", "content_type"), KINDS.items())
def test_a_picture_is_known_by_its_bytes_whatever_its_name(tmp_path: Path, kind: str, content_type: str) -> None:
    path = tmp_path / "holiday.txt"
    Image.new("RGB", (301, 77), "red").save(path, kind)
    picture = inspect(path, url="https://a.example/x")
    assert (picture.content_type, picture.width, picture.height) == (content_type, 301, 77)
    assert (picture.size, picture.url) == (path.stat().st_size, "https://a.example/x")
    assert picture.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "saving",
    [{"lossless": True}, {"quality": 40}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}, {"save_all": True}],
)
def test_every_kind_of_webp_shows_its_size(tmp_path: Path, saving: dict[str, object]) -> None:
    path = tmp_path / "x"
    Image.new("RGBA", (1031, 515), (1, 2, 3, 128)).save(path, "WEBP", **saving)
    picture = inspect(path)
    assert (picture.width, picture.height) == (1031, 515)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a", b"<svg/>", b"II*\0\xff\xff"],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(TaskRefused) as caught:
        inspect(path)
    assert (caught.value.field, caught.value.code) == ("image", "not_an_image")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskRefused):
        inspect(tmp_path / "none")


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), data=st.data())
def test_broken_headers_are_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / f"broken-{kind}"
    Image.new("RGB", (40, 30), "red").save(path, kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content), 120) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        picture = inspect(path)
    except TaskRefused as refused:
        assert refused.code in ("not_an_image", "image_cut_off")
    else:
        assert picture.width > 0 and picture.height > 0


@pytest.mark.parametrize("size", [1, 2, 3, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 2])
async def test_json_holds_the_files_raw_base64_at_its_place(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    content = bytes(index * 7 % 251 for index in range(size))
    path.write_bytes(content)
    picture = Picture(path, None, "image/png", 1, 1, size, "")
    body = {"request": {"scale_factor": 2, "image_base64": "not this"}, "extra": {"text": "naïve \ud800"}}
    request = json_request(
        "POST", "https://api.example:8443/v3?x=1", {"Authorization": "Bearer k"}, body, picture=picture
    )
    whole = b"".join(await streamed(request))
    assert synchronously(request) == whole == b"".join(await streamed(request))
    assert request.headers["content-length"] == str(len(whole))
    assert request.headers["host"] == "api.example:8443"
    assert request.headers["content-type"] == "application/json"
    sent = json.loads(whole)
    assert base64.b64decode(sent["request"].pop("image_base64"), validate=True) == content
    assert sent == {"request": {"scale_factor": 2}, "extra": {"text": "naïve \ud800"}}
    assert body["request"]["image_base64"] == "not this"  # type: ignore[index]


async def test_multipart_holds_the_fields_and_the_file(tmp_path: Path) -> None:
    picture = small_picture(tmp_path, kind="JPEG")
    assert picture.path is not None
    request = multipart_request(
        "https://a.example/start", {}, {"scale": "2", 'od"d\r\n': "ü"}, picture=picture, part="file"
    )
    whole = b"".join(await streamed(request))
    assert request.headers["content-length"] == str(len(whole))
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    _, scale, odd, file = message_from_bytes(head + whole).walk()
    assert scale.get_param("name", header="content-disposition") == "scale"
    assert scale.get_payload() == "2"
    assert odd.get_param("name", header="content-disposition") == "od%22d%0D%0A"
    assert odd.get_payload(decode=True) == "ü".encode()
    assert file.get_param("name", header="content-disposition") == "file"
    assert (file.get_filename(), file.get_content_type()) == ("image.jpg", "image/jpeg")
    assert file.get_payload(decode=True) == picture.path.read_bytes()


async def test_a_file_of_thirty_megabytes_costs_a_few(tmp_path: Path) -> None:
    picture = big_picture(tmp_path, 30 << 20)
    tracemalloc.start()
    try:
        total = 0
        request = json_request("POST", "https://a.example/", {}, {}, picture=picture)
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for chunk in request.stream:
            total += len(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == int(request.headers["content-length"]) > 40_000_000
    assert peak < 6 << 20


async def test_reading_a_file_never_happens_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    readers: set[int] = set()
    real_open = Path.open

    def noted(self: Path, *args: object, **kwargs: object) -> object:
        readers.add(threading.get_ident())
        return real_open(self, *args, **kwargs)  # type: ignore[call-overload]

    request = json_request("POST", "https://a.example/", {}, {}, picture=small_picture(tmp_path))
    monkeypatch.setattr(Path, "open", noted)
    await streamed(request)
    assert readers and threading.get_ident() not in readers


async def test_a_file_that_changed_size_is_refused(tmp_path: Path) -> None:
    picture = small_picture(tmp_path)
    assert picture.path is not None
    request = json_request("POST", "https://a.example/", {}, {}, picture=picture)
    picture.path.write_bytes(b"short")
    with pytest.raises(TaskRefused):
        await streamed(request)
    with pytest.raises(TaskRefused):
        await asyncio.to_thread(synchronously, request)


def test_options_that_are_no_json_are_refused() -> None:
    deep: dict[str, object] = {}
    for _ in range(5000):
        deep = {"a": deep}
    for body in ({"a": float("nan")}, {"a": object()}, deep):
        with pytest.raises(TaskRefused):
            json_request("POST", "https://a.example/", {}, body)


def test_a_request_without_a_body_is_whole_too() -> None:
    request = plain_request("GET", "https://a.example/x", {"X-API-Key": "k"})
    assert request.headers["host"] == "a.example"
    assert request.headers["accept"] == "application/json"
    assert "content-length" not in request.headers
    assert request.content == b""


def test_an_empty_body_has_no_length() -> None:
    assert (Body([]).length, list(Body([]))) == (0, [])
