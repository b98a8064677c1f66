"""
Runs a program that can't outlive us: `python parent_death.py PARENT PROGRAM ARGUMENT…`, with the parent's process id.

Linux ends a process when its parent dies for any reason, if the process requested it (PR_SET_PDEATHSIG); the request
survives the exec. It has to be made inside the child, hence this file. On systems without such a call the program is
simply run, and ends only with an orderly exit of the parent. Imports none of our modules, so that it starts at once.
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
