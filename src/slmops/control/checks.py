"""What types alone do not say about a device's documents: ranges, lengths, names.

A device is enrolled, not trusted: whatever it may send is bounded, so that one cannot
fill the disk or the memory of the control plane.
"""

from collections.abc import Mapping

from slmops.domain.device import DeviceFacts
from slmops.domain.errors import InvalidInputError
from slmops.domain.ids import check_label, parse_digest
from slmops.domain.report import GRID_CELLS
from slmops.domain.sync import (
    MAX_LABEL_KEY_CHARS,
    MAX_LABEL_VALUE_CHARS,
    MAX_LABELS,
    MAX_QUARANTINED_SENT,
    MAX_REASON_CHARS,
    MAX_REPORTS_SENT,
    InstallationReport,
    Installed,
    Report,
    SyncRequest,
)

_MAX_INTEGER = 2**53
"""Integers beyond are not exact in every JSON reader."""
_MAX_FACT_CHARS = 64
_MAX_RUNTIMES = 32


def check_sync(said: SyncRequest) -> None:
    """Check a sync.

    Raises:
        InvalidInputError: naming the field.
    """
    check_facts(said.facts)
    check_labels(said.labels)
    require_range("assignment", said.assignment)
    _check_installed("active", said.active)
    _check_installed("previous", said.previous)
    _require_at_most("quarantined", len(said.quarantined), MAX_QUARANTINED_SENT)
    for digest in said.quarantined:
        parse_digest(digest)
    if said.installation is not None:
        _check_installation(said.installation)
    _require_at_most("reports", len(said.reports), MAX_REPORTS_SENT)
    last = 0
    for index, report in enumerate(said.reports):
        where = f"reports[{index}]"
        require_range(f"{where}.sequence", report.sequence, low=last + 1)
        last = report.sequence
        _check_report(where, report)


def check_facts(facts: DeviceFacts) -> None:
    """Check what a device says of itself.

    Raises:
        InvalidInputError: naming the field.
    """
    for name in ("memory_mib", "disk_mib", "cpu_count"):
        require_range(f"facts.{name}", getattr(facts, name))
    for name in ("architecture", "os", "agent_version"):
        _check_text(f"facts.{name}", getattr(facts, name), _MAX_FACT_CHARS)
    _require_at_most("facts.runtimes", len(facts.runtimes), _MAX_RUNTIMES)
    for index, runtime in enumerate(facts.runtimes):
        _check_text(f"facts.runtimes[{index}]", runtime, _MAX_FACT_CHARS)


def check_labels(labels: Mapping[str, str]) -> None:
    """Check a device's labels.

    Raises:
        InvalidInputError: naming the label.
    """
    _require_at_most("labels", len(labels), MAX_LABELS)
    for key, value in labels.items():
        _check_text(f"key of label {key[:20]!r}", key, MAX_LABEL_KEY_CHARS)
        _check_text(f"labels[{key!r}]", value, MAX_LABEL_VALUE_CHARS)


def require_range(where: str, value: int, *, low: int = 0) -> None:
    """Check an integer.

    Raises:
        InvalidInputError: naming `where`.
    """
    if not low <= value <= _MAX_INTEGER:
        raise InvalidInputError(
            f"{where} must be in {low}..{_MAX_INTEGER}, got {value}"
        )


def _check_installed(where: str, installed: Installed | None) -> None:
    if installed is not None:
        check_label(installed.release, where=f"{where}.release")
        parse_digest(installed.variant)


def _check_installation(said: InstallationReport) -> None:
    require_range("installation.assignment", said.assignment)
    require_range("installation.bytes_downloaded", said.bytes_downloaded)
    _check_text("installation.reason", said.reason, MAX_REASON_CHARS)
    if said.trial is not None:
        _check_text("installation.trial.reason", said.trial.reason, MAX_REASON_CHARS)


def _check_report(where: str, report: Report) -> None:
    if report.release is not None:
        check_label(report.release, where=f"{where}.release")
    for name in ("requests", "failures", "output_tokens", "restarts"):
        require_range(f"{where}.{name}", getattr(report, name))
    for name in ("first_token_ms", "decode_tokens_per_s"):
        counts: tuple[int, ...] = getattr(report, name)
        if len(counts) not in {0, GRID_CELLS}:
            raise InvalidInputError(
                f"{where}.{name} must have 0 or {GRID_CELLS} counts, got {len(counts)}"
            )
        for count in counts:
            require_range(f"{where}.{name}", count)


def _check_text(where: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidInputError(
            f"{where} must have at most {most} characters, got {len(text)}"
        )


def _require_at_most(where: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidInputError(f"{where} must be at most {most}, got {count}")
