"""TLS as every client of both packages speaks it: verified, against the authorities of `SSL_CERT_FILE` or `certifi`."""

from __future__ import annotations

import functools
import ssl

import httpx


@functools.cache
def context() -> ssl.SSLContext:
    """
    Return the context that all clients of a process share: reading the certificates takes 30 ms.

    `SSL_CERT_FILE` and `SSL_CERT_DIR` replace the public authorities. Raises `OSError` if they can't be read.
    """
    try:
        return httpx.create_ssl_context()
    except OSError as exc:
        raise OSError(f"no certificate authorities to trust ({exc.strerror}); what does SSL_CERT_FILE name?") from exc
