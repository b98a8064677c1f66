"""
A posted job: a large body goes straight into a file of our own, each piece on the disk before the next.

A few hundred megabytes that wait in the operating system for the disk hold up every other write, including those of
callbacks' evidence. So only one piece at a time is being written, however many pictures are posted. A picture inside
JSON has to be in memory to be cut out; so only one large JSON body is in memory at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from receiver.store.blobs import Blobs
from receiver.web.body import parse_document
from receiver.web.job_request import MAX_INPUT_BYTES, JobRequest, file_name_of, job_request_from_json
from receiver.web.problems import Problem

_MAX_JOB_BYTES = 1024 * 1024
_MAX_JSON_BYTES = 96 * 1024 * 1024
_PIECE_BYTES = 256 * 1024
_AT_ONCE = 1
_sync = os.fsync if sys.platform in ("win32", "darwin") else os.fdatasync


class Uploads:
    """Reads posted jobs, large ones into part files of *blobs*."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._parsing = asyncio.Semaphore(_AT_ONCE)
        self._writing = asyncio.Semaphore(_AT_ONCE)

    async def from_json(self, request: Request) -> JobRequest:
        """Read a job from the JSON of *request*; raises `Problem`."""
        start, path = await self._spooled(request)
        if path is None:
            return await asyncio.to_thread(job_request_from_json, start, self._blobs)
        try:
            async with self._parsing:
                return await asyncio.to_thread(lambda: job_request_from_json(path.read_bytes(), self._blobs))
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _spooled(self, request: Request) -> tuple[bytes, Path | None]:
        """Return a small body itself, or the path of a file that holds a large one."""
        waiting = bytearray()
        part: Path | None = None
        seen = 0
        try:
            async for chunk in request.stream():
                seen += len(chunk)
                if seen > 4 * _MAX_JSON_BYTES:
                    break
                if seen > _MAX_JSON_BYTES:
                    continue  # read to the end, so that the sender can read the answer
                waiting += chunk
                if len(waiting) >= _PIECE_BYTES:
                    part = part or self._blobs.new_part()
                    await self._append(part, waiting)
            if seen > _MAX_JSON_BYTES:
                detail = f"the body may have at most {_MAX_JSON_BYTES} bytes"
                raise Problem(413, "too_large", detail, remedy="send multipart/form-data, which may be larger")
            if part is None:
                return bytes(waiting), None
            await self._append(part, waiting)
        except BaseException as exc:
            if part is not None:
                await asyncio.to_thread(part.unlink, missing_ok=True)
            if isinstance(exc, ClientDisconnect):
                raise Problem(400, "disconnected", "the body was cut", remedy="send the request again, whole") from exc
            raise
        return b"", part

    async def _append(self, part: Path, waiting: bytearray) -> None:
        """Append *waiting* to *part*, and empty it."""
        data = bytes(waiting)
        waiting.clear()

        def write() -> None:
            with part.open("ab") as file:
                file.write(data)
                file.flush()
                _sync(file.fileno())

        async with self._writing:
            await asyncio.to_thread(write)

    async def from_multipart(self, request: Request) -> JobRequest:
        """Read a job from the parts `job` and `image` of *request*; raises `Problem`."""
        _, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary")
        if not boundary:
            raise _unreadable("its content type names no boundary")
        part = self._blobs.new_part()
        try:
            with await asyncio.to_thread(part.open, "wb") as file:
                form = _Form(boundary)
                digest = await self._read(request, form, file)
            if form.job is None or form.image_bytes is None:
                raise Problem(
                    422,
                    "missing_part",
                    "multipart needs two parts: `job` (JSON) and `image` (the file)",
                    field="job" if form.job is None else "image",
                    remedy="send both parts",
                )
            document = await asyncio.to_thread(parse_document, bytes(form.job))
            if "image" in document:
                raise Problem(
                    422,
                    "invalid_image",
                    "`job` must not name an image when a file is sent",
                    field="image",
                    remedy="leave image out of `job`, or send JSON without a file",
                )
        except BaseException:
            await asyncio.to_thread(part.unlink, missing_ok=True)
            raise
        return JobRequest(document, None, part, digest, form.file_name)

    async def _read(self, request: Request, form: _Form, file: BinaryIO) -> str:
        """Read to the end, even a refused body, so that the sender can read the answer."""
        digest = hashlib.sha256()
        refused: Problem | None = None
        seen = 0

        def write(data: bytes) -> None:
            digest.update(data)
            file.write(data)
            file.flush()
            _sync(file.fileno())

        try:
            async for chunk in request.stream():
                seen += len(chunk)
                if seen > 4 * MAX_INPUT_BYTES:
                    break
                if refused is not None:
                    continue
                refused = form.feed(chunk)
                if len(form.pending) >= _PIECE_BYTES and refused is None:
                    async with self._writing:
                        await asyncio.to_thread(write, form.taken())
        except ClientDisconnect as exc:
            raise Problem(400, "disconnected", "the body was cut", remedy="send the request again, whole") from exc
        if refused is None and not form.ended:
            refused = _unreadable("it ends before its last boundary")
        if refused is not None:
            raise refused
        async with self._writing:
            await asyncio.to_thread(write, form.taken())
        return digest.hexdigest()


class _Form:
    """The parts as they arrive. `pending` holds the bytes of the image that were not taken yet."""

    def __init__(self, boundary: bytes) -> None:
        self.job: bytearray | None = None
        self.image_bytes: int | None = None
        self.file_name: str | None = None
        self.pending = bytearray()
        self.ended = False
        self._header = bytearray()
        self._value = bytearray()
        self._name: bytes | None = None
        self._file_name: bytes | None = None
        self._refused: Problem | None = None
        self._opening = b"--" + boundary
        self._preamble: bytes | None = b"\n"
        """The end of the text before the first boundary; None after it. Begins as if a line ended before the body."""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_end": self._end,
                },
            )
        except FormParserError as exc:
            raise _unreadable("its boundary is none") from exc

    def feed(self, chunk: bytes) -> Problem | None:
        """Process *chunk*; return why the post can't be accepted, once that is known."""
        if self._preamble is not None:
            chunk = self._behind_preamble(chunk)
        try:
            self._parser.write(chunk)
        except FormParserError:
            return _unreadable("its parts are not as the boundary says")
        return self._refused

    def _behind_preamble(self, chunk: bytes) -> bytes:
        """Return the part of *chunk* from the first boundary on: text before it is ignored (RFC 2046, 5.1.1)."""
        seen = (self._preamble or b"") + chunk
        at = seen.find(b"\n" + self._opening)
        if at >= 0:
            self._preamble = None
            return seen[at + 1 :]
        self._preamble = seen[-len(self._opening) :]
        return b""

    def taken(self) -> bytes:
        data = bytes(self.pending)
        self.pending.clear()
        return data

    def _part_begins(self) -> None:
        self._name = self._file_name = None

    def _header_ends(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._name, self._file_name = options.get(b"name"), options.get(b"filename")
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        if self._name == b"job" and self.job is None:
            self.job = bytearray()
        elif self._name == b"image" and self.image_bytes is None:
            self.image_bytes = 0
            self.file_name = file_name_of((self._file_name or b"").decode("utf-8", "replace"))
        elif self._name in (b"job", b"image"):
            self._refused = _unreadable(f"it has two parts `{self._name.decode()}`")
        else:
            self._refused = Problem(
                422,
                "unknown_field",
                "it has a part that is neither `job` nor `image`",
                field=(self._name or b"").decode("utf-8", "replace")[:60],
                remedy="put everything but the picture into the JSON of `job`",
            )

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == b"job" and self.job is not None:
            if len(self.job) + end - start > _MAX_JOB_BYTES:
                self._refused = Problem(
                    413,
                    "too_large",
                    f"`job` may have at most {_MAX_JOB_BYTES} bytes",
                    field="job",
                    remedy="send the picture as the part `image`",
                )
                return
            self.job += data[start:end]
        elif self._name == b"image" and self.image_bytes is not None:
            self.image_bytes += end - start
            if self.image_bytes > MAX_INPUT_BYTES:
                self._refused = Problem(
                    413,
                    "image_too_large",
                    f"an image may have at most {MAX_INPUT_BYTES} bytes",
                    field="image",
                    remedy="make the image smaller",
                )
                return
            self.pending += data[start:end]

    def _end(self) -> None:
        self.ended = True


def _unreadable(why: str) -> Problem:
    return Problem(
        400,
        "invalid_multipart",
        f"the multipart body can't be read: {why}",
        remedy="send multipart/form-data with the parts `job` and `image`",
    )
