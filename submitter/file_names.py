"""Names of result files, from the names of their inputs: safe on every file system, and short enough for it."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LONGEST_BYTES = 200
"""File systems take 255; an extension, a number and the mark of an unfinished file are added."""
_SAFE = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd", "Nl", "No", "So"})


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def stem_of(image: str | os.PathLike[str]) -> str | None:
    """The name that results of *image* (a path or a URL) begin with, without extension; None if nothing is left."""
    name = unquote(urlsplit(image).path) if isinstance(image, str) and is_url(image) else os.fspath(image)
    return shortened(safe(Path(name).stem))


def safe(name: str) -> str:
    """*name* with everything that a file system or a shell may take amiss replaced; any script's letters stay."""
    composed = unicodedata.normalize("NFC", name)
    return "".join(char if _is_safe(char) else "_" for char in composed).strip(". ")


def _is_safe(char: str) -> bool:
    """A letter, a mark that belongs to one, a number, a pictogram, or one of a few signs."""
    return char in "-_. " or unicodedata.category(char) in _SAFE


def shortened(stem: str) -> str | None:
    """
    *stem* in at most 200 bytes of UTF-8, None for an empty one.

    What is cut off is replaced by a digest, so that names that differ at the end stay different.
    """
    encoded = stem.encode("utf-8", "surrogatepass")
    if len(encoded) <= _LONGEST_BYTES:
        return stem or None
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: _LONGEST_BYTES - 9].decode('utf-8', 'ignore').rstrip('. ')}-{digest}"
