"""The body of a piece of evidence in three forms: formatted, raw, and in hexadecimal."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MOST_TEXT = 20_000
_MOST_BYTES = 1024
_ROW = 16


@dataclass(frozen=True, slots=True)
class Body:
    """A body to show. `pretty` is None unless it is JSON; `cut`: there is more than is shown."""

    size: int
    pretty: str | None
    raw: str | None
    hexadecimal: str
    cut: bool


def body_of(evidence: Mapping[str, Any]) -> Body:
    """Return the body as the API shows it, masked."""
    text = evidence.get("body")
    data = base64.b64decode(evidence.get("body_base64") or "") if text is None else text.encode()
    pretty = None
    if text is not None and len(text) <= 10 * _MOST_TEXT:
        try:
            pretty = json.dumps(json.loads(text), ensure_ascii=False, indent=2)[:_MOST_TEXT]
        except (ValueError, RecursionError):
            pretty = None
    return Body(
        size=len(data),
        pretty=pretty,
        raw=None if text is None else text[:_MOST_TEXT],
        hexadecimal=hexadecimal(data[:_MOST_BYTES]),
        cut=len(data) > _MOST_BYTES,
    )


def hexadecimal(data: bytes) -> str:
    """Return rows of an offset, sixteen bytes, and their ASCII characters."""
    rows = []
    for start in range(0, len(data), _ROW):
        row = data[start : start + _ROW]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        rows.append(f"{start:06x}  {row.hex(' '):<47}  {shown}")
    return "\n".join(rows)
