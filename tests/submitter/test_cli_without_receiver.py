"""Commands of `submitter` where no receiver answers: those that act once give up soon, and say what to do."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.processes import LiveReceiver
from tests.support.submitter_cli import submitter

MOST_TRIES = 20
"""What fits into 10 s of pauses that double up to 2 s, with room to spare; a minute has more than 30 tries."""


class Deaf:
    """Accepts connections, notes what is asked for, and hangs up."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._hang_up, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _hang_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n")
            self.asked[head.split()[1].decode()] += 1
        writer.transport.abort()


@pytest.mark.slow
async def test_commands_that_act_once_give_up_soon_and_say_what_to_do(tmp_path: Path) -> None:
    commands = {
        "/v1/jobs/job_1/cancel": ("cancel", "job_1"),
        "/v1/jobs/job_2/poll": ("poll", "job_2"),
        "/v1/jobs/job_3/resubmit": ("resubmit", "job_3"),
        "/v1/jobs/job_4": ("download", "job_4", "--out", str(tmp_path)),
        "/v1/jobs/job_5": ("show", "job_5"),
        "/v1/jobs/job_6/poll": ("poll", "job_6", "job_7", "job_8"),
    }
    deaf = Deaf()
    async with deaf.serve() as port:
        nobody = LiveReceiver(tmp_path / "data", port=port)
        ended = await asyncio.gather(*(submitter(nobody, *command) for command in commands.values()))
    for done in ended:
        assert (done.status, done.out) == (1, "")
        assert "is it running?" in done.err and "`receiver serve`" in done.err and "SUBMITTER_RECEIVER_URL" in done.err
        assert done.err.count("\n") == 1
    assert deaf.asked.keys() == commands.keys()  # of several jobs, the first is enough to know
    assert max(deaf.asked.values()) <= MOST_TRIES, deaf.asked
