"""
Local stand-ins for the five upscaling APIs, with faults on demand.

    sandbox = Sandbox(turnaround_seconds=(0.1, 0.3), seed=1, faults=Faults(lose=0.2, duplicate=1))
    async with sandbox.serve() as origin:
        base_urls = sandbox.base_urls(origin)

Or on its own: `python -m submitter.sandbox --port 8100`.
"""

from submitter.sandbox.app import API_KEYS, CALLBACK_STATES, FREEPIK_WEBHOOK_SECRET, Sandbox, announced_state
from submitter.sandbox.faults import Chance, Faults
from submitter.sandbox.picture import test_picture
from submitter.sandbox.tasks import Attempt, RemoteTask, SentCallback
from submitter.sandbox.twist import TWIST_FAULTS, Twist

__all__ = [
    "API_KEYS",
    "CALLBACK_STATES",
    "FREEPIK_WEBHOOK_SECRET",
    "TWIST_FAULTS",
    "Attempt",
    "Chance",
    "Faults",
    "RemoteTask",
    "Sandbox",
    "SentCallback",
    "Twist",
    "announced_state",
    "test_picture",
]
