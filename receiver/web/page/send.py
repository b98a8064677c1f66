"""
Send: pictures, a provider, its options; then the job's page, or the list if there were several.

A picture may go to several providers at once, with their defaults: then the results are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.upstream.slots import ProviderSlot
from receiver.web.job_request import MAX_INPUT_BYTES
from receiver.web.page.compare import address
from receiver.web.page.gate import FORM_TOKEN, Gate, form_of, new_key, to_page, unreadable_form
from receiver.web.page.notices import notice_query
from receiver.web.page.option_fields import OptionField, option_fields
from receiver.web.page.pictures import Pictures
from receiver.web.page.rendering import Pages
from receiver.web.page.sessions import Session
from receiver.web.problems import Problem
from receiver.web.schemas import options_schema

MOST_FILES = 20
_MOST_BYTES = 4 * MAX_INPUT_BYTES
_MOST_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class SendPage:
    """The form, and its processing."""

    gate: Gate
    pages: Pages
    slots: Mapping[str, ProviderSlot]
    pictures: Pictures
    public_url: Callable[[], str | None]

    def routes(self) -> list[Route]:
        return [
            Route("/send", self.gate.page(self.form), methods=["GET"]),
            Route("/send", self.gate.upload(self.send), methods=["POST"]),
        ]

    async def form(self, request: Request, session: Session) -> Response:
        return await self._form(request, session, request.query_params.get("provider", ""), {})

    async def send(self, request: Request, session: Session) -> Response:
        form = await _form_of(request)
        try:
            self.gate.check_form(session, form.get(FORM_TOKEN))
            name = str(form.get("provider", ""))
            also = [str(other) for other in form.getlist("also")]
            if form.get("show"):  # without JavaScript: the options of another provider
                return await self._form(request, session, name, {}, also=also)
            try:
                job_ids = await self._send(session, name, form)
            except Problem as exc:
                given = {key: value for key, value in form.items() if isinstance(value, str)}
                return await self._form(request, session, name, given, also=also, error=exc)
        finally:
            await form.close()
        if len(job_ids) == 1:
            return to_page(request, f"jobs/{job_ids[0]}?done=sent")
        if len(_files(form)) == 1:
            return to_page(request, address(job_ids))
        return to_page(request, f"jobs?{notice_query('sent-many', count=len(job_ids))}")

    async def _send(self, session: Session, name: str, form: FormData) -> list[str]:
        files = _files(form)
        if not files:
            raise Problem(422, "missing_image", "no image was chosen", field="image", remedy="choose a picture")
        documents = [self._document(name, form)]
        documents += [{"provider": str(also)} for also in dict.fromkeys(form.getlist("also")) if also != name]
        key = str(form.get("key", ""))[:64]
        job_ids: list[str] = []
        for number, file in enumerate(files):
            for document in documents:
                provider = document["provider"]
                once = f"page {key} {number} {provider}" if key.isascii() and key.isprintable() and key else None
                try:
                    await file.seek(0)
                    job = await self.pictures.admit(file, document, token_id=session.caller.token_id, key=once)
                except Problem as exc:
                    if len(files) == len(documents) == 1:
                        raise
                    before = f"; {len(job_ids)} before it were sent" if job_ids else ""
                    detail = f"{file.filename} to {provider}: {exc.detail}{before}"
                    raise Problem(exc.status, exc.code, detail, field=exc.field, remedy=exc.remedy) from exc
                job_ids.append(job.id)
        return job_ids

    def _document(self, name: str, form: FormData) -> dict[str, Any]:
        """Return the request of the form to the chosen provider."""
        if name not in self.slots:
            return {"provider": name}
        return {"provider": name, "options": _options(_fields(self.slots[name]), name, form)}

    async def _form(
        self,
        request: Request,
        session: Session,
        name: str,
        given: Mapping[str, str],
        *,
        also: Sequence[str] = (),
        error: Problem | None = None,
    ) -> Response:
        configured = [known for known, slot in self.slots.items() if slot.configured]
        chosen = name if name in self.slots else (configured or list(self.slots))[0]
        context = {
            "slots": self.slots,
            "configured": configured,
            "chosen": chosen,
            "fields": _fields(self.slots[chosen]),
            "given": given,
            "also": also,
            "key": new_key(),
            "error": error,
            "most_files": MOST_FILES,
            "has_public_url": self.public_url() is not None,
        }
        status = 200 if error is None else error.status
        return await self.pages.answer(request, session, "send.html", context, status=status)


def _fields(slot: ProviderSlot) -> list[OptionField]:
    return option_fields(options_schema(slot.provider.Options))


def _files(form: FormData) -> list[UploadFile]:
    return [file for file in form.getlist("image") if isinstance(file, UploadFile) and file.filename]


def _options(fields: list[OptionField], provider: str, form: FormData) -> dict[str, Any]:
    """Return the values of the filled-in fields of *provider*."""
    options = {}
    for field in fields:
        text = form.get(f"{provider}.{field.name}")
        if isinstance(text, str) and text.strip():
            options[field.name] = field.value(text if field.kind == "text" else text.strip())
    return options


async def _form_of(request: Request) -> FormData:
    try:
        if int(request.headers.get("content-length", "0")) > _MOST_BYTES:
            remedy = f"send fewer or smaller pictures: {_MOST_BYTES // 1024**2} MiB at once"
            raise Problem(413, "too_large", "the pictures are too large together", remedy=remedy)
    except ValueError as exc:
        raise unreadable_form() from exc
    return await form_of(request, max_files=MOST_FILES, max_part_size=_MOST_FIELD_BYTES)
