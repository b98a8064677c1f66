"""The settings of a sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Settings:
    """Keys, secrets and timing of a sandbox; each stand-in reads its own parts."""

    api_keys: Mapping[str, str] = field(repr=False)
    freepik_webhook_secret: str = field(repr=False)
    freepik_webhook_secret_encoding: str
    freepik_api_key_header: str
    upscayl_older_words: bool
    turnaround_seconds: tuple[float, float]
    link_seconds: Mapping[str, float]
    retry_scale: float
    callback_timeout_scale: float
    seed: int
