"""Findings of `receiver doctor`: lines with a grade and a remedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """A line: the check, the result, and what to do about it."""

    check: str
    grade: Grade
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        return {"check": self.check, "grade": self.grade.value, "found": self.found, "remedy": self.remedy}


def ok(check: str, found: str) -> Finding:
    return Finding(check, Grade.OK, found)


def warn(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Grade.WARN, found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Grade.FAIL, found, remedy)


def to_json(findings: Sequence[Finding]) -> str:
    """Return all findings as JSON, for scripts."""
    return json.dumps({"healthy": healthy(findings), "items": [finding.to_json() for finding in findings]}, indent=2)


def healthy(findings: Sequence[Finding]) -> bool:
    return all(finding.grade is not Grade.FAIL for finding in findings)
