"""`receiver open` prints a link that signs in once."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.support.cli import bare_environment, receiver_command
from tests.support.processes import TOKEN, live


async def test_the_link_signs_in_once(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _):
        settings = {"RECEIVER_DATA_DIR": str(receiver.data_dir), "RECEIVER_API_TOKENS": TOKEN}
        done = await receiver_command(
            "open", "--url", receiver.url, "--json", environment=bare_environment(**settings), directory=tmp_path
        )
        assert done.status == 0, done.err
        assert done.json["url"].startswith(f"{receiver.url}/open?token=")
        assert TOKEN not in done.out
        async with httpx.AsyncClient(trust_env=False, follow_redirects=True) as browser:
            page = await browser.get(done.json["url"])
            assert (page.status_code, page.url.path) == (200, "/")
        async with httpx.AsyncClient(trust_env=False, follow_redirects=True) as browser:
            assert (await browser.get(done.json["url"])).status_code == 401


async def test_without_a_dashboard_there_is_no_link(tmp_path: Path) -> None:
    environment = bare_environment(RECEIVER_DATA_DIR=str(tmp_path), RECEIVER_DASHBOARD="off")
    done = await receiver_command("open", environment=environment, directory=tmp_path)
    assert (done.status, done.out) == (1, "")
    assert "RECEIVER_DASHBOARD" in done.err
