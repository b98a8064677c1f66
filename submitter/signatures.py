"""
Webhook signatures as in Standard Webhooks. Verification takes bytes and raises `CallbackRefused` and nothing else.

The signed text is `id.timestamp.body`, with HMAC-SHA256; the header holds `version,base64` entries separated by spaces,
of which a single match is enough (this allows rotation without a gap). Vendors differ in two ways, so both are data
here: the names of the version tags, and how the secret's text becomes key bytes.

For applications that receive our events, `verify(headers, body, secret)` is all that is needed.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets as randomness
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from submitter.errors import CallbackRefused
from submitter.vocabulary import Callback

Encoding = Literal["utf8", "base64", "hex"]

PREFIX = "whsec_"
STANDARD_VERSION = re.compile(rb"v1")
TOLERANCE_SECONDS = 300
MAX_ID_BYTES = 512
MAX_SIGNATURE_BYTES = 4096
MAX_ENTRIES = 32
_TIMESTAMP = re.compile(rb"[0-9]{1,15}")


def verify(
    headers: Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[str | bytes, str | bytes]],
    body: bytes,
    secret: str | Sequence[str],
    *,
    now: datetime | None = None,
    tolerance_seconds: float = TOLERANCE_SECONDS,
) -> None:
    """
    Return if *body* was signed with one of the `whsec_` secrets, raise `CallbackRefused` if not.

    *headers* may be any mapping or list of pairs, in any case. *body* is the raw request body, before any parsing.
    Raises `ValueError` for a malformed *secret*: a mistake in the settings, not in the request.
    """
    keys = parse_secrets(secret)
    if not isinstance(body, bytes | bytearray | memoryview):
        raise CallbackRefused("the body must be the raw bytes that were received", reason="bad_body")
    found = _standard_headers(headers)
    check(
        found.get(b"webhook-id"),
        found.get(b"webhook-timestamp"),
        found.get(b"webhook-signature"),
        bytes(body),
        keys,
        now=now or datetime.now(UTC),
        tolerance_seconds=tolerance_seconds,
        hint="is the secret that of this endpoint?",
    )


def verify_callback(
    callback: Callback,
    keys: Sequence[bytes],
    *,
    now: datetime,
    versions: re.Pattern[bytes] = STANDARD_VERSION,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    hint: str = "",
) -> None:
    """Return if *callback* was signed with one of *keys* at about *now*, raise `CallbackRefused` if not."""
    first = dict(reversed(callback.headers))
    check(
        first.get(b"webhook-id"),
        first.get(b"webhook-timestamp"),
        first.get(b"webhook-signature"),
        callback.body,
        keys,
        now=now,
        versions=versions,
        tolerance_seconds=tolerance_seconds,
        hint=hint,
    )


def check(
    message_id: bytes | None,
    timestamp: bytes | None,
    signatures: bytes | None,
    body: bytes,
    keys: Sequence[bytes],
    *,
    now: datetime,
    versions: re.Pattern[bytes] = STANDARD_VERSION,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    hint: str = "",
) -> None:
    """Check a signature. Entries whose version does not match *versions* are skipped, not refused."""
    if not keys:
        raise CallbackRefused("no secret is configured, so nothing can be verified", reason="no_secret")
    # White space around a header's value is not part of it (RFC 9110, 5.5), and not every server takes it off.
    message_id = message_id and message_id.strip(b" \t")
    timestamp = timestamp and timestamp.strip(b" \t")
    signatures = signatures and signatures.strip(b" \t")
    if not message_id or not timestamp or not signatures:
        missing = [
            name
            for name, value in (
                ("webhook-id", message_id),
                ("webhook-timestamp", timestamp),
                ("webhook-signature", signatures),
            )
            if not value
        ]
        raise CallbackRefused(
            f"{', '.join(missing)} missing; does a proxy drop headers, or is this another sender?",
            reason="missing_header",
        )
    if len(message_id) > MAX_ID_BYTES or len(signatures) > MAX_SIGNATURE_BYTES:
        raise CallbackRefused("a signature header is longer than any that is really sent", reason="header_too_long")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise CallbackRefused("webhook-timestamp is not a whole number of Unix seconds", reason="bad_timestamp")
    age_seconds = now.timestamp() - int(timestamp)
    if age_seconds > tolerance_seconds:
        raise CallbackRefused(
            f"signed more than {tolerance_seconds:g} s ago; is it a replay, or is the clock here fast?", reason="stale"
        )
    if age_seconds < -tolerance_seconds:
        raise CallbackRefused(
            f"signed more than {tolerance_seconds:g} s in the future; is the clock here slow?", reason="future"
        )
    entries = signatures.split(b" ", MAX_ENTRIES)
    if len(entries) > MAX_ENTRIES:
        raise CallbackRefused(f"webhook-signature has more than {MAX_ENTRIES} entries", reason="too_many_entries")
    expected = [_digest(key, message_id, timestamp, body) for key in keys]
    known = matched = False
    for entry in entries:
        version, _, signature = entry.partition(b",")
        if not versions.fullmatch(version):
            continue
        known = True
        for digest in expected:
            matched |= hmac.compare_digest(signature, digest)
    if not known:
        raise CallbackRefused("webhook-signature has no entry of a version known here", reason="no_known_version")
    if not matched:
        raise CallbackRefused(("signature does not match; " + hint).rstrip("; "), reason="no_match")


def sign(secret: str | bytes, message_id: str, timestamp: int | datetime, body: bytes) -> str:
    """Return the `webhook-signature` entry `v1,…`; *secret* is a `whsec_` text or the key's bytes."""
    key = parse_secret(secret) if isinstance(secret, str) else secret
    seconds = int(timestamp.timestamp()) if isinstance(timestamp, datetime) else timestamp
    return "v1," + _digest(key, message_id.encode(), str(seconds).encode(), body).decode("ascii")


def signed_headers(secrets: Sequence[str], message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """Return the three headers of Standard Webhooks for *body*, signed with each of *secrets*."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(sign(secret, message_id, at, body) for secret in secrets),
    }


def message_id(headers: object) -> str:
    """Return the `webhook-id` in *headers*, as `verify` reads them; empty if there is none."""
    return _standard_headers(headers).get(b"webhook-id", b"").decode("latin-1")


def new_secret() -> str:
    """Return a new `whsec_` secret of 32 random bytes."""
    return PREFIX + base64.b64encode(randomness.token_bytes(32)).decode("ascii")


def parse_secret(text: str) -> bytes:
    """Return the key bytes of a `whsec_` secret; `ValueError` says what is wrong and never quotes it."""
    text = text.strip()
    if not text.startswith(PREFIX):
        raise ValueError(f"a webhook secret starts with {PREFIX!r}")
    key = parse_key(text.removeprefix(PREFIX), "base64")
    if not 24 <= len(key) <= 64:
        raise ValueError(f"a webhook secret holds 24 to 64 bytes, this one holds {len(key)}")
    return key


def parse_secrets(secret: str | Sequence[str]) -> list[bytes]:
    """Return the keys of one or several `whsec_` secrets; `ValueError` as in `parse_secret`."""
    return [parse_secret(text) for text in ([secret] if isinstance(secret, str) else secret)]


def parse_key(text: str, encoding: Encoding) -> bytes:
    """Return the key bytes of a vendor's secret *text*; `ValueError` if it does not fit *encoding*."""
    octets = text.strip().encode("utf-8")
    try:
        if encoding == "utf8":
            key = octets
        elif encoding == "base64":
            key = base64.b64decode(octets + b"=" * (-len(octets) % 4), validate=True)
        elif encoding == "hex":
            key = binascii.unhexlify(octets)
        else:
            raise ValueError(f"the encoding of a webhook secret is utf8, base64 or hex, not {encoding!r}")
    except binascii.Error as exc:
        raise ValueError(f"the webhook secret is not {encoding}; is another encoding meant?") from exc
    if not key:
        raise ValueError("the webhook secret is empty")
    return key


def _digest(key: bytes, message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
    signed = b"%s.%s.%s" % (message_id, timestamp, body)
    return binascii.b2a_base64(hmac.digest(key, signed, "sha256"), newline=False)


def _standard_headers(headers: object) -> dict[bytes, bytes]:
    """Return the first of each `webhook-…` header as bytes; anything that is not a pair of texts is skipped."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    found: dict[bytes, bytes] = {}
    for pair in pairs if isinstance(pairs, Iterable) and not isinstance(pairs, str | bytes) else ():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            continue
        name, value = (_octets(item) for item in pair)
        if name is not None and value is not None and name.lower().startswith(b"webhook-"):
            found.setdefault(name.lower(), value)
    return found


def _octets(value: object) -> bytes | None:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        # Servers decode header bytes as latin-1; what does not fit into it never was a header.
        try:
            return value.encode("latin-1")
        except UnicodeEncodeError:
            return None
    return None
