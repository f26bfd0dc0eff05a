"""Gates: pure rules with three verdicts, pass, fail and inconclusive (which waits)."""

from dataclasses import dataclass
from enum import StrEnum

RULE_VERSION = "gate-1"
"""Stored with every evaluation; changes when a rule's meaning does."""


class Verdict(StrEnum):
    """What a gate says. Stored; never renamed."""

    PASS = "pass"  # noqa: S105 - a verdict, no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    """A verdict with the reason a person reads."""

    gate: str
    """Which rule: ``stop``, ``advance``, ``trial``."""
    verdict: Verdict
    """What it says."""
    reason: str
    """Why, with figures."""
