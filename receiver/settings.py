"""
All settings, and the only reader of the environment in this package.

`RECEIVER_*` for the service, `<NAME>_*` for each provider; a `.env` file in the working directory is read too.
Durations are seconds and may be fractional.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from submitter.option_errors import explain_option
from submitter.provider import Provider
from submitter.provider_settings import ProviderSettings, Secrets, Texts, split_commas
from submitter.providers import PROVIDERS
from submitter.signatures import new_secret, parse_secret

_ENV_FILE = ".env"
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_[A-Z]+|TZ|TERM|TMPDIR|TEMP|TMP|SYSTEMROOT|XDG_[A-Z_]+"
    r"|SSH_AUTH_SOCK|SSH_AGENT_PID|TUNNEL_[A-Z0-9_]+",
    re.IGNORECASE,
)
_READING = SettingsConfigDict(
    env_file=_ENV_FILE, env_ignore_empty=True, enable_decoding=False, extra="ignore", frozen=True
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_BUCKET_URL = re.compile(r"(s3|gs|az|abfs|azure)://[^/\s?#@]+(/[^\s?#]*)?")
_HOST_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")
Networks = Annotated[tuple[Network, ...], BeforeValidator(split_commas)]
_POSTGRESQL = ("postgresql://", "postgres://")
_DAY_SECONDS = 86_400
_YEAR_SECONDS = 365 * _DAY_SECONDS
Delay = Annotated[float, Field(ge=0, le=_YEAR_SECONDS, allow_inf_nan=False)]
Delays = Annotated[tuple[Delay, ...], BeforeValidator(split_commas)]
Seconds = Annotated[float, Field(gt=0, le=_YEAR_SECONDS, allow_inf_nan=False)]
Days = Annotated[float, Field(gt=0, le=100 * 365, allow_inf_nan=False)]


class Settings(BaseSettings):
    """The service's own settings, prefix `RECEIVER_`."""

    model_config = SettingsConfigDict(**_READING, env_prefix="RECEIVER_")

    public_url: str | None = Field(
        None,
        description="Base of callback and input URLs. Without it jobs are sent without a callback and polled.",
    )
    data_dir: Path = Field(
        Path("./data"), description="SQLite file, kept images, inputs, generated secrets (mode 0600)."
    )
    database_url: str | None = Field(None, description="`sqlite:///path` or `postgresql://…`.")
    database_listen_url: str | None = Field(
        None,
        description="A direct connection to the same PostgreSQL, for where `DATABASE_URL` goes through PgBouncer.",
    )
    secret_keys: Secrets = Field(
        (), description="Comma-separated; the first signs callback and input links, all verify."
    )
    api_tokens: Secrets = Field((), description="Comma-separated bearer tokens for `/v1`.")
    read_tokens: Secrets = Field(
        (), description="Comma-separated bearer tokens that may read `/v1` and change nothing."
    )
    notify_secrets: Secrets = Field(
        (), description="Comma-separated `whsec_…`, all sign: deliveries to a job's `notify_url`."
    )
    callback_timeout: Seconds = Field(120, description="Silence before the first poll of a job that awaits a callback.")
    poll_interval: Seconds | None = Field(None, description="Replaces every provider's first poll and interval.")
    job_timeout: Seconds = Field(
        3600, description="Counted from `sent_at`; then one last poll, then `expired`. `unconfirmed` never expires."
    )
    confirm: Literal["unsigned", "always", "never"] = Field(
        "unsigned", description="Which callbacks need a status call before they are believed."
    )
    retry_schedule: Delays = Field(
        (0, 5, 300, 1800, 7200, 18000, 36000, 36000),
        description="Delivery delays: the first entry before the first try; as many tries as entries.",
    )
    blob_url: str | None = Field(
        None,
        description="Where kept images and inputs are stored, such as s3://bucket/prefix (needs the extra s3); "
        "files in DATA_DIR if not set. Credentials: the standard variables of the store (AWS_…, GOOGLE_…, AZURE_…).",
    )
    blob_redirect: bool = Field(
        False, description="Redirect image downloads to the object store, by a link signed for 5 minutes."
    )
    allow_networks: Networks = Field(
        (), description="Comma-separated CIDRs that may be reached although private; plain http is allowed there."
    )
    result_hosts: Texts = Field(
        (),
        description="Comma-separated hosts that results may be fetched from, redirects included, such as "
        "`cdn.example.com` or `*.example.com`. Any public host if unset.",
    )
    callback_budget: int = Field(
        64 * 1024 * 1024,
        gt=0,
        le=2**40,
        description="Bytes that unsigned callbacks of one job may take on disk; beyond it they are answered 429.",
    )
    max_callback_bytes: int = Field(1024 * 1024, gt=0, le=2**28, description="Larger callbacks are answered 413.")
    keep_days: Days = Field(30, description="Evidence and attempts are kept this long; finished jobs' inputs 24 h.")
    keep_jobs_days: Days | None = Field(
        None, description="Finished jobs are removed after this, with their images and evidence. Kept if unset."
    )
    keep_images_days: Days | None = Field(
        None, description="Kept images are removed this long after they were stored; their jobs stay. Kept if unset."
    )
    keep_events_days: Days | None = Field(
        None, description="Events are removed after this, with their deliveries unless one is pending. Kept if unset."
    )
    trusted_proxies: Texts = Field(
        ("127.0.0.1", "::1"),
        description="Comma-separated addresses or CIDRs whose X-Forwarded-For is believed for the peer address.",
    )
    public_metrics: bool = Field(
        False, description="Answer `/metrics` and `/readyz` to requests that name the host of `PUBLIC_URL` too."
    )
    dashboard: Literal["on", "off"] = Field("on", description="`off` serves no page.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="`json`, `text`, or `auto`: text on a terminal, JSON elsewhere."
    )

    @field_validator("public_url")
    @classmethod
    def _public_url(cls, value: str | None) -> str | None:
        if value is None or not value.strip():
            return None
        parts = urlsplit(value.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http(s) URL such as https://hooks.example.com")
        if parts.query or parts.fragment or parts.username:
            raise ValueError("must not carry a query, a fragment or credentials")
        return value.strip().rstrip("/")

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, value: str | None) -> str | None:
        if not value:
            return None
        if not value.startswith((*_POSTGRESQL, "sqlite:///")):
            raise ValueError("must be sqlite:///path or postgresql://user:password@host/database")
        return value

    @field_validator("database_listen_url")
    @classmethod
    def _database_listen_url(cls, value: str | None) -> str | None:
        if value and not value.startswith(_POSTGRESQL):
            raise ValueError("must be postgresql://user:password@host/database")
        return value or None

    @field_validator("blob_url")
    @classmethod
    def _blob_url(cls, value: str | None) -> str | None:
        if not value:
            return None
        if not _BUCKET_URL.fullmatch(value):
            raise ValueError(
                "must be the URL of a bucket, such as s3://bucket/prefix, gs://bucket or az://container, without"
                " credentials, a query or a fragment"
            )
        return value

    @field_validator("result_hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.strip().lower() for name in value)
        if not all(_HOST_NAME.fullmatch(name) for name in names):
            raise ValueError(
                "must be host names such as cdn.example.com or *.example.com, without scheme, port or path"
            )
        return names

    @field_validator("retry_schedule")
    @classmethod
    def _some_tries(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("needs at least one entry")
        return value

    @field_validator("keep_jobs_days")
    @classmethod
    def _longer_than_callbacks(cls, value: float | None, info: ValidationInfo) -> float | None:
        """A job must outlive the links that its provider calls back."""
        least = info.data.get("job_timeout", 0) / _DAY_SECONDS + 1
        if value is not None and value < least:
            raise ValueError(f"must be at least {least:.4g}: callbacks may come until a day after JOB_TIMEOUT")
        return value

    @field_validator("notify_secrets")
    @classmethod
    def _whsec(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in value:
            parse_secret(secret.get_secret_value())
        return value

    @field_validator("secret_keys", "api_tokens", "read_tokens")
    @classmethod
    def _long_enough(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(secret.get_secret_value()) < 8 for secret in value):
            raise ValueError("each must have at least 8 characters")
        return value

    @property
    def on_postgresql(self) -> bool:
        return self.database_url is not None and self.database_url.startswith(_POSTGRESQL)

    @property
    def database_address(self) -> Path | str:
        """The database: a path for SQLite, a URL for PostgreSQL."""
        return self.database_url if self.database_url and self.on_postgresql else self.database_path

    @property
    def database_path(self) -> Path:
        """The SQLite file; on PostgreSQL, where it would be."""
        if self.database_url and not self.on_postgresql:
            return Path(self.database_url.removeprefix("sqlite:///"))
        return self.data_dir / "receiver.db"


def check_shared_secrets(settings: Settings) -> None:
    """Require the secrets that processes on one PostgreSQL share; none is generated. Raises `SettingsInvalid`."""
    missing = {
        "SECRET_KEYS": (settings.secret_keys, secrets.token_urlsafe(32)),
        "API_TOKENS": (settings.api_tokens, secrets.token_urlsafe(32)),
        "NOTIFY_SECRETS": (settings.notify_secrets, new_secret()),
    }
    lines = [f"RECEIVER_{name}={fresh}" for name, (value, fresh) in missing.items() if not value]
    if settings.on_postgresql and lines:
        raise SettingsInvalid(
            ["On PostgreSQL all processes need the same secrets; add these new ones to the .env of each:", *lines]
        )


class SettingsInvalid(Exception):
    """Settings that can't be used. `problems` are lines of `NAME: what to change`, all of them at once."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def load(
    *, providers: Mapping[str, Mapping[str, Any]] | None = None, **overrides: Any
) -> tuple[Settings, dict[str, ProviderSettings]]:
    """
    Read the environment and `.env`. *overrides* are field names of `Settings`, *providers* those of each provider's.

    Raises `SettingsInvalid` with every problem of every setting; a problem never quotes a value.
    """
    # It would repeat on standard error what is reported here, once for each reader.
    logging.getLogger("dotenv").setLevel(logging.CRITICAL)
    try:
        problems = _unreadable_lines()
    except UnicodeError:
        raise SettingsInvalid([f"{_ENV_FILE}: must be UTF-8"]) from None
    settings: Settings | None = None
    try:
        settings = Settings(**overrides)
    except ValidationError as exc:
        problems += _explain(exc, "RECEIVER_")
    each: dict[str, ProviderSettings] = {}
    for name, provider in PROVIDERS.items():
        try:
            each[name] = _environment_of(provider)(**(providers or {}).get(name, {}))
            provider.from_settings(each[name])
        except ValidationError as exc:
            problems += _explain(exc, f"{name.upper()}_")
        except ValueError as exc:
            problems.append(f"{name.upper()}_*: {exc}")
    if problems or settings is None:
        raise SettingsInvalid(problems)
    return settings, each


@functools.cache
def _environment_of(provider: type[Provider]) -> type[ProviderSettings]:
    """Return *provider*'s settings as a model that reads them from `<NAME>_…`."""
    config = SettingsConfigDict(**_READING, env_prefix=f"{provider.name.upper()}_")
    made = type("FromEnvironment", (provider.Settings, BaseSettings), {"model_config": config, "__module__": __name__})
    return cast(type[ProviderSettings], made)


def given() -> dict[str, str]:
    """Return the names (in capitals) of all settings that are set, and where: `environment` or `.env`; no values."""
    names = {name.upper(): _ENV_FILE for name, value in dotenv_values(_ENV_FILE).items() if value is not None}
    return {**names, **{name.upper(): "environment" for name in os.environ}}


def names_alone() -> list[str]:
    """Return a warning for each line of `.env` that is a name without `=`: it sets nothing."""
    if not Path(_ENV_FILE).is_file():
        return []
    with open(_ENV_FILE, encoding="utf-8") as stream:
        return [
            f"{_ENV_FILE} line {binding.original.line + _blank_lines(binding.original.string)}: "
            f"{binding.key} has no value; write {binding.key}=value"
            for binding in parse_stream(stream)
            if not binding.error and binding.key is not None and binding.value is None
        ]


def child_environment() -> dict[str, str]:
    """Return the environment for a tunnel program: general variables and its own settings, none of our secrets."""
    return {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}


def _unreadable_lines() -> list[str]:
    """Return a problem for each unreadable place of `.env`; an unclosed quote may reach far."""
    if Path(_ENV_FILE).is_dir():  # Docker makes one where a file to mount is missing
        return [f"{_ENV_FILE}: is a directory; remove it, and write the settings to a file of that name"]
    if not Path(_ENV_FILE).is_file():
        return []
    with open(_ENV_FILE, encoding="utf-8") as stream:
        broken = [binding.original for binding in parse_stream(stream) if binding.error]
    return [
        f"{_ENV_FILE} line {binding.line + _blank_lines(binding.string)}: write it as NAME=value, and close its quotes"
        for binding in broken
    ]


def _blank_lines(text: str) -> int:
    """Count the leading blank lines, which the parser attributes to the line after them."""
    return text[: len(text) - len(text.lstrip())].count("\n")


def _explain(exc: ValidationError, prefix: str) -> list[str]:
    lines = []
    for error in exc.errors(include_url=False, include_input=False):
        name = str(error["loc"][0]) if error["loc"] else ""
        shown = name if name.startswith(prefix) else f"{prefix}{name}"
        lines.append(f"{shown.upper()}: {_remedy(error)}")
    return list(dict.fromkeys(lines))


def _remedy(error: ErrorDetails) -> str:
    if error["type"] in ("ip_v4_network", "ip_v6_network"):
        return "must be networks such as 10.0.0.0/8, with no bits set behind the prefix"
    return explain_option(error, ())
