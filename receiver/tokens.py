"""
Links that nobody can guess: callback and input tokens, signed by itsdangerous.

A token says which job (and provider) it is for and when it was minted, and nothing else; it is checked without a
database. Keys rotate: the first of `SECRET_KEYS` signs, all of them verify.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from itsdangerous import BadData, TimestampSigner
from itsdangerous.encoding import want_bytes

_CANONICAL = re.compile(r"\.[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]\Z")
"""Base64 ignores what is not of its alphabet, and the last two bits of 32 bytes: one signature, one spelling."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a token proves."""

    job_id: str
    provider: str
    minted_at: datetime


class TokenInvalid(Exception):
    """Not one of ours, or altered."""


class Tokens:
    """Mints and reads tokens. *keys*: the first signs, all verify (itsdangerous wants the signing key last)."""

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys:
            raise ValueError("at least one secret key is needed")
        in_order = list(reversed(keys))
        self._callback = _signer(in_order, "callback")
        self._input = _signer(in_order, "input")

    def callback(self, job_id: str, provider: str) -> str:
        return self._callback.sign(f"{job_id}.{provider}").decode("ascii")

    def input(self, job_id: str) -> str:
        return self._input.sign(f"{job_id}.-").decode("ascii")

    def read_callback(self, token: str) -> Claim:
        return _read(self._callback, token)

    def read_input(self, token: str) -> Claim:
        return _read(self._input, token)


class _Signer(TimestampSigner):
    """Derives each key once: that would be half of the work of reading a token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._derived: dict[bytes, bytes] = {}

    def derive_key(self, secret_key: str | bytes | None = None) -> bytes:
        secret = self.secret_keys[-1] if secret_key is None else want_bytes(secret_key)
        if secret not in self._derived:
            self._derived[secret] = super().derive_key(secret)
        return self._derived[secret]


def _signer(keys: list[str], purpose: str) -> TimestampSigner:
    return _Signer(keys, salt=f"receiver.{purpose}", sep=".", key_derivation="hmac", digest_method=hashlib.sha256)


def _read(signer: TimestampSigner, token: str) -> Claim:
    if len(token) > 512 or not token.isascii():
        raise TokenInvalid("not a token")
    try:
        value, minted_at = signer.unsign(token, return_timestamp=True)
        if not _CANONICAL.search(token):
            raise TokenInvalid("not in canonical form")
        job_id, _, provider = value.decode("ascii").partition(".")
    except (BadData, UnicodeDecodeError) as exc:
        raise TokenInvalid("signature does not match") from exc
    return Claim(job_id, provider, minted_at)
