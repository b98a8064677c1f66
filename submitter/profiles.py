"""
Named receivers: URL and token, stored by `submitter login` where every client finds them.

The file is `upscale-receiver/profiles.json` in the user's configuration directory, readable by its owner only:

    {"default": "production", "profiles": {"production": {"url": "https://…", "token": "…"}}}
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submitter.environment import config_home
from submitter.errors import SubmitterError
from submitter.whole_files import write_whole

if sys.platform != "win32":
    import fcntl

DEFAULT_NAME = "default"


class ProfilesUnusable(SubmitterError):
    """The file of profiles can't be read or written. The message names the file and says what to change."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A receiver's URL and token."""

    url: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Profiles:
    """All profiles, and the name of the default. Immutable: `with_profile` and `without` return changed copies."""

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    default: str | None = None

    def get(self, name: str | None = None) -> Profile | None:
        """Return the profile called *name*, or the default one; None if there is none."""
        name = name or self.default
        return None if name is None else self.profiles.get(name)

    def at(self, url: str) -> Profile | None:
        """Return a profile of the receiver at *url*; the default one wins if there are several."""
        default = self.get()
        candidates = ([default] if default else []) + list(self.profiles.values())
        return next((profile for profile in candidates if profile.url.rstrip("/") == url.rstrip("/")), None)

    def with_profile(self, name: str, profile: Profile, *, default: bool = False) -> Profiles:
        """Return the profiles with *profile* added; it becomes the default on request, or if it is the first."""
        profiles = {**self.profiles, name: profile}
        return replace(self, profiles=profiles, default=name if default or self.default is None else self.default)

    def without(self, name: str) -> Profiles:
        """Return the profiles without *name*; the default moves on to the first that is left."""
        profiles = {known: profile for known, profile in self.profiles.items() if known != name}
        default = self.default if self.default in profiles else next(iter(profiles), None)
        return Profiles(profiles, default)


def profiles_path() -> Path:
    """Return the path of this user's profiles. Raises `ProfilesUnusable` for a user without a home directory."""
    home = config_home()
    if home is None:
        raise ProfilesUnusable("this user has no home directory for profiles; set HOME or XDG_CONFIG_HOME")
    return home / "upscale-receiver" / "profiles.json"


def read_profiles(path: Path | None = None) -> Profiles:
    """Read the profiles in *path*, none if there is no such file. Raises `ProfilesUnusable`, never quoting a token."""
    if path is None and config_home() is None:
        return Profiles()
    path = path or profiles_path()
    try:
        document = json.loads(path.read_bytes())
        profiles = {str(name): _profile(entry) for name, entry in document["profiles"].items()}
        default = document.get("default")
    except FileNotFoundError:
        return Profiles()
    except OSError as exc:
        raise ProfilesUnusable(f"{path} can't be read: {exc.strerror or exc}") from exc
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ProfilesUnusable(f"{path} is not what `submitter login` writes; remove it and log in again") from None
    return Profiles(profiles, default if default in profiles else next(iter(profiles), None))


def write_profiles(profiles: Profiles, path: Path | None = None) -> Path:
    """Replace the file as a whole, mode 0600 in a directory of mode 0700, and return its path."""
    path = path or profiles_path()
    document = {
        "default": profiles.default,
        "profiles": {name: {"url": each.url, "token": each.token} for name, each in profiles.profiles.items()},
    }
    with _writable(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n", mode=0o600)
    return path


def update_profiles(change: Callable[[Profiles], Profiles], path: Path | None = None) -> Path:
    """Read, *change* and write the profiles, and return the path; of several processes, one after the other."""
    path = path or profiles_path()
    with _writable(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = None if sys.platform == "win32" else os.open(path.parent, os.O_RDONLY)
    try:
        if sys.platform != "win32" and directory is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(directory, fcntl.LOCK_EX)
        return write_profiles(change(read_profiles(path)), path)
    finally:
        if directory is not None:
            os.close(directory)


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ProfilesUnusable(
            f"{path} can't be written: {exc.strerror or exc}; "
            "free some space, or set XDG_CONFIG_HOME to a directory that this user can write to"
        ) from exc


def _profile(entry: Any) -> Profile:
    url, token = entry["url"], entry["token"]
    if not isinstance(url, str) or not isinstance(token, str):
        raise TypeError
    return Profile(url, token)
