"""
What is printed: one line for each thing that happened, ids as fields, JSON or readable.

Library loggers that print whole URLs (httpx, httpcore, uvicorn's access log) are silenced here: capability URLs are
secrets.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def set_up(style: str = "auto", *, level: str = "info") -> None:
    """*style* is `json`, `text` or `auto`: text on a terminal, JSON elsewhere."""
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "httpcore", "uvicorn.access", "python_multipart", "aiosqlite", "alembic", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL if name == "uvicorn.access" else logging.WARNING)
    renderer: Any = structlog.dev.ConsoleRenderer(colors=True) if as_text else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
