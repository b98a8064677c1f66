"""`python -m submitter`, and the program `submitter`."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Entry point: an interrupt while the modules are imported, which takes half a second, ends it quietly too."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupted)
    from submitter.cli import main as run

    run()


def _interrupted(number: int, frame: FrameType | None) -> None:
    os.write(2, b"submitter: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
