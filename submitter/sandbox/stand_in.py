"""
`StandIn`: a provider's protocol, and the little that all five share; `CallingStandIn` for those that call back.

A stand-in is one file in this package and one line in `app.py`. It is written from the provider's documentation alone
and shares no code with `submitter.providers`, of which it is an independent check.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from submitter.sandbox.files import Admits, File, before_expiry
from submitter.sandbox.outbound import Outbound
from submitter.sandbox.settings import Settings
from submitter.sandbox.tasks import Order, RemoteTask, TaskLog
from submitter.sandbox.upscaling import Studio

Handler = Callable[[Request], Awaitable[Response]]


class Refused(Exception):
    """A request that the real provider would refuse, with the answer that it would give."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


@dataclass(frozen=True, slots=True)
class CallbackRules:
    """A provider's rules for callbacks: its patience, the delay before each retry, and the answers it accepts."""

    timeout_seconds: float
    retry_delays_seconds: tuple[float, ...] = ()
    content_with: frozenset[int] = frozenset(range(200, 300))


class StandIn(ABC):
    """The server side of a provider's protocol. State words are the provider's own."""

    name: ClassVar[str]
    mount: ClassVar[str]
    """Path of the base URL below the sandbox's origin."""
    running: ClassVar[tuple[str, ...]]
    """The states of a task before it ends, in order."""
    succeeded: ClassVar[str]
    failed: ClassVar[str]
    synchronous: ClassVar[bool] = False
    """The submit call is answered when the task has ended."""
    link_seconds: ClassVar[float]
    gone_status: ClassVar[int] = 403
    link_admits: Admits = staticmethod(before_expiry)

    def __init__(self, settings: Settings, tasks: TaskLog, studio: Studio, outbound: Outbound) -> None:
        self.settings = settings
        self.tasks = tasks
        self.studio = studio
        self.outbound = outbound

    @abstractmethod
    def routes(self, *, submit: Handler, status: Handler) -> list[BaseRoute]:
        """Return its paths, below `mount`, with the handlers of its submit and status calls."""

    @abstractmethod
    def admit(self, request: Request) -> None:
        """Check the key; raises `Refused`."""

    @abstractmethod
    async def read(self, request: Request) -> Order:
        """Check a submit call; raises `Refused`."""

    @abstractmethod
    def accepted(self, request: Request, task: RemoteTask) -> Response:
        """Return the answer to an accepted submit call; a synchronous provider's task has ended by then."""

    @abstractmethod
    def fault_response(self, fault: str) -> Response:
        """Return its answer for `busy`, `unavailable`, `server_error`, `bad_key` or `no_credit`."""

    @abstractmethod
    def not_found(self) -> Response:
        """Return its answer to an unknown path."""

    async def looked_up(self, request: Request) -> Response:
        """Return the answer to a status call with a good key; a provider without that call doesn't know the path."""
        return self.not_found()

    def new_id(self) -> str:
        """Return a new task id in the provider's form."""
        return str(uuid.uuid4())

    def link(self, task: RemoteTask, file: File) -> str:
        """Return the file's URL as the client gets it now."""
        return task.origin + file.path

    def file_name(self, task: RemoteTask, suffix: str) -> str:
        return f"output.{suffix}"

    @classmethod
    def states(cls) -> tuple[str, ...]:
        return (*cls.running, cls.succeeded, cls.failed)


class CallingStandIn(StandIn):
    """A stand-in that calls back."""

    announced: ClassVar[frozenset[str]]
    """The states that it sends callbacks about."""
    rules: ClassVar[CallbackRules]

    @classmethod
    def announced_words(cls) -> tuple[str, ...]:
        """Return the announced states in order, as people write them: lower case, without the provider's prefix."""
        return tuple(state.removeprefix("TASK_STATUS_").lower() for state in cls.states() if state in cls.announced)

    @classmethod
    def announced_state(cls, word: str) -> str:
        """Return the announced state for a person's *word*. Raises ValueError that lists them."""
        wanted = word.strip().casefold().removeprefix("task_status_")
        for state in cls.states():
            if state in cls.announced and state.casefold().removeprefix("task_status_") == wanted:
                return state
        raise ValueError(f"state must be one of {', '.join(cls.announced_words())}")

    @abstractmethod
    def callback_body(self, task: RemoteTask, state: str) -> bytes:
        """Return the body of its callback about *state*."""

    def callback_headers(self, body: bytes) -> dict[str, str]:
        """Return new headers for one request."""
        return {"content-type": "application/json"}

    @abstractmethod
    def forged_body(self, task: RemoteTask, image_url: str) -> bytes:
        """Return a false success, as a forger would write it."""

    def forged_headers(self, body: bytes) -> dict[str, str]:
        """Return headers, as good as a forger can make them without the secret."""
        return self.callback_headers(body)


# --- Shared by the stand-ins
# --------------------------------------------------------------------------------------------


def same_key(given: str | None, key: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), key.encode())


def bearer(request: Request) -> str | None:
    """Return the key of `Authorization: Bearer <key>`, or None."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_object(request: Request) -> dict[str, Any] | None:
    """Read the request's JSON object; None if it is anything else or not declared as JSON."""
    if content_type(request) != "application/json":
        return None
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def raw_base64(value: Any) -> bytes | None:
    """Decode strict base64 without a `data:` prefix, or return None."""
    if not isinstance(value, str) or not value:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None


def is_url(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("http://", "https://")) and len(value.split("/", 3)[2]) > 0


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def unknown(body: Mapping[str, Any], known: Iterable[str], prefix: str = "") -> list[str]:
    """Return undocumented names in *body*. The real providers ignore them; a test may want to know."""
    return sorted(prefix + name for name in body.keys() - set(known))
