"""TLS as every client of both packages speaks it: verified against the certificates of `certifi`."""

from __future__ import annotations

import functools
import ssl

import httpx


@functools.cache
def context() -> ssl.SSLContext:
    """Return the context that all clients of a process share: reading the certificates takes 30 ms."""
    return httpx.create_ssl_context(trust_env=False)
