"""
A great many hostile callbacks against every provider's `verify`: `python -m tests.support.fuzz [COUNT] [SEED]`.

Only `CallbackRefused` or silence may come out, and silence only for what was signed with the secret, in time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
import re
import sys
import time
from collections import Counter
from datetime import UTC, datetime

from submitter.errors import CallbackRefused
from submitter.provider import Provider
from submitter.providers import PROVIDERS, build
from submitter.vocabulary import Callback

SECRETS = ("secret-the-first", "secret-the-second")
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
SPICE = (
    *(b"", b" ", b",", b"v1", b"v1,", b",v1", b"v1,=", b"v1,AAAA", b"v1a,AAAA", b"v2,", b"\x00", b"\xff\xfe", b"."),
    *("é".encode(), "é".encode("latin-1"), b"whsec_", b"-1", b"0", b"1e9", b"inf", b"nan", b"9" * 15, b"9" * 16),
    *(b"+1790000000", b"0x10", b"1 790", b"1_000", "١٢٣".encode(), b"v1,v1,v1", b"v1," + b"A" * 5000, b"v1 v1 v1"),
)


def providers() -> list[Provider]:
    made = [build(name, api_key="-") for name in PROVIDERS if name != "freepik"]
    return [build("freepik", api_key="-", webhook_secrets=list(SECRETS)), *made]


def hammer(count: int, seed: int = 0) -> Counter[str]:
    """Verify *count* callbacks; returns how often each reason was given (`verified` for none)."""
    dice = random.Random(seed)
    every = providers()
    freepik, came = every[0], Counter[str]()
    for n in range(count):
        callback, genuine = _callback(dice)
        provider = freepik if n % 8 else dice.choice(every)
        try:
            provider.verify(callback, NOW)
        except CallbackRefused as exc:
            assert not (genuine and provider is freepik), (callback, exc)
            came[exc.reason] += 1
        else:
            assert genuine or provider is not freepik, callback
            came["verified" if provider is freepik else "unsigned by design"] += 1
    return came


def _callback(dice: random.Random) -> tuple[Callback, bool]:
    """A callback, and whether one of the secrets really signed it, in time."""
    body = dice.randbytes(dice.choice((0, 1, 40, 300)))
    message = dice.choice((b"msg_1", b"m", b"a" * 512, dice.randbytes(6).hex().encode()))
    late = dice.choice((0, 0, 0, -299, 299, -301, 301, 10**6))
    timestamp = str(int(NOW.timestamp()) + late).encode()
    secret = dice.choice((*SECRETS, *SECRETS, "not-ours")).encode()
    signature = b"v%d," % dice.choice((1, 1, 2, 27)) + _mac(secret, message, timestamp, body)
    headers = {b"webhook-id": message, b"webhook-timestamp": timestamp, b"webhook-signature": signature}
    kind = dice.randrange(6)
    name = dice.choice(list(headers))
    if kind == 1:
        headers[name] = _one_bit_off(headers[name], dice)
    elif kind == 2:
        headers[name] = dice.choice(SPICE) + dice.randbytes(dice.choice((0, 0, 3)))
    elif kind == 3:
        del headers[name]
    elif kind == 4:
        others = [b"v1," + base64.b64encode(dice.randbytes(32)), b"v9,x", b"v1a," + b"A" * 88, b"junk"]
        entries = [*others[: dice.randrange(4)], signature]
        dice.shuffle(entries)
        headers[b"webhook-signature"] = b" ".join(entries)
    elif kind == 5 and body:
        body = _one_bit_off(body, dice)
    pairs = list(headers.items())
    dice.shuffle(pairs)
    return Callback(tuple(pairs), body, NOW), _genuine(headers, body)


def _genuine(headers: dict[bytes, bytes], body: bytes) -> bool:
    """The page's rule in its plainest form: some entry is the MAC by one of the secrets, and the time is right."""
    message, timestamp = headers.get(b"webhook-id", b""), headers.get(b"webhook-timestamp", b"")
    if not message or not re.fullmatch(rb"[0-9]{1,15}", timestamp):
        return False
    right = {_mac(secret.encode(), message, timestamp, body) for secret in SECRETS}
    entries = re.findall(rb"(?:^| )v[0-9]{1,4},([^ ]*)", headers.get(b"webhook-signature", b""))
    return abs(NOW.timestamp() - int(timestamp)) <= 300 and any(entry in right for entry in entries)


def _mac(secret: bytes, message: bytes, timestamp: bytes, body: bytes) -> bytes:
    return base64.b64encode(hmac.digest(secret, message + b"." + timestamp + b"." + body, hashlib.sha256))


def _one_bit_off(value: bytes, dice: random.Random) -> bytes:
    spoilt = bytearray(value)
    spoilt[dice.randrange(len(spoilt))] ^= 1 << dice.randrange(8)
    return bytes(spoilt)


if __name__ == "__main__":
    COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    BEGAN = time.monotonic()
    CAME = hammer(COUNT, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(
        f"{COUNT:,} calls in {time.monotonic() - BEGAN:.1f} s, nothing but CallbackRefused: {dict(CAME.most_common())}"
    )
