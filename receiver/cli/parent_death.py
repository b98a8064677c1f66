"""
Run a program that can't outlive us: `python parent_death.py PARENT PROGRAM ARGUMENT…`, with the parent's process id.

Linux ends a process when its parent dies, however that dies, if the process asked for it (PR_SET_PDEATHSIG); the wish
survives the exec. It has to be asked for inside the child, hence this file. Where there is no such call the program is
simply run, and only an orderly end of the parent ends it. Imports nothing of ours, so that it starts at once.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            sys.exit(1)
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
