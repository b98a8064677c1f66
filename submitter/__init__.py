"""
Speak to AI upscaling APIs: one vocabulary over five protocols, usable in a script without any server.

    provider = build("novita", api_key=key)
    async with Submitter(provider) as submitter:
        report = await submitter.upscale(Path("photo.jpg"), {"scale_factor": 2})

`submitter.remote` is the SDK for a running receiver, which adds callbacks, durability and notifications.
"""

from submitter.client import Submitter
from submitter.images import inspect
from submitter.providers import PROVIDERS, build
from submitter.signatures import verify
from submitter.vocabulary import Callback, Cost, Failure, Image, Picture, Report, State, Task, Trust

__all__ = [
    "PROVIDERS",
    "Callback",
    "Cost",
    "Failure",
    "Image",
    "Picture",
    "Report",
    "State",
    "Submitter",
    "Task",
    "Trust",
    "build",
    "inspect",
    "verify",
]
