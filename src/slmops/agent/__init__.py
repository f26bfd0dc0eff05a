"""The device side: journal, slots, trial, rollback, and the local OpenAI-style endpoint."""

import sys

# `import httpx` brings httpx's own command line, and with it rich and pygments: a third
# of its time and 4 MiB, for nothing here (https://github.com/encode/httpx/pull/3547).
# None makes that one import fail, which httpx is ready for.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
