"""
Evidence: every callback, poll answer and submit answer, as it came.

Bytes and headers are never altered; what a piece means is added later, as `verdict` and `read_at`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import overload

import orjson

from receiver.domain.entity import entity, json_of, shown, stored
from receiver.domain.jobs import Source, Verdict
from submitter.vocabulary import Trust


@entity
class Evidence:
    """A piece of evidence, unaltered. `id` is 0 until it is written."""

    source: Source = shown()
    provider: str = stored(length=32)
    job_id: str | None = stored(identifier=True)
    received_at: datetime = shown()
    headers_json: str = stored(column="headers")
    """In stored form, since they are rarely needed; see `headers_to_json`."""
    body: bytes = stored(repr=False)
    verdict: Verdict = shown(default=Verdict.RECEIVED)
    trust: Trust | None = shown("How far it is believed.", default=None, length=32)
    read_at: datetime | None = shown("When it was settled.", default=None)
    asked_at: datetime | None = stored(default=None)
    status: int | None = shown("The HTTP status of an answer.", default=None)
    body_name: str | None = stored(default=None)
    peer: str | None = shown("The address that a callback came from.", default=None)
    delivery_id: str | None = stored(default=None)
    note: str | None = shown(default=None)
    id: int = shown(default=0)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Names and values, in order, every duplicate included."""
        return tuple((name, value) for name, value in json.loads(self.headers_json))

    def raw_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The bytes that came, unpacked when they are first read, which most providers' readers never do."""
        return _RawHeaders(self.headers_json)


class _RawHeaders(Sequence[tuple[bytes, bytes]]):
    def __init__(self, headers_json: str) -> None:
        self._json = headers_json
        self._pairs: tuple[tuple[bytes, bytes], ...] | None = None

    def _unpacked(self) -> tuple[tuple[bytes, bytes], ...]:
        if self._pairs is None:
            self._pairs = tuple((_octets(name), _octets(value)) for name, value in json.loads(self._json))
        return self._pairs

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._unpacked())

    def __len__(self) -> int:
        return len(self._unpacked())

    @overload
    def __getitem__(self, index: int) -> tuple[bytes, bytes]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[bytes, bytes]]: ...

    def __getitem__(self, index: int | slice) -> tuple[bytes, bytes] | Sequence[tuple[bytes, bytes]]:
        return self._unpacked()[index]


def headers_to_json(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """A list of [name, value] pairs, each byte as the character of its number (latin-1)."""
    return orjson.dumps([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]).decode()


def _octets(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:  # an answer that was kept before headers were kept byte for byte
        return text.encode()


def delivery_digest(job_id: str, delivery_id: str, body: bytes) -> str:
    """
    Return the value that two deliveries share if one is a replay of the other.

    It begins with the job's id, so that new entries of an index are adjacent and not scattered all over it.
    """
    digest = hashlib.sha256(b"%s\n%s" % (delivery_id.encode(), body)).digest()
    return f"{job_id}.{base64.urlsafe_b64encode(digest[:18]).decode()}"


@dataclass(frozen=True, slots=True)
class EvidenceFilter:
    """A filter for evidence to read again; None and empty match all."""

    since: datetime | None = None
    provider: str | None = None
    job_id: str | None = None
    verdicts: tuple[Verdict, ...] = ()


shown_fields = json_of(Evidence)
"""The fields of a piece that need no redaction."""
