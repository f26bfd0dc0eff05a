"""Errors, named by what the caller should do next.

Every error that leaves a public function is one of six classes. Each has a stable
`code`, an HTTP status and an exit code, and a section in `docs/errors.md`.
Messages say where, what was expected and what came.
"""

from typing import ClassVar


class SlmopsError(Exception):
    """Base of all errors this project raises on purpose."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1


class InvalidInputError(SlmopsError, ValueError):
    """The input is wrong: fix it."""

    code = "invalid_input"
    http_status = 422
    exit_code = 2


class NotFoundError(SlmopsError, LookupError):
    """What was named does not exist: name something else."""

    code = "not_found"
    http_status = 404
    exit_code = 3


class ConflictError(SlmopsError):
    """The world changed or forbids this now: read again, decide."""

    code = "conflict"
    http_status = 409
    exit_code = 4


class UntrustedError(SlmopsError):
    """A signature, digest or credential does not hold: stop, tell a person."""

    code = "untrusted"
    http_status = 403
    exit_code = 5


class OverBudgetError(SlmopsError):
    """Nothing fits the budget: relax it."""

    code = "over_budget"
    http_status = 409
    exit_code = 6


class UnavailableError(SlmopsError):
    """Something needed is not there now: retry later."""

    code = "unavailable"
    http_status = 503
    exit_code = 7


ERROR_CLASSES: tuple[type[SlmopsError], ...] = (
    InvalidInputError,
    NotFoundError,
    ConflictError,
    UntrustedError,
    OverBudgetError,
    UnavailableError,
)
"""The six classes, in the order of their exit codes."""
