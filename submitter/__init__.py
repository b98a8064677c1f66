"""
AI upscaling through one interface: a client of a running receiver, and the providers themselves.

    with Client() as client:
        paths = client.upscale("freepik", "photo.jpg", options={"scale_factor": "2x"})

`Client` and `AsyncClient` speak to a receiver, which adds callbacks, durability, kept images and webhooks. Without any
server, `build` and `Submitter` speak to a provider directly:

    async with Submitter(build("novita", api_key=key)) as submitter:
        report = await submitter.upscale(Path("photo.jpg"), {"scale_factor": 2})

`submitter.webhooks` verifies and reads what a receiver sends to an application.
"""

from submitter.client import Submitter
from submitter.errors import (
    CallbackRefused,
    Conflict,
    Invalid,
    JobFailed,
    NoReceiver,
    NotFound,
    Overloaded,
    ReceiverError,
    RequestRefused,
    SubmitterError,
    Unauthorized,
)
from submitter.images import inspect
from submitter.providers import PROVIDERS, build
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.event_types import EndpointEvent, Event, JobEvent, ProviderEvent, UnknownEvent
from submitter.sdk.sync_client import Client
from submitter.sdk.values import Delivery, Endpoint, Evidence, Health, Job, JobImage, ProviderInfo
from submitter.signatures import verify
from submitter.vocabulary import Callback, Cost, Failure, Image, Picture, Report, State, Task, Trust

__all__ = [
    "PROVIDERS",
    "AsyncClient",
    "Callback",
    "CallbackRefused",
    "Client",
    "Conflict",
    "Cost",
    "Delivery",
    "Endpoint",
    "EndpointEvent",
    "Event",
    "Evidence",
    "Failure",
    "Health",
    "Image",
    "Invalid",
    "Job",
    "JobEvent",
    "JobFailed",
    "JobImage",
    "NoReceiver",
    "NotFound",
    "Overloaded",
    "Picture",
    "ProviderEvent",
    "ProviderInfo",
    "ReceiverError",
    "Report",
    "RequestRefused",
    "State",
    "Submitter",
    "SubmitterError",
    "Task",
    "Trust",
    "Unauthorized",
    "UnknownEvent",
    "build",
    "inspect",
    "verify",
]
