"""
Several processes on one machine: `receiver serve --processes N`.

The parent opens the listening socket and migrates the database, then only watches: it restarts processes that die,
passes signals on, and ends when all have ended. The last process does the workers' part, the others answer requests.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from receiver.parts import WORKERS, Role
from submitter.printing import say

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_QUICK_SECONDS = 5.0
"""A process that ends earlier than this failed to start."""
_MOST_QUICK_ENDS = 3


def roles_of(number: int, count: int) -> frozenset[Role]:
    """Return the roles of process *number* of *count*."""
    return WORKERS if number == count - 1 else frozenset({Role.WEB})


class Processes:
    """Runs *main(number)* in *count* separate processes; *main* returns an exit status."""

    def __init__(self, count: int, main: Callable[[int], int]) -> None:
        self._count = count
        self._main = main
        self._running: dict[int, tuple[int, float]] = {}
        self._stopping = False
        self._quick_ends = 0

    def run(self) -> int:
        """Return once all have ended: 0 after a signal, else the status of those that could not start."""
        before = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        try:
            for number in range(self._count):
                self._start(number)
            return self._watch()
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _start(self, number: int) -> None:
        process_id = os.fork()
        if process_id == 0:
            for name in _SIGNALS:
                signal.signal(name, signal.SIG_DFL)
            status = 1
            try:
                status = self._main(number)
            finally:
                os._exit(status)
        self._running[process_id] = (number, time.monotonic())

    def _watch(self) -> int:
        status = 0
        while self._running:
            process_id, wait_status = os.wait()
            number, started = self._running.pop(process_id, (-1, 0.0))
            if number < 0 or self._stopping:
                continue
            code = os.waitstatus_to_exitcode(wait_status)
            say(f"receiver: process {number} ended with {code}; it is started again", err=True)
            unwell = code >= 0 and time.monotonic() - started < _QUICK_SECONDS  # below 0, a signal ended it
            self._quick_ends = self._quick_ends + 1 if unwell else 0
            if self._quick_ends >= _MOST_QUICK_ENDS:
                status = code if code > 0 else 1
                self._stop(signal.SIGTERM, None)
            else:
                self._start(number)
        return status

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        for process_id in list(self._running):
            try:
                os.kill(process_id, signal.SIGTERM)
            except ProcessLookupError:
                continue
