"""How the suite is run."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile

import pytest

_MEMORY = "/dev/shm"
_ROOM = 4 << 30

if "TMPDIR" not in os.environ and os.path.isdir(_MEMORY) and shutil.disk_usage(_MEMORY).free > _ROOM:
    # Thousands of small databases that are synced to a disk are a third of what the suite waits for.
    os.environ["TMPDIR"] = tempfile.tempdir = _MEMORY

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job; programs that the tests start and interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """
    Run the suite in one process more than there are cores, since tests wait more than they compute.

    A single file or named tests run in this process, where a debugger and `-s` work.
    """
    named = [argument for argument in config.args if "::" in argument or argument.endswith(".py")]
    if named == config.args and len({argument.partition("::")[0] for argument in named}) == 1:
        return 0
    return min((os.cpu_count() or 1) + 1, 8)
