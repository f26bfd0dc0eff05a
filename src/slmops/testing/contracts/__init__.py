"""Contract suites: one per Protocol, passed by every implementation."""
