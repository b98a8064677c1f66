"""The README, and the code in it."""

from __future__ import annotations

import re

from tests.support.processes import ROOT

README = (ROOT / "README.md").read_text()
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""The endpoint's secret in its snippets."""


def snippet(name: str) -> str:
    """The code block that follows the marker *name*."""
    found = re.search(rf"<!-- snippet: {name} -->\n```\w+\n(.*?)```\n", README, re.DOTALL)
    assert found is not None, f"the README has no snippet {name}"
    return found[1]
