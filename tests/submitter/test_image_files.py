"""Headers are read without decoding, half a picture is refused, and a hostile file costs what an honest one costs."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from submitter.errors import TaskRefused
from submitter.image_files import MAX_STEPS, CutOff, FileBytes, Measured, MemoryBytes, NotAnImage, measure
from submitter.images import inspect
from tests.support.bombs import ZLIB, mebibytes
from tests.support.pictures import chunk, png

SAVED = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"exif": b"Exif\0\0" + b"\xff\xd9" * 200}),
    ("PNG", {}),
    ("PNG", {"save_all": True}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"save_all": True}),
    ("GIF", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
    ("TIFF", {"big_tiff": True}),
    ("BMP", {}),
    ("AVIF", {}),
]
GIF = b"GIF89a\5\0\5\0\0\0\0\x2c\0\0\0\0\5\0\5\0\0\x02"
TRAILING = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
Walk = Callable[[bytes], Measured]


def encoded(kind: str, **saving: object) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((300, 200), 90).convert("RGB").save(out, kind, **saving)
    return out.getvalue()


def in_memory(data: bytes) -> Measured:
    return measure(MemoryBytes(data))


@pytest.fixture(params=["memory", "file"])
def walk(request: pytest.FixtureRequest, tmp_path: Path) -> Walk:
    def from_file(data: bytes) -> Measured:
        path = tmp_path / "x"
        path.write_bytes(data)
        with path.open("rb") as file:
            return measure(FileBytes(file.fileno()))

    return in_memory if request.param == "memory" else from_file


@pytest.mark.parametrize(("kind", "saving"), SAVED)
def test_a_whole_picture_is_measured_and_any_part_of_it_is_refused(
    walk: Walk, kind: str, saving: dict[str, object]
) -> None:
    data = encoded(kind, **saving)
    assert (walk(data).width, walk(data).height) == (300, 200)
    tail = range(len(data) - 20, len(data) - 1) if kind != "TIFF" else ()  # a TIFF may end with what no pixel needs
    for length in {*range(100), *range(100, len(data) - 100, 997), *tail}:
        with pytest.raises(NotAnImage):
            walk(data[:length])


def test_a_tiff_whose_jpeg_tables_are_cut_is_refused(walk: Walk) -> None:
    data = encoded("TIFF", compression="jpeg")  # libtiff writes the tables last
    for missing in (1, 100, 288):
        with pytest.raises(NotAnImage):
            walk(data[:-missing])


@pytest.mark.parametrize("kind", TRAILING)
@pytest.mark.parametrize("tail", [b"\0", b"\r\n", b"SEFH trailer of a phone" * 50_000])
def test_what_follows_the_end_of_a_picture_is_tolerated(walk: Walk, kind: str, tail: bytes) -> None:
    assert walk(encoded(kind) + tail).width == 300


def test_a_webp_without_its_last_padding_byte_is_whole() -> None:
    body = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", 299 | 199 << 14)
    data = b"RIFF" + struct.pack("<I", 4 + len(body) + 1) + b"WEBP" + body
    assert in_memory(data) == Measured("image/webp", 300, 200)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"zTXt", lambda: b"workflow\0\0" + mebibytes(200, form=ZLIB)),
        (b"iTXt", lambda: b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x/> " * 400_000)),
        (b"iCCP", lambda: b"big\0\0" + zlib.compress(os.urandom(1000) * 2000)),
        (b"tEXt", lambda: b"workflow\0" + b"x" * 70_000_000),
    ],
    ids=["zTXt", "iTXt", "iCCP", "tEXt"],
)
def test_large_metadata_is_stepped_over(tmp_path: Path, kind: bytes, data: Callable[[], bytes]) -> None:
    path = tmp_path / "x"
    path.write_bytes(png(300, 200, extra=chunk(kind, data())))
    tracemalloc.start()
    try:
        picture = inspect(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (picture.width, picture.height) == (300, 200)
    assert peak < 2 << 20


@pytest.mark.parametrize(("width", "height"), [(13_600, 13_600), (25_000, 20_000), (60_000, 60_000)])
def test_pixels_are_not_limited(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(png(width, height))
    picture = inspect(path)
    assert (picture.width, picture.height) == (width, height)


@pytest.mark.parametrize(
    "data",
    [
        lambda: png(5, 5, extra=chunk(b"teXt", b"") * (MAX_STEPS + 1)),
        lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * (MAX_STEPS + 1),
        lambda: b"\xff\xd8" + b"\xff" * (MAX_STEPS + 10),
        lambda: b"RIFF" + struct.pack("<I", 4 + 8 * (MAX_STEPS + 1)) + b"WEBP" + b"ABCD\0\0\0\0" * (MAX_STEPS + 1),
        lambda: b"\0\0\0\x14ftypavif\0\0\0\0avif" + b"\0\0\0\x08free" * (MAX_STEPS + 1),
        lambda: GIF + b"\1x" * 2_700_000 + b"\0;",
        lambda: GIF + bytes(200_000) + b";",
    ],
    ids=["PNG", "JPEG segments", "JPEG fill", "WEBP", "AVIF", "GIF blocks", "GIF terminators"],
)
def test_a_file_of_countless_parts_is_refused(data: Callable[[], bytes]) -> None:
    with pytest.raises(NotAnImage, match="too many parts"):
        in_memory(data())


def test_as_many_chunks_as_honest_encoders_write_are_fine() -> None:
    assert in_memory(png(5, 5, extra=chunk(b"IDAT", b"") * 100_000)).width == 5
    assert in_memory(GIF + (b"\xff" + bytes(255)) * 100_000 + b"\0;").width == 5


def test_a_tiff_whose_pages_lead_in_a_circle_ends() -> None:
    data = bytearray(encoded("TIFF"))
    (first,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    assert in_memory(bytes(data)).width == 300


def test_a_cut_input_is_refused_in_words_that_say_so(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(encoded("JPEG")[:20_000])
    with pytest.raises(TaskRefused, match="send the whole file") as caught:
        inspect(path)
    assert (caught.value.field, caught.value.code) == ("image", "image_cut_off")


def test_an_end_mark_in_a_thumbnail_is_not_the_end() -> None:
    data = encoded("JPEG", exif=b"Exif\0\0" + b"\xff\xd9" * 200)
    with pytest.raises(CutOff):
        in_memory(data[: len(data) // 2])
