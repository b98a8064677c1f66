"""Spent tokens: sign-in links that were used and sessions that were signed out, kept until they would end anyway."""

from __future__ import annotations

from datetime import datetime

from receiver.store.codecs import us
from receiver.store.database import Database
from receiver.store.statements import Run, Work, first

_SPEND = "INSERT INTO spent_tokens (id, until) VALUES (?, ?) ON CONFLICT (id) DO NOTHING"
_FORGET = "DELETE FROM spent_tokens WHERE until < ?"
_KNOWN = "SELECT 1 FROM spent_tokens WHERE id = ?"


class SpentTokens:
    """The statements about tokens that are no longer valid, although their signatures are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def spend(self, token_id: str, now: datetime, *, until: datetime) -> bool:
        """Spend a token that would be valid *until* then. False: it was spent before."""

        def work() -> Work[bool]:
            yield Run(_FORGET, (us(now),))
            return bool((yield Run(_SPEND, (token_id, us(until)))) == 1)

        return await self._database.write(work)

    async def spent(self, token_id: str) -> bool:
        return await self._database.read(lambda: first(_KNOWN, token_id)) is not None
