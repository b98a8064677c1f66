"""
The environment of the client side, and the only module of `submitter` that reads it.

`SUBMITTER_RECEIVER_URL` and `SUBMITTER_TOKEN` name a receiver. `RECEIVER_DATA_DIR` and `RECEIVER_API_TOKENS` are the
receiver's own settings: on the machine that serves it they are enough to find its token. `XDG_CONFIG_HOME` says where
profiles are. A `.env` file in the working directory is read too; variables win over it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from submitter.errors import SubmitterError

LOCAL_URL = "http://127.0.0.1:8000"


class EnvironmentUnreadable(SubmitterError):
    """`.env` can't be read. The message names what to change."""


class _Settings(BaseSettings):
    def __init__(self, **values: Any) -> None:
        if Path(".env").is_dir():
            raise EnvironmentUnreadable(".env in this directory is a directory; remove it, or make it a file")
        try:
            super().__init__(**values)
        except UnicodeDecodeError as exc:
            raise EnvironmentUnreadable(".env in this directory must be UTF-8") from exc
        except OSError as exc:
            raise EnvironmentUnreadable(f".env in this directory can't be read: {exc.strerror or exc}") from exc


class Environment(_Settings):
    """`SUBMITTER_RECEIVER_URL` and `SUBMITTER_TOKEN`."""

    model_config = SettingsConfigDict(env_prefix="SUBMITTER_", env_file=".env", env_ignore_empty=True, extra="ignore")

    receiver_url: str | None = None
    token: SecretStr | None = None


class LocalReceiver(_Settings):
    """The settings of a receiver on this machine that lead to its token."""

    model_config = SettingsConfigDict(env_prefix="RECEIVER_", env_file=".env", env_ignore_empty=True, extra="ignore")

    data_dir: Path = Path("data")
    api_tokens: SecretStr | None = None


def config_home() -> Path | None:
    """
    The directory of this user's configuration: `XDG_CONFIG_HOME` if it is absolute, else `~/.config`.

    None for a user without a home directory, as in many containers.
    """
    given = os.environ.get("XDG_CONFIG_HOME", "")
    if Path(given).is_absolute():
        return Path(given)
    try:
        return Path.home() / ".config"
    except RuntimeError:
        return None


def variables_without_settings(*prefixes: str) -> dict[str, str]:
    """Return variables for a child with its own settings: none whose name begins with one of *prefixes*."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(prefixes)}


def plain_output() -> bool:
    """Return whether output must have no colours or other control sequences: `NO_COLOR`, or a dumb terminal."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") in ("dumb", "unknown")


def forced_color() -> bool:
    """Return whether colours are wanted even without a terminal."""
    return bool(os.environ.get("FORCE_COLOR"))


def choose_color(color: Literal["auto", "always", "never"]) -> None:
    """Apply a `--color` option to everything that prints: the printing libraries read these variables."""
    if color == "never":
        os.environ["NO_COLOR"] = "1"
        os.environ.pop("FORCE_COLOR", None)
    elif color == "always":
        os.environ["FORCE_COLOR"] = "1"
        os.environ.pop("NO_COLOR", None)
