"""
For tests of applications that use a receiver: a real one with sandboxed providers, and signed sample events.

Installing the package gives pytest the fixture `receiver` (see `SandboxedReceiver`):

    def test_my_handler(client):
        headers, body = sample_event("job.succeeded", SECRET)
        assert client.post("/hooks", headers=headers, content=body).status_code == 204

    def test_my_pipeline(receiver, tmp_path):
        receiver.faults = Faults(lose=1.0)            # every callback gets lost: the receiver polls
        with receiver.client() as client:
            client.upscale("freepik", "photo.jpg", out=tmp_path)
"""

from submitter.sandbox import Faults
from submitter.testing.samples import EVENT_TYPES, sample_event
from submitter.testing.sandboxed import SandboxedReceiver

__all__ = ["EVENT_TYPES", "Faults", "SandboxedReceiver", "sample_event"]
