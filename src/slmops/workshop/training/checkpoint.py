"""Checkpoints of a training run: one file each, replaced whole.

Plain safetensors, so that reading one back runs nothing. A file that a kill or a full
disk cut off is as good as none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

_DOCUMENT = "slmops"


def save_tensors(path: Path, tensors: Mapping[str, Any], document: str = "") -> None:
    """Write tensors and one text, replacing the file in one step."""
    partial = path.with_suffix(".partial")
    plain = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(plain, partial, metadata={_DOCUMENT: document})
    partial.replace(path)


def load_tensors(path: Path) -> tuple[dict[str, Any], str] | None:
    """Read tensors and text back, or return None when there is no whole file."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, (file.metadata() or {}).get(_DOCUMENT, "")
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError):
        return None


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Any]
) -> dict[str, Any]:
    """Return AdamW's two moments by parameter, named ``m:`` and ``v:``."""
    found: dict[str, Any] = {}
    for name, parameter in named.items():
        state = optimizer.state.get(parameter)
        if state:
            found[f"m:{name}"] = state["exp_avg"]
            found[f"v:{name}"] = state["exp_avg_sq"]
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, Any],
    tensors: Mapping[str, Any],
    step: int,
) -> None:
    """Undo `optimizer_tensors`, as after `step` steps."""
    for name, parameter in named.items():
        if f"m:{name}" in tensors:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                "exp_avg": tensors[f"m:{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"v:{name}"].to(parameter.device),
            }
