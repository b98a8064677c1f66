"""
Links that nobody can guess: callback and input tokens, signed by itsdangerous.

A token says which job (and provider) it is for and when it was minted, and nothing else; it is checked without a
database. Keys rotate: the first of `SECRET_KEYS` signs, all of them verify.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
import time
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from itsdangerous import BadData, TimestampSigner
from itsdangerous.encoding import base64_decode, base64_encode, bytes_to_int, want_bytes
from itsdangerous.signer import SigningAlgorithm


@dataclass(frozen=True, slots=True)
class Claim:
    """The facts that a token proves."""

    job_id: str
    provider: str
    minted_at: datetime


class TokenInvalid(Exception):
    """The token was not made with any of our keys, or it was altered."""


def job_of_callback_url(url: str) -> str | None:
    """
    Return the job that a callback URL of this service is for; None for any other URL.

    The signature is not checked: use it for a URL in a provider's answer to our own call, which echoes what was sent.
    """
    found = _CALLBACK_URL.search(url)
    return found[1] if found else None


_CALLBACK_URL = re.compile(r"/callbacks/[a-z0-9_-]+/(job_[0-9a-z]{26})\.")


class Tokens:
    """
    Mints and reads tokens. *keys*: the first signs, all verify (itsdangerous wants the signing key last).

    *clock* returns the current time, in seconds since 1970, as the time of minting.
    """

    def __init__(self, keys: Sequence[str], *, clock: Callable[[], float] = time.time) -> None:
        if not keys:
            raise ValueError("at least one secret key is needed")
        in_order = list(reversed(keys))
        self._keys, self._clock = in_order, clock
        self._callback = _signer(in_order, "callback", clock)
        self._input = _signer(in_order, "input", clock)
        self._newest_callback_key = self._callback.derive_key()

    def signer(self, purpose: str) -> TimestampSigner:
        """Return a signer with the same keys for another *purpose*; its signatures are invalid for any other."""
        return _signer(self._keys, purpose, self._clock)

    def callback(self, job_id: str, provider: str) -> str:
        return self._callback.sign(f"{job_id}.{provider}").decode("ascii")

    def input(self, job_id: str) -> str:
        return self._input.sign(f"{job_id}.-").decode("ascii")

    def read_callback(self, token: str) -> Claim:
        return _read(self._callback, token)

    def job_of_callback(self, token: bytes, provider: bytes, *, not_before: float) -> str | None:
        """
        Return the job of an ordinary callback token, in half of the time that `read_callback` takes.

        That is a token of *provider*, signed with the newest key and minted at or after *not_before*, in seconds since
        1970. For any other, which may still be valid, the result is None.
        """
        signed, _, signature = token.rpartition(b".")
        expected = b2a_base64(hmac.digest(self._newest_callback_key, signed, "sha256"), newline=False)
        if not hmac.compare_digest(signature, expected.translate(_URL_SAFE, b"=")):
            return None
        said, _, minted_at = signed.rpartition(b".")
        job_id, _, named = said.partition(b".")
        if not job_id or named != provider or len(minted_at) != 6:
            return None
        seconds = int.from_bytes(a2b_base64(minted_at.translate(_FROM_URL_SAFE) + b"=="))
        return job_id.decode("ascii") if seconds >= not_before else None

    def read_input(self, token: str) -> Claim:
        return _read(self._input, token)


_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class _HmacSha256(SigningAlgorithm):
    """The same as itsdangerous' class, with one call of `hmac` instead of four."""

    def get_signature(self, key: bytes, value: bytes) -> bytes:
        return hmac.digest(key, value, "sha256")


class _Signer(TimestampSigner):
    """A signer that derives each key once: deriving it again would be half of the work of reading a token."""

    def __init__(self, *args: Any, clock: Callable[[], float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = clock
        self._derived: dict[bytes, bytes] = {}

    def get_timestamp(self) -> int:
        return int(self._clock())

    def derive_key(self, secret_key: str | bytes | None = None) -> bytes:
        secret = self.secret_keys[-1] if secret_key is None else want_bytes(secret_key)
        if secret not in self._derived:
            self._derived[secret] = super().derive_key(secret)
        return self._derived[secret]


def _signer(keys: list[str], purpose: str, clock: Callable[[], float]) -> TimestampSigner:
    return _Signer(
        keys,
        salt=f"receiver.{purpose}",
        sep=".",
        key_derivation="hmac",
        digest_method=hashlib.sha256,
        algorithm=_HmacSha256(),
        clock=clock,
    )


def _read(signer: TimestampSigner, token: str) -> Claim:
    """
    Read what `unsign` reads in a third of the time: compute the expected signature and compare it as text.

    So a signature has a single spelling, where lenient base64 decoding would let letters be added or exchanged.
    """
    if len(token) > 512 or not token.isascii():
        raise TokenInvalid("not a token")
    signed, _, signature = token.rpartition(".")
    value, given = signed.encode("ascii"), signature.encode("ascii")
    newest_first = reversed(signer.secret_keys)
    if not any(hmac.compare_digest(given, _signature(signer, key, value)) for key in newest_first):
        raise TokenInvalid("signature does not match")
    said, _, minted_at = signed.rpartition(".")
    job_id, _, provider = said.partition(".")
    if not (job_id and provider and minted_at):
        raise TokenInvalid("signed, but not a token")
    try:
        return Claim(job_id, provider, signer.timestamp_to_datetime(bytes_to_int(base64_decode(minted_at))))
    except (BadData, ValueError, OverflowError, OSError, struct.error) as exc:
        raise TokenInvalid("signed, but not a token") from exc


def _signature(signer: TimestampSigner, key: bytes, value: bytes) -> bytes:
    return base64_encode(signer.algorithm.get_signature(signer.derive_key(key), value))
