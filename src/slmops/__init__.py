"""SLMOps: small language models on fleets of devices that do not look alike.

The package is layered; see `docs/architecture.md` for who may import whom.
"""

__version__ = "0.1.0"
