"""
Signals between the processes on one SQLite file: a datagram that names a channel, and nothing else.

Each process binds a socket of its own in a directory next to the file, which only the file's owner can enter. A signal
may be lost; its receivers also wake by themselves. On platforms without such sockets, none is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

_MOST_BYTES = 64


class LocalSignals:
    """Sends to all other processes with the same *directory*; calls *receive* with what they send."""

    def __init__(self, directory: Path, receive: Callable[[str], None]) -> None:
        self._directory = directory
        self._receive = receive
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._socket: socket.socket | None = None
        self._descriptor: int | None = None

    def open(self) -> None:
        """Start receiving, in the running event loop."""
        if not hasattr(socket, "AF_UNIX"):
            return
        with contextlib.suppress(OSError):  # no such sockets here: signals are not needed
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._descriptor = os.open(self._directory, os.O_RDONLY)
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            made.setblocking(False)
            try:
                made.bind(self._address(self._name))
            except OSError:
                made.close()
                raise
            self._socket = made
            asyncio.get_running_loop().add_reader(made, self._read)

    def send(self, channel: str) -> None:
        """Signal *channel*. Sockets of processes that died are removed on the way."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            for name in os.listdir(self._directory):
                if name == self._name:
                    continue
                try:
                    self._socket.sendto(channel.encode(), self._address(name))
                except ConnectionRefusedError:
                    (self._directory / name).unlink(missing_ok=True)
                except OSError:  # its buffer is full: it will wake anyway
                    continue

    def close(self) -> None:
        """Stop receiving."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            (self._directory / self._name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others still use it
                self._directory.rmdir()
            self._socket = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._socket is not None:
                self._receive(self._socket.recv(_MOST_BYTES).decode("ascii", "replace"))

    def _address(self, name: str) -> str:
        """Return a short address: addresses are limited to about a hundred bytes, directory names are not."""
        through = f"/proc/self/fd/{self._descriptor}/{name}"
        return through if os.path.isdir("/proc/self/fd") else str(self._directory / name)
