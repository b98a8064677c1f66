"""A large picture on its whole way to the provider takes little memory. How fast: `python -m tests.bench upload`."""

import asyncio
from pathlib import Path

import httpx
import pytest

from receiver.domain.tokens import Tokens
from submitter.sandbox import test_picture as picture_bytes
from tests.support.large_uploads import KEY, MB, SIZES, Watch, large_picture, post_picture, receiver_beside_a_sandbox
from tests.support.processes import submit, wait_for_state

SENT = ("running", "succeeded", "failed", "unconfirmed")
MOST_BYTES = 90 * MB


@pytest.mark.slow
@pytest.mark.parametrize("provider", SIZES)
async def test_30_mb_cost_little_memory_on_their_way_to_each_provider(provider: str, tmp_path: Path) -> None:
    async with receiver_beside_a_sandbox(tmp_path) as receiver, receiver.client() as client:
        await submit(client, "freepik", picture_bytes(64, 64))
        path = large_picture(tmp_path / "large.jpg", SIZES[provider])
        watch = Watch(receiver)
        async with watch.watching():
            await wait_for_state(client, await post_picture(receiver, provider, path), *SENT)
    assert watch.peak - watch.idle <= MOST_BYTES


@pytest.mark.slow
async def test_callbacks_are_answered_while_ten_large_pictures_pass_in_little_memory(tmp_path: Path) -> None:
    async with receiver_beside_a_sandbox(tmp_path) as receiver, receiver.client() as client:
        path = large_picture(tmp_path / "large.jpg", 30 * MB)
        job = await submit(client, "apixo", picture_bytes(64, 64))
        url = f"/callbacks/apixo/{Tokens([KEY]).callback(job['id'], 'apixo')}"
        watch = Watch(receiver)
        async with watch.watching():
            posting = [asyncio.create_task(post_picture(receiver, "freepik", path)) for _ in range(10)]
            while not all(task.done() for task in posting):
                assert (await called_back(client, url)).status_code == 200
            for task in posting:
                await wait_for_state(client, task.result(), *SENT)
    assert watch.peak - watch.idle <= MOST_BYTES


async def called_back(client: httpx.AsyncClient, url: str) -> httpx.Response:
    return await client.post(url, json={"code": 200, "data": {"taskId": "x", "state": "processing"}})
