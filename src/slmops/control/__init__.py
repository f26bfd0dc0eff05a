"""The fleet's brain: devices, releases, rollouts, reports, audit, dashboard."""
