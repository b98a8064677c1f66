"""Scopes of tokens: all of `/v1`, or only reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from tests.support.running_receiver import running_receiver

READER = {"authorization": "Bearer a-reader-of-the-tests"}


@pytest.mark.parametrize("also_writes", [False, True])
async def test_a_read_token_reads_everything_and_changes_nothing(also_writes: bool, tmp_path: Path) -> None:
    tokens: dict[str, Any] = {"api_tokens": "a-token-of-the-tests" + (",a-reader-of-the-tests" if also_writes else "")}
    async with running_receiver(tmp_path, read_tokens="another-reader,a-reader-of-the-tests", **tokens) as here:
        job = await here.job("novita")
        tried = 0
        for route in here.receiver.app.routes:
            assert isinstance(route, Route)
            if not route.path.startswith("/v1"):
                continue
            path = route.path.replace("{id}", job.id).replace("{name}", "novita").replace("{n}", "0")
            for method in route.methods or ():
                tried += 1
                answer = await here.client.request(method, path, headers=READER)
                if method in ("GET", "HEAD") or also_writes:
                    assert answer.status_code not in (401, 403), (method, path)
                else:
                    assert answer.status_code == 403, (method, path)
                    assert answer.json()["code"] == "read_only_token"
                    assert "read" in answer.json()["detail"]
                    assert "RECEIVER_API_TOKENS" in answer.json()["remedy"]
        assert tried > 20
        wrong = await here.client.get("/v1/jobs", headers={"authorization": "Bearer x"})
        assert (wrong.status_code, wrong.json()["detail"]) == (401, "the bearer token is not valid here")
