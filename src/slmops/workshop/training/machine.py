"""Where torch computes, and how exactly."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One device and the precision of arithmetic on it."""

    device: str
    """``cpu`` or ``cuda``."""
    precision: str
    """``fp32`` or ``bf16``: what products are computed in; weights stay fp32."""

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Compute in the chosen precision inside."""
        with torch.autocast(
            self.device, torch.bfloat16, enabled=self.precision == "bf16"
        ):
            yield

    def seed(self, *numbers: int) -> None:
        """Make what chance there is follow from these numbers."""
        value = 0
        for number in numbers:
            value = (value * 1_000_003 + number) % (1 << 63)
        torch.manual_seed(value)


def open_machine(precision: str, *, threads: int) -> Machine:
    """Choose the device and make its arithmetic repeatable.

    A GPU is used when there is one. Equal runs give equal bits on the same kind of
    device with as many threads; other devices and thread counts add in another order.
    """
    # Read by cuBLAS when it starts; without it its sums are not repeatable.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if _is_bf16_fast(device) else "fp32"
    return Machine(device=device, precision=precision)


def versions() -> dict[str, str]:
    """Return the versions that decide the arithmetic."""
    import peft
    import transformers

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    return {name: str(version) for name, version in found.items()}


def _is_bf16_fast(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Without these instructions bf16 is emulated, several times slower than fp32.
    return bool(torch.cpu._is_avx512_bf16_supported())
