"""Name lookups with a name server that hangs, and at the system's limit of threads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

from receiver.net.guard import Guard, NoAnswer
from receiver.net.resolver import SystemResolver
from tests.support.processes import ROOT
from tests.support.waiting import eventually


class HangingNameServer:
    """Answers nothing for names in `.hang` until it is `released`."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        if host.endswith(".hang"):
            self.released.wait(60)
        return [(0, 0, 0, "", ("192.0.2.1", port))]


def look_ups() -> int:
    return sum(thread.name == "lookup" for thread in threading.enumerate())


async def test_a_name_server_that_hangs_takes_so_many_threads_and_no_more() -> None:
    server = HangingNameServer()
    guard = Guard(resolver=SystemResolver(most_threads=4, getaddrinfo=server), resolve_seconds=0.2)
    names = [f"{n}.hang" for n in range(100)]
    answers = await asyncio.gather(*(guard.resolve(name, 443) for name in names), return_exceptions=True)
    assert all(isinstance(answer, NoAnswer) and answer.reason == "name" for answer in answers)
    assert look_ups() <= 4
    assert len(server.asked) == 4
    server.released.set()
    await eventually(lambda: look_ups() == 0)
    resolver = SystemResolver(most_threads=4, getaddrinfo=server)
    assert await resolver("good.example", 443) == ["192.0.2.1"]


async def test_lookups_of_one_host_are_shared_and_giving_up_takes_no_other_callers_answer() -> None:
    server = HangingNameServer()
    resolver = SystemResolver(most_threads=1, getaddrinfo=server)
    waiting = [asyncio.create_task(resolver("one.hang", 443)) for _ in range(20)]
    await eventually(lambda: server.asked)
    waiting[0].cancel()
    server.released.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [["192.0.2.1"]] * 19
    assert server.asked == ["one.hang"]
    assert await resolver("two.example", 443) == ["192.0.2.1"], "its place is free again"


AT_THE_LIMIT = """
import asyncio, threading
from receiver.net.guard import Guard, NoAnswer

async def main():
    def refuse(self):
        raise RuntimeError("can't start new thread")
    threading.Thread.start = refuse
    guard = Guard()
    for _ in range(100):
        try:
            await guard.resolve("name.example", 443)
        except NoAnswer as exc:
            assert exc.reason == "name"
        else:
            raise AssertionError

asyncio.run(main())
print("done")
"""


async def test_without_a_thread_there_is_no_answer_and_no_place_is_lost() -> None:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", AT_THE_LIMIT], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stdout == "done\n", done.stderr
