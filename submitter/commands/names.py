"""Names that users type, such as a provider's: checked with the names that there are, and completed by the shell."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from submitter.printing import failed
from submitter.providers import PROVIDERS


def check_names(given: Iterable[str], known: Collection[str], thing: str) -> None:
    """Raise `CommandFailed` for the first *given* name that is not among the *known* names of a *thing*."""
    for name in given:
        if name not in known:
            raise failed(f"there is no {thing} {name!r}; use one of {', '.join(known)}", status=2)


def check_provider(name: str | None) -> None:
    """Raise `CommandFailed` for a name that no provider has; None, for any provider, passes."""
    check_names([] if name is None else [name], PROVIDERS, "provider")


def complete_provider(incomplete: str) -> list[str]:
    return [name for name in PROVIDERS if name.startswith(incomplete)]
