"""Generated secrets: made once, kept in the data directory, readable by its owner only."""

from __future__ import annotations

import contextlib
import json
import secrets
from pathlib import Path

from receiver.runtime.data_dir import DataUnusable, prepare, usable
from submitter.signatures import new_secret, parse_secret
from submitter.whole_files import write_whole

_NAME = "secrets.json"
_KEYS = ("secret_key", "api_token", "notify_secret")


def secrets_path(data_dir: Path) -> Path:
    return data_dir / _NAME


def generated(data_dir: Path) -> dict[str, str]:
    """
    Return the secrets of this data directory: `secret_key`, `api_token`, `notify_secret`. Makes them if missing.

    Two processes that start at once agree: the file is written whole under another name and linked into place, and the
    second process reads what the first one wrote. Raises `DataUnusable`.
    """
    prepare(data_dir)
    path = secrets_path(data_dir)
    if not path.exists():
        with usable(path):
            _make(path)
    return kept(data_dir)


def kept(data_dir: Path) -> dict[str, str]:
    """Return the secrets made before. Raises `DataUnusable`; broken ones are never replaced by new ones."""
    path = secrets_path(data_dir)
    remedy = "restore it from a backup; if it is moved away, new ones are made, and links and tokens issued so far end"
    try:
        found = json.loads(path.read_text())
    except OSError as exc:
        raise DataUnusable(path, f"can't be read: {exc.strerror}", "give it to the user that this runs as") from exc
    except ValueError as exc:
        raise DataUnusable(path, "is not the JSON that was written there", remedy) from exc
    given = found if isinstance(found, dict) else {}
    missing = [key for key in _KEYS if not isinstance(given.get(key), str) or not given[key]]
    if missing:
        raise DataUnusable(path, f"lacks {', '.join(missing)}", remedy)
    try:
        parse_secret(given["notify_secret"])
    except ValueError as exc:
        raise DataUnusable(path, "its notify_secret is not a whsec_… secret", remedy) from exc
    return given


def _make(path: Path) -> None:
    fresh = {
        "secret_key": secrets.token_urlsafe(32),
        "api_token": secrets.token_urlsafe(32),
        "notify_secret": new_secret(),
    }
    with contextlib.suppress(FileExistsError):
        write_whole(path, json.dumps(fresh, indent=1), mode=0o600, replace=False)
