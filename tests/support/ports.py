"""Ports for servers that are started later, in processes of their own."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path

_FIRST, _LAST = 20_000, 32_000
"""Below the ephemeral range of Linux: no outgoing connection takes one of these before the server does."""


def free_port() -> int:
    """A loopback port that nobody listens on and no other test is given soon: each takes the next."""
    with (Path(tempfile.gettempdir()) / f"upscale-receiver-test-port-{os.getuid()}").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        port = int(file.read() or _FIRST)
        for _ in range(_LAST - _FIRST):
            port = port + 1 if port < _LAST else _FIRST
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            file.truncate(0)
            file.write(str(port))
            return port
    raise AssertionError("no port is free")
