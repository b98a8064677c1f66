"""
Redaction of evidence on every way out (API, pages, logs); the store keeps it as it came.

A callback's URL holds a secret token; Novita, for example, echoes it in the body. Anything that looks like a capability
URL of this service, every header that carries a credential, and every API key that a provider echoes is masked in what
the API, pages and logs show.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterable
from typing import Any

from receiver.domain.evidence import Evidence, shown_fields

_CAPABILITY = re.compile(r"(/(?:callbacks/[a-z0-9_-]+|inputs)/)[A-Za-z0-9_.\-]+")
_CAPABILITY_ESCAPED = re.compile(r"(\\/(?:callbacks\\/[a-z0-9_-]+|inputs)\\/)[A-Za-z0-9_.\-]+")
_DOT = r"(?:\.|%2[eE]|\\u002[eE])"
_TOKEN = re.compile(rf"(job_[0-9a-z]{{26}}){_DOT}[a-z0-9_-]+{_DOT}[A-Za-z0-9_-]{{2,12}}{_DOT}[A-Za-z0-9_-]{{43}}")
"""A token by itself, or in an address whose slashes are written in some other way."""
_SECRET_HEADERS = re.compile(r"authorization|cookie|api-?key|secret|token", re.IGNORECASE)
MASK = "[redacted]"


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """*text* without the tokens of capability URLs and without *secrets*."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _CAPABILITY_ESCAPED.sub(rf"\1{MASK}", _CAPABILITY.sub(rf"\1{MASK}", text))
    return _TOKEN.sub(rf"\1.{MASK}", text)


def evidence_to_json(evidence: Evidence, secrets: Collection[str] = ()) -> dict[str, Any]:
    """The public shape of a piece of evidence; *secrets* are our keys."""
    shown = shown_fields(evidence)
    shown["note"] = None if evidence.note is None else redact(evidence.note, secrets)
    shown["headers"] = [
        [_readable(name), MASK if _SECRET_HEADERS.search(name) else redact(_readable(value), secrets)]
        for name, value in evidence.headers
    ]
    try:
        shown["body"] = redact(evidence.body.decode("utf-8"), secrets)
    except UnicodeDecodeError:
        shown["body"] = None
        masked = redact(evidence.body.decode("latin-1"), secrets).encode("latin-1")
        shown["body_base64"] = base64.b64encode(masked).decode("ascii")
    return shown


def _readable(text: str) -> str:
    """A header's bytes, kept one character each, as the UTF-8 that they are if anything but ASCII."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text
