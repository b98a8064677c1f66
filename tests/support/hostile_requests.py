"""Requests as strangers write them, byte by byte over sockets of their own, and what they put into them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

QUERY_VALUES = (
    *("", "-1", "0", "1e9", "1e400", "nan", "inf", "٣", "\0", "a\0b", "0x10", "1_0", "9" * 19, "9" * 5000, "x" * 5000),
    *("%", "_", "\\", "a%b_c\\d", "' OR 1=1 --", "\U0010ffff", "😀", "..", "\r\n", "\x7f", "<script>"),
    *("garbage", "0000-01-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "10000-01-01", "2026-02-30"),
    *("2026-01-01T24:00:00Z", "2026-01-01T00:00:00+99:99", "1d", "1700000000", "1969-12-31"),
)
RAW_VALUES = (b"%FF", b"%00", b"%ED%A0%80", b"%C0%80", b"%", b"%zz", b"%u0041", b"+", b"%2F", b"%0d%0a")
IDS = (
    *("%00", "a%00b", "%2F", "%2e%2e", "%FF", "%ED%A0%80", "%20", "x" * 5000, "%F0%9F%98%80", "job_", "0", "-1"),
    *("'", "%25", "_", "%0a", "1e400", "%D9%A3", "9" * 5000, "*", "job_" + "u" * 26, "job_" + "0" * 26),
)
DOCUMENTS = (
    *(b"null", b"true", b"[]", b"[{}]", b'"x"', b"1", b"1e400", b"{", b'{"a":1,}', b"{'a':1}", b"\x00", b"<xml/>"),
    *(b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1e400}', b'{"a":' + b"9" * 60_000 + b"}", b'{"a":1e-99999999999}'),
    *(b'{"a":"\\ud800"}', b'{"\\ud800":1}', b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\n"}', b'{"a":1}{"b":2}'),
    *(b"[" * 30_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b'{"a":' * 150 + b"1" + b"}" * 150),
    *(b'{"a":1,"a":2}', b'{"a":{"b":1,"c":1,"b":2}}', b"\x1f\x8b\x08\x00", b"a=1&b=2", b'{"":1}', b'{"\\u0000":1}'),
)
"""None of them is a request that can be carried out, whatever it is sent to."""
WRONG: tuple[Any, ...] = (
    *(None, True, -1, 10**30, 2**63, 1e308, "", " ", "\0", "a\0b", "😀", "\u202e", "x" * 50_000, "9" * 400, "NaN"),
    *([], [[]], [None], {}, {"": ""}, {"a": None}, "http://[::1", "http://127.0.0.1:99999/", "http://a b/", "//"),
    *("http://xn--/", "http://xn--a-/x", "http://127.0.0.1:9/\0", f"http://{'a' * 300}/", "http://١٢٧.0.0.1/"),
    *("http://127.0.0.1:٨٠/", "file:///etc/passwd", "whsec_", "1/0", "nan/inf", "٣/٥"),
)
CHARSETS = ("utf-16", "utf-7", "unicode_escape", "undefined", "idna", "rot13", "nonsense", "")
HALVES = (b"+2AA-", b"\\ud800", b"\xff\xfe\x00\xd8")
"""Half of a surrogate pair, written in some charset or other."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The problem that the answer describes."""
        found: dict[str, Any] = json.loads(self.body)
        assert found["detail"] and found["remedy"] and found["code"], found
        return found


def raw(method: str, target: str | bytes, body: bytes = b"", *headers: tuple[str, str | bytes]) -> bytes:
    """A request as it goes over the wire; headers are written as they are given."""
    lines = [b"%s %s HTTP/1.1" % (method.encode(), target.encode() if isinstance(target, str) else target)]
    lines.append(b"host: 127.0.0.1")
    lines += [
        name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()) for name, value in headers
    ]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def exchange(port: int, request: bytes) -> Answer:
    """Send *request* on a connection of its own, and return the answer to it. A stream is cut off after its head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        body = b""
        if "content-length" in headers and not request.startswith(b"HEAD"):
            body = await reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, body)
    finally:
        writer.close()


def parameter(name: str, value: str | bytes) -> bytes:
    """`name=value` for a query or a form; bytes are encoded already."""
    return f"{name}=".encode() + (value if isinstance(value, bytes) else quote(value, safe="").encode())


def multipart(*parts: tuple[str, bytes], boundary: str = "BOUND") -> bytes:
    """A multipart body of parts, each with what stands behind `form-data;` and its content."""
    pieces = [
        f"--{boundary}\r\ncontent-disposition: form-data; {described}\r\n\r\n".encode() + content + b"\r\n"
        for described, content in parts
    ]
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


def spoilt(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """*document* with one of its values replaced by a wrong one, for each value and each wrong one."""
    for name in document:
        for wrong in WRONG:
            yield {**document, name: wrong}
