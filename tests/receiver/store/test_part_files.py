"""Files on their way in: those of a living process are left alone, those of a dead one are dropped."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

from receiver.store.part_files import PartFiles
from submitter.sandbox import test_picture as picture_bytes
from tests.support.processes import ROOT, TOKEN, LiveReceiver, live
from tests.support.waiting import patiently

_WRITER = """
import sys, time
from pathlib import Path
from receiver.store.part_files import PartFiles
parts = PartFiles(Path(sys.argv[1]))
parts.claim()
path = parts.path()
path.write_bytes(b"half of a picture")
print(path, flush=True)
time.sleep(600)
"""


async def test_parts_of_a_killed_process_are_dropped_and_those_of_a_living_one_are_not(tmp_path: Path) -> None:
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, str(tmp_path), cwd=ROOT, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    part = Path((await patiently(writer.stdout.readline())).decode().strip())
    second = PartFiles(tmp_path)
    second.claim()
    assert part.read_bytes() == b"half of a picture"
    writer.send_signal(signal.SIGKILL)
    await writer.wait()
    own = second.path()
    own.touch()
    third = PartFiles(tmp_path)
    third.claim()
    assert list((tmp_path / "parts").iterdir()) == [own]
    second.release()
    third.release()
    assert list((tmp_path / "writers").iterdir()) == []


async def test_a_second_server_leaves_the_uploads_of_the_first_alone(tmp_path: Path) -> None:
    picture = picture_bytes(160, 120)
    job = json.dumps({"provider": "freepik"})
    body = (
        f'--B\r\nContent-Disposition: form-data; name="job"\r\n\r\n{job}\r\n'
        '--B\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    ).encode() + picture
    ending = b"\r\n--B--\r\n"
    async with live(tmp_path) as (first, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", first.port)
        head = (
            f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n"
            f"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {len(body) + len(ending)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        second = LiveReceiver(first.data_dir, first.environment)
        await second.start()
        try:
            writer.write(ending)
            await writer.drain()
            answer = await patiently(reader.read())
            assert answer.startswith(b"HTTP/1.1 202"), answer
        finally:
            writer.close()
            await second.stop()
