"""
AI upscaling through one interface: a client of a running receiver, and the providers themselves.

    with Client() as client:
        paths = client.upscale("freepik", "photo.jpg", options={"scale_factor": "2x"})

`Client` and `AsyncClient` talk to a receiver, which adds callbacks, durability, kept images and webhooks. Without any
server, `build` and `Submitter` talk to a provider directly:

    async with Submitter(build("novita", api_key=key)) as submitter:
        report = await submitter.upscale(Path("photo.jpg"), {"scale_factor": 2})

`submitter.webhooks` verifies and reads what a receiver sends to an application.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "client": ("Submitter",),
    "errors": (
        "CallbackRefused",
        "Conflict",
        "Invalid",
        "JobFailed",
        "NoReceiver",
        "NotFound",
        "Overloaded",
        "ReceiverError",
        "RequestRefused",
        "SubmitterError",
        "Unauthorized",
    ),
    "images": ("inspect",),
    "providers": (
        "PROVIDERS",
        "build",
    ),
    "sdk.async_client": ("AsyncClient",),
    "sdk.event_types": (
        "EndpointEvent",
        "Event",
        "JobEvent",
        "ProviderEvent",
        "UnknownEvent",
    ),
    "sdk.sync_client": ("Client",),
    "sdk.values": (
        "Delivery",
        "Endpoint",
        "Evidence",
        "Health",
        "Job",
        "JobImage",
        "ProviderInfo",
    ),
    "signatures": ("verify",),
    "vocabulary": (
        "Callback",
        "Cost",
        "Failure",
        "Image",
        "Picture",
        "Report",
        "State",
        "Task",
        "Trust",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a name or a submodule on first use, so that commands start, and can be interrupted, at once."""
    if name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    elif name in _MODULES or name == "webhooks":
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
