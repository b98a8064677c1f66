"""
`ProviderSettings`: the settings of a provider, as `<NAME>_<FIELD>` in the environment.

Nothing is read here: `receiver/settings.py` reads the environment into the model that each provider names as its
`Settings`. A provider with a setting of its own subclasses the model in its own file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator

from submitter.vocabulary import Cost


@dataclass(frozen=True, slots=True)
class Rate:
    """At most *count* calls in *seconds*, as a token bucket that holds *count*."""

    count: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.count}/{self.seconds:g}"


@dataclass(frozen=True, slots=True)
class SettingsWarning:
    """Settings that work, with a drawback. *code* names it in logs, *remedy* says what to set."""

    code: str
    effect: str
    remedy: str


def parse_rate(value: Any) -> Any:
    """Parse `count/seconds`, such as `20/60`, as a `Rate`; only text is parsed. Raises `ValueError`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9}(?:\.\d{1,9})?)\s*", value)
    if match is None or int(match[1]) < 1 or float(match[2]) <= 0:
        raise ValueError("write it as count/seconds, for example 20/60")
    return Rate(int(match[1]), float(match[2]))


def parse_price(value: Any) -> Any:
    """Parse `0.10 USD` or `5 credits` as a `Cost`; only text is parsed. Raises `ValueError`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) (USD|credits)", value.strip())
    if match is None:
        raise ValueError("write it as `0.10 USD` or `5 credits`")
    return Cost(Decimal(match[1]), match[2])


def split_commas(value: Any) -> Any:
    """Split a comma-separated text; other values are returned unchanged."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Texts = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(split_commas)]


class ProviderSettings(BaseModel):
    """The settings that every provider has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_key: SecretStr | None = Field(None, description="Without it, jobs for this provider are refused.")
    base_url: str | None = Field(None, description="Where its API is.")
    rate: Annotated[Rate | None, BeforeValidator(parse_rate)] = Field(
        None, description="`count/seconds`, in place of the documented limits of submit calls."
    )
    concurrency: int | None = Field(None, ge=1, le=1000, description="Submit calls in flight at once.")

    @field_validator("base_url")
    @classmethod
    def _base_url(cls, value: str | None) -> str | None:
        value = (value or "").strip()
        if not value:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http(s) URL")
        return value.rstrip("/")

    @property
    def configured(self) -> bool:
        """Return whether jobs can be sent to the provider, that is, whether it has a key."""
        return self.api_key is not None

    def constructor_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for the provider's constructor, other than `api_key` and `base_url`."""
        return {}


class PricedSettings(ProviderSettings):
    """The settings of a provider whose answers don't include the cost of a job."""

    price: Annotated[Cost | None, BeforeValidator(parse_price)] = Field(
        None, description="What a job costs, which its answers don't say: `0.10 USD` or `5 credits`."
    )

    def constructor_arguments(self) -> dict[str, Any]:
        return {"price": self.price}
