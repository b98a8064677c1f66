"""
`receiver` and `submitter` in processes of their own, forked from a process that has imported them.

An interpreter that imports the receiver computes for most of a second, and the suite starts hundreds; here it is done
once, as is reading the certificates. What is forked has its own pid, environment, directory, descriptors, signals and
exit status, as any process. What an interpreter does at its start or end needs a real one
(`asyncio.create_subprocess_exec`).

`python -m tests.support.forking NAME` is the parent, one for all processes of the suite. It listens on the abstract
socket NAME and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Literal, NoReturn

from receiver.cli import cli as receiver_cli
from receiver.settings import SettingsInvalid, load
from receiver.store.schema import newest_schema
from receiver.web import openapi
from receiver.web.page.rendering import compiled_templates
from submitter import shell, tls
from submitter.cli import cli as submitter_cli
from submitter.providers import PROVIDERS
from tests.support.engines import on_engine

ROOT = Path(__file__).parent.parent.parent
Program = Literal["receiver", "submitter", "mortal receiver"]
_MODULES = {
    "receiver": "receiver.cli",
    "submitter": "submitter.cli",
    "mortal receiver": "tests.support.crashing",
}
_LARGEST = 100_000
_SHARED = "TESTS_FORKING_PARENT"


class Forked:
    """A running program; the methods are those of `asyncio.subprocess.Process`."""

    def __init__(self, pid: int, ending: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.create_task(self._wait(ending), name=f"process {pid}")

    async def _wait(self, ending: socket.socket) -> int:
        with ending:
            answer = await asyncio.get_running_loop().sock_recv(ending, 100)
        self.returncode = int(answer or b"-9")
        return self.returncode

    async def wait(self) -> int:
        """The exit status; negative for the signal that ended it."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


async def fork(
    program: Program, *arguments: str, environment: Mapping[str, str], directory: Path, out: IO[bytes], err: IO[bytes]
) -> Forked:
    """Start *program* with *arguments* in *directory*; its input is empty, and a receiver is on the suite's engine."""
    given = dict(environment) if program == "submitter" else on_engine(environment, directory)
    order = json.dumps([program, arguments, given, str(directory)]).encode()
    assert len(order) < _LARGEST
    ending = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ending.connect(_parent())
    with open(os.devnull, "rb") as nothing:
        socket.send_fds(ending, [order], [nothing.fileno(), out.fileno(), err.fileno()])
    ending.setblocking(False)
    return Forked(int(await asyncio.get_running_loop().sock_recv(ending, 100)), ending)


async def run(
    program: Program, *arguments: str, environment: Mapping[str, str], directory: Path
) -> tuple[int, bytes, bytes]:
    """Run *program* to its end; returns its exit status and what it printed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = await fork(program, *arguments, environment=environment, directory=directory, out=out, err=err)
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
        for file in (out, err):
            file.seek(0)
        return status, out.read(), err.read()


def share_parent() -> None:
    """Start the parent for this process and for those that it starts."""
    os.environ[_SHARED] = _parent()[1:]


@functools.cache
def _parent() -> str:
    if _SHARED in os.environ:
        return f"\0{os.environ[_SHARED]}"
    name = f"\0receiver-tests-{os.getpid()}"
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forking", name[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(ROOT)},
    )
    atexit.register(parent.communicate)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    return name


# --- The parent -----------------------------------------------------------------------------------------------------


def _main(name: str) -> None:
    for package in ("receiver", "submitter"):
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if not any(part in module.name for part in ("__main__", ".contrib.", ".migrations.", ".testing.")):
                importlib.import_module(module.name)
    _warm_up()
    gc.collect()
    gc.freeze()
    running: dict[int, socket.socket] = {}
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{name}")
    listener.listen(100)
    selector = selectors.DefaultSelector()
    for source in (listener, woken, sys.stdin.buffer):
        selector.register(source, selectors.EVENT_READ)
    os.write(1, b"ready\n")
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if sys.stdin.buffer in ready:
            return
        if woken in ready:
            woken.recv(4096)
            _reap(running)
        if listener in ready:
            connection, _ = listener.accept()
            order, given, _, _ = socket.recv_fds(connection, _LARGEST, 3)
            pid = os.fork()
            if pid == 0:
                _become(order, given)
            for descriptor in given:
                os.close(descriptor)
            running[pid] = connection
            connection.send(str(pid).encode())


def _warm_up() -> None:
    """Do what every start of a program does once, whatever its arguments and settings."""
    for name in (
        "anyio._backends._asyncio",
        "typer.rich_utils",
        "uvicorn.lifespan.off",
        "uvicorn.loops.auto",
        "uvloop",
    ):
        importlib.import_module(name)
    for cli in (receiver_cli, submitter_cli):
        list(shell.command_of(cli).commands.values())  # the receiver's are made on access
    with contextlib.suppress(SettingsInvalid):
        load()
    openapi.routes(PROVIDERS)
    compiled_templates()
    tls.context()
    newest_schema()


def _reap(running: dict[int, socket.socket]) -> None:
    for pid, connection in list(running.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with running.pop(pid), contextlib.suppress(OSError):
                connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(order: bytes, given: list[int]) -> NoReturn:
    """Run the program that is asked for in this process."""
    program, arguments, environment, directory = json.loads(order)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for target, descriptor in enumerate(given):
        os.dup2(descriptor, target)
    os.closerange(3, 1000)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.path[0] = ""
    encoding, _, errors = environment.get("PYTHONIOENCODING", "utf-8").partition(":")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        handling = "backslashreplace" if name == "stderr" else errors or "strict"
        opened = open(  # noqa: SIM115 (for as long as the process lives)
            number,
            "w" if number else "r",
            buffering=1 if name == "stderr" else -1,
            encoding=encoding,
            errors=handling,
            closefd=False,
        )
        setattr(sys, name, opened)
    sys.argv = ["-c", *arguments]
    if environment.keys() & {"SSL_CERT_FILE", "SSL_CERT_DIR"}:
        tls.context.cache_clear()
    random.seed()
    status: object = 0
    try:
        importlib.import_module(_MODULES[program]).main()
    except SystemExit as exc:
        status = exc.code
    # All that an interpreter does at its end but to take its modules down, which would compute for longer than most
    # commands.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 1 if status else 0)


if __name__ == "__main__":
    _main(sys.argv[1])
