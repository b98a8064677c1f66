"""Names of result files, derived from their inputs' names: safe and short enough for every file system."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LONGEST_BYTES = 200
"""File systems allow 255; an extension, a number and the mark of an unfinished file are added."""
_SAFE = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd", "Nl", "No", "So"})


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def stem_of(image: str | os.PathLike[str]) -> str | None:
    """Return the stem of result names for *image* (a path or a URL), without extension; None if nothing is left."""
    name = unquote(urlsplit(image).path) if isinstance(image, str) and is_url(image) else os.fspath(image)
    return shortened(safe(Path(name).stem))


def safe(name: str) -> str:
    """Replace everything in *name* that a file system or a shell may misinterpret; letters of any script stay."""
    composed = unicodedata.normalize("NFC", name)
    return "".join(char if _is_safe(char) else "_" for char in composed).strip(". ")


def _is_safe(char: str) -> bool:
    """Return whether *char* is a letter or its mark, a number, a pictogram, or one of a few signs."""
    return char in "-_. " or unicodedata.category(char) in _SAFE


def shortened(stem: str) -> str | None:
    """
    Shorten *stem* to at most 200 bytes of UTF-8; None if it is empty.

    The rest is replaced by a digest, so that names that differ at the end stay different.
    """
    encoded = stem.encode("utf-8", "surrogatepass")
    if len(encoded) <= _LONGEST_BYTES:
        return stem or None
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: _LONGEST_BYTES - 9].decode('utf-8', 'ignore').rstrip('. ')}-{digest}"
