"""
Peers to compare the receiver with: `python -m tests.bench.peers nothing|naive PORT DIRECTORY`.

`nothing` is a Starlette route that does nothing; `naive` checks the same token and signature and writes each callback
in a commit of its own. Both run under uvicorn as it comes, on the event loop and with the collector's settings that the
receiver has. `nothing` also serves a picture slowly, so that the receiver's archive has somebody to fetch results from,
as in life.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import aiosqlite
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from receiver.domain.tokens import TokenInvalid, Tokens
from receiver.runtime.server import listen, run
from submitter.errors import CallbackRefused
from submitter.providers.freepik import Freepik
from submitter.sandbox import test_picture
from submitter.vocabulary import Callback


def nothing() -> Starlette:
    picture = test_picture(64, 64)

    async def ok(request: Request) -> Response:
        return Response()

    async def result(request: Request) -> Response:
        await asyncio.sleep(2)
        return Response(picture, media_type="image/jpeg")

    return Starlette(
        routes=[
            Route("/callbacks/{provider}/{token}", ok, methods=["POST"]),
            Route("/results/{name}", result),
        ]
    )


def naive(directory: Path) -> Starlette:
    freepik = Freepik(api_key="-", webhook_secrets=[os.environ["FREEPIK_WEBHOOK_SECRET"]])
    tokens = Tokens([os.environ["RECEIVER_SECRET_KEYS"]])
    lock = asyncio.Lock()
    opened: list[aiosqlite.Connection] = []

    async def database() -> aiosqlite.Connection:
        if not opened:
            db = await aiosqlite.connect(directory / "naive.db", isolation_level=None)
            await db.execute("PRAGMA journal_mode=WAL")
            await db.execute("PRAGMA synchronous=FULL")
            await db.execute(
                "CREATE TABLE IF NOT EXISTS callbacks (id INTEGER PRIMARY KEY, job TEXT, received_at TEXT,"
                " headers TEXT, body BLOB)"
            )
            opened.append(db)
        return opened[0]

    async def receive(request: Request) -> Response:
        now = datetime.now(UTC)
        try:
            claim = tokens.read_callback(request.path_params["token"])
        except TokenInvalid:
            return PlainTextResponse("unknown\n", 404)
        headers = tuple(request.headers.raw)
        body = await request.body()
        try:
            freepik.verify(Callback(headers, body, now), now)
        except CallbackRefused:
            return PlainTextResponse("refused\n", 401)
        as_text = json.dumps([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])
        async with lock:
            db = await database()
            await db.execute("BEGIN IMMEDIATE")
            await db.execute(
                "INSERT INTO callbacks (job, received_at, headers, body) VALUES (?, ?, ?, ?)",
                (claim.job_id, now.isoformat(), as_text, body),
            )
            await db.execute("COMMIT")
        return Response()

    return Starlette(routes=[Route("/callbacks/{provider}/{token}", receive, methods=["POST"])])


async def serve(application: Starlette, port: int) -> int:
    config = uvicorn.Config(application, access_log=False, log_config=None, server_header=False, lifespan="off")
    await uvicorn.Server(config).serve(sockets=[listen("127.0.0.1", port)])
    return 0


if __name__ == "__main__":
    KIND, PORT, DIRECTORY = sys.argv[1:]
    sys.exit(run(serve(nothing() if KIND == "nothing" else naive(Path(DIRECTORY)), int(PORT))))
