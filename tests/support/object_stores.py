"""A local S3 server, in a process of its own, with a bucket."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import httpx

from receiver.store.object_store import ObjectStore
from tests.support.ports import free_port
from tests.support.waiting import eventually

_SERVE = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"


class Bucket:
    """The bucket and how to reach it."""

    url = "s3://pictures/receiver"

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "s3cret-of-the-store",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    async def contents(self, store: ObjectStore) -> dict[str, bytes]:
        """All objects."""
        return {key: b"".join([piece async for piece in store.read(key)]) for key in await store.keys("")}


@contextlib.asynccontextmanager
async def bucket() -> AsyncIterator[Bucket]:
    """A new, empty bucket on a server that ends with the block."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _SERVE,
        str(port),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    made = Bucket(port)

    async def there() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return (await client.put(f"{made.endpoint}/pictures")).is_success
        return False

    try:
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            await eventually(there)
        yield made
    finally:
        process.kill()
        await process.wait()
