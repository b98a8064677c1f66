"""
Sessions: signing in with an API token yields a signed cookie that stands for it.

A cookie names its session and the digest of the token, never the token. It is invalid once the token is removed from
the settings, the session was signed out, or a week has passed. Form tokens and sign-in links are signed with the same
keys for purposes of their own.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from itsdangerous import BadData

from receiver.domain.tokens import Tokens
from receiver.store.spent_tokens import SpentTokens
from receiver.web.auth import Bearer, Caller

SESSION_LIFETIME = timedelta(days=7)
LINK_LIFETIME = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in browser, and its token's digest."""

    id: str
    caller: Caller
    form_token: str

    @property
    def may_write(self) -> bool:
        return self.caller.may_write


class Sessions:
    """Begins, recognises and ends sessions."""

    def __init__(self, tokens: Tokens, bearer: Bearer, spent: SpentTokens) -> None:
        self._bearer = bearer
        self._spent = spent
        self._cookies = tokens.signer("session")
        self._forms = tokens.signer("form")
        self._links = tokens.signer("sign-in")

    def begin(self, token: str) -> str | None:
        """Return the cookie of a new session for *token*; None if there is no such token."""
        caller = self._bearer.caller_of(token)
        return None if caller is None else self._new(caller)

    async def begin_by_link(self, link_token: str, now: datetime) -> str | None:
        """Return the cookie of a new session for a sign-in link; None if it was used before, is old or invalid."""
        try:
            said = self._links.unsign(link_token, max_age=int(LINK_LIFETIME.total_seconds())).decode()
        except (BadData, UnicodeError):
            return None
        link_id, _, token_id = said.partition(".")
        caller = self._bearer.caller_with(token_id)
        if caller is None or not await self._spent.spend(link_id, now, until=now + 2 * LINK_LIFETIME):
            return None
        return self._new(caller)

    async def session(self, cookie: str) -> Session | None:
        """Return the session of *cookie*, as long as it lasts."""
        found = self._read(cookie)
        return None if found is None or await self._spent.spent(found.id) else found

    def check_form_token(self, session: Session, given: str) -> bool:
        """Return whether *given* was put into a form for *session*."""
        return secrets.compare_digest(given.encode("utf-8", "replace"), session.form_token.encode())

    async def end(self, session: Session) -> None:
        """Make the session's cookie invalid."""
        now = datetime.now(UTC)
        await self._spent.spend(session.id, now, until=now + SESSION_LIFETIME)

    def _new(self, caller: Caller) -> str:
        return self._cookies.sign(f"{secrets.token_urlsafe(18)}.{caller.token_id}").decode()

    def _read(self, cookie: str) -> Session | None:
        try:
            said = self._cookies.unsign(cookie, max_age=int(SESSION_LIFETIME.total_seconds())).decode()
        except (BadData, UnicodeError):
            return None
        session_id, _, token_id = said.partition(".")
        caller = self._bearer.caller_with(token_id)
        if caller is None:
            return None
        return Session(session_id, caller, self._forms.get_signature(session_id).decode())


def sign_in_link(tokens: Tokens, bearer: Bearer, api_token: str) -> str:
    """Return a token that signs in once, as the holder of *api_token*, within `LINK_LIFETIME`."""
    caller = bearer.caller_of(api_token)
    assert caller is not None
    return tokens.signer("sign-in").sign(f"{secrets.token_urlsafe(18)}.{caller.token_id}").decode()
