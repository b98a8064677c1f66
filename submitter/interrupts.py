"""Interrupts while a program imports its modules, which takes a good part of a second."""

from __future__ import annotations

import os
import signal
from types import FrameType


def end_quietly(program: str) -> None:
    """Have an interrupt end the process with a message and status 130, until another handler is installed."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{program}: interrupted\n".encode())
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupted)
