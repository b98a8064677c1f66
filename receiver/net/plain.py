"""
Answers that need no parser: HTTP/1.1, a final status, well-formed fields, and a body of a declared length.

Most answers to posts are like that, and one regular expression reads them; a parser takes longer than the rest of a
delivery together. Anything else is None here, and is left to h11.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LONGEST_HEAD = 16 * 1024
_HEAD = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
)
_LENGTH = re.compile(rb"[0-9]{1,9}")
_NO_BODY = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """An answer of which *missing* bytes have yet to arrive. *lasting*: its connection may be reused."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    missing: int
    lasting: bool


def plain_answer(data: bytes, most_bytes: int) -> PlainAnswer | None:
    """Parse the plain answer in *data*; None if it is not plain, has more than *most_bytes*, or data after it."""
    head = _HEAD.match(data, 0, _LONGEST_HEAD)
    if head is None:
        return None
    status = int(head[1])
    headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in head[2].splitlines())]
    said = {name.lower(): value for name, value in headers}
    if len(said) != len(headers) or b"transfer-encoding" in said:
        return None
    length = b"0" if status in _NO_BODY else said.get(b"content-length", b"")
    if not _LENGTH.fullmatch(length) or int(length) > most_bytes:
        return None
    body = data[head.end() :]
    missing = int(length) - len(body)
    lasting = b"close" not in said.get(b"connection", b"").lower()
    return PlainAnswer(status, headers, body, missing, lasting) if missing >= 0 else None
