"""The SDK under its first name: `Receiver` is `AsyncClient`. New code imports from `submitter`."""

from submitter.errors import NoReceiver, RequestRefused
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.event_types import Event
from submitter.sdk.values import Job, JobImage
from submitter.signatures import verify

Receiver = AsyncClient

__all__ = ["Event", "Job", "JobImage", "NoReceiver", "Receiver", "RequestRefused", "verify"]
