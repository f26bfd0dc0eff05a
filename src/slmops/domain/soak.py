"""What live traffic holds against a new model: one rule, on the device and for the fleet.

The device asks it during its probation, before it commits; the control plane goes on
asking it of every device that committed, from its reports, while the rollout runs.
"""

from dataclasses import dataclass

from slmops.domain.device import Budget

_MAX_FAILED_SHARE = 0.05
_MIN_FAILURES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveCounts:
    """Live traffic of one release on one device, over some time."""

    requests: int = 0
    """Answered or failed."""
    failures: int = 0
    """5xx answers and broken streams."""
    restarts: int = 0
    """Unplanned restarts of the model's process."""
    peak_rss_mib: float | None = None
    """Peak memory of the model's process; None while it was not measured."""

    def since(self, earlier: "LiveCounts") -> "LiveCounts":
        """Return what was counted after `earlier`; a peak has no difference."""
        return LiveCounts(
            requests=self.requests - earlier.requests,
            failures=self.failures - earlier.failures,
            restarts=self.restarts - earlier.restarts,
        )

    def plus(self, more: "LiveCounts") -> "LiveCounts":
        """Return both together; the higher peak."""
        peaks = [
            one.peak_rss_mib for one in (self, more) if one.peak_rss_mib is not None
        ]
        return LiveCounts(
            requests=self.requests + more.requests,
            failures=self.failures + more.failures,
            restarts=self.restarts + more.restarts,
            peak_rss_mib=max(peaks, default=None),
        )


def soak_problem(budget: Budget, counts: LiveCounts) -> str | None:
    """Say what live traffic holds against a model that has still to prove itself.

    As `live_problem`; and memory that is limited but was not measured fails too.

    >>> soak_problem(Budget(), LiveCounts(requests=50, failures=3))
    '3 of 50 live requests failed'
    >>> soak_problem(Budget(), LiveCounts(requests=60, failures=3)) is None
    True
    """
    problem = live_problem(budget, counts)
    if (
        problem is None
        and budget.memory_mib is not None
        and counts.peak_rss_mib is None
    ):
        return (
            "peak memory under live traffic was not measured, the budget is"
            f" {budget.memory_mib:g} MiB"
        )
    return problem


def live_problem(budget: Budget, counts: LiveCounts) -> str | None:
    """Say what live traffic holds against a model that has proved itself, or None.

    Any unplanned restart counts. Failures count from the third and from 5 % of the
    requests: one broken stream is a matter between client and network. Memory counts
    above its budget; a report without that figure says nothing new, the trial has
    measured it.
    """
    if counts.restarts:
        return f"its process ended {counts.restarts} times under live traffic"
    failed = counts.failures >= _MIN_FAILURES
    if failed and counts.failures > _MAX_FAILED_SHARE * counts.requests:
        return f"{counts.failures} of {counts.requests} live requests failed"
    limit, peak = budget.memory_mib, counts.peak_rss_mib
    if limit is not None and peak is not None and peak > limit:
        return f"peak memory {peak:.0f} MiB under live traffic is above the budget {limit:g}"
    return None
