"""From a 16-bit GGUF to a torch model and back.

What training does not touch is carried exactly: metadata, tokenizer and template are
the source's own bytes. Weights are fp32 in between, because updates are smaller than
16-bit steps.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from slmops.domain.errors import InvalidInputError
from slmops.workshop.gguf_file import GgufHeader, TensorEntry, read_header
from slmops.workshop.gguf_writer import write_gguf
from slmops.workshop.hf_export import export_checkpoint
from slmops.workshop.hf_names import checkpoint_name, interleaved_rows
from slmops.workshop.model_shape import ModelShape, read_shape
from slmops.workshop.quantize import Matrix, encode_rows, read_rows
from slmops.workshop.reference import F16_MAX
from slmops.workshop.training.machine import Machine
from slmops.workshop.training.untyped import Module, Tensor, Tokenizer

_ROPE_FACTORS = "rope_freqs.weight"
_TOKENIZER_KEYS = (
    *("tokens", "merges", "model", "pre", "token_type", "scores"),
    *("bos_token_id", "eos_token_id"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchModel:
    """A model of transformers with fp32 weights, and its tokenizer."""

    source: Path
    """GGUF file it came from."""
    causal: Module
    """``…ForCausalLM``."""
    tokenizer: Tokenizer
    """With the model's own chat template."""

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return (rows, length, width) hidden states of (rows, length) token ids.

        Rows are padded on the right, where causal attention never looks, so there is no
        mask.
        """
        return self.causal.model(input_ids=tokens, use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (positions, vocabulary) fp32 logits of (positions, width) states.

        Always fp32: in bf16 logits are off by several hundredths, which is more than
        the divergences that are measured with them.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.causal.lm_head(hidden.float())
            cap = getattr(self.causal.config, "final_logit_softcapping", None)
            return torch.tanh(logits / cap) * cap if cap else logits


def open_model(source: Path, folder: Path, machine: Machine) -> TorchModel:
    """Load a GGUF model into torch.

    Args:
        source: 16-bit GGUF.
        folder: scratch for the exported checkpoint; what an earlier run left is used.
        machine: where to load it.

    Raises:
        InvalidInputError: the model cannot be exported.
    """
    if not (folder / "config.json").exists():
        export_checkpoint(source, folder)
    transformers.utils.logging.disable_progress_bar()
    causal = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, local_files_only=True
    )
    return TorchModel(
        source=source, causal=causal.to(machine.device), tokenizer=tokenizer
    )


def save_model(model: TorchModel, output: Path) -> None:
    """Write a trained model as GGUF: the source with new weights, types unchanged.

    Raises:
        InvalidInputError: a weight is not finite or outgrew its 16-bit type.
    """
    header = read_header(model.source)
    weights = {name: p.detach() for name, p in model.causal.named_parameters()}
    metadata = tuple(e for e in header.metadata if e.key != "general.alignment")
    with output.open("wb") as sink:
        write_gguf(sink, metadata, header.tensors, _data(header, weights))


def refuse_other_tokenizer(student: Path, teacher: Path) -> None:
    """Refuse a teacher that splits text into other tokens than the student.

    Raises:
        InvalidInputError: naming the first difference.
    """
    ours, theirs = read_header(student), read_header(teacher)
    for name in _TOKENIZER_KEYS:
        key = f"tokenizer.ggml.{name}"
        one, other = ours.find(key), theirs.find(key)
        if (one and one.raw) == (other and other.raw):
            continue
        detail = f"{key} differs"
        if one and other and one.length != other.length:
            detail = f"{key} has {one.length} items in the student, {other.length} in"
            detail += " the teacher"
        raise InvalidInputError(
            f"student and teacher must have the same tokenizer, but {detail};"
            " let the teacher write examples instead (generate), or trim its"
            " vocabulary as the student's was"
        )


def _data(
    header: GgufHeader, weights: Mapping[str, Tensor]
) -> Iterator[Iterator[bytes]]:
    shape = read_shape(header)
    for entry in header.tensors:
        if entry.name == _ROPE_FACTORS:
            yield _copied(header, entry)
            continue
        name = checkpoint_name(entry.name, shape.architecture)
        values = weights[name].to("cpu", torch.float32).numpy()
        yield _encoded(entry, _as_stored(values, entry, shape))


def _copied(header: GgufHeader, entry: TensorEntry) -> Iterator[bytes]:
    with header.path.open("rb") as file:
        for rows in read_rows(file, entry):
            yield encode_rows(rows, entry.kind)


def _as_stored(values: Matrix, entry: TensorEntry, shape: ModelShape) -> Matrix:
    """Undo what an export changed; (rows, width)."""
    rows = values.reshape(entry.rows, entry.width)
    part = entry.name.split(".")[-2]
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}
    if shape.architecture == "llama" and part in heads:
        return interleaved_rows(rows, heads[part])
    if shape.architecture == "gemma3" and part.endswith("_norm"):
        return rows + np.float32(1)
    return rows


def _encoded(entry: TensorEntry, values: Matrix) -> Iterator[bytes]:
    largest = float(np.abs(values).max())
    if not largest <= (F16_MAX if entry.kind == "F16" else np.finfo(np.float32).max):
        raise InvalidInputError(
            f"tensor {entry.name!r}: a trained weight must fit {entry.kind},"
            f" got {largest:g}; train with a lower learning_rate"
        )
    yield encode_rows(values, entry.kind)


def text_tokens(model: TorchModel, text: str) -> list[int]:
    """Return the token ids of a plain text, without special tokens."""
    ids: list[int] = model.tokenizer.encode(
        text, add_special_tokens=False, verbose=False
    )
    return ids
