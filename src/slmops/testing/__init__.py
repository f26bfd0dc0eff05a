"""Public test kit: simulated clock, fleets, contract suites. Only tests import it."""
