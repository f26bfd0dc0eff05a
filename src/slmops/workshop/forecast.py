"""What a variant will cost on a device, told before it exists.

Memory of llama.cpp's process: its code and libraries, its own heap, the vocabulary, the
mapped weights, a private copy of the tensors whose blocks it reorders for the CPU, the
KV cache, and scratch for one batch of the prompt. The peak is that of a full context:
without flash attention, a batch's attention scores against the whole context outgrow all
other scratch. The constants were fitted to peak RSS of xllamacpp 2026.10 on x86-64 with
AVX2, settings as `slmops.runtimes.llamacpp` chooses them (`bench/plan_error.py`,
docs/lab-log.md); they are not exact elsewhere.

Speed: a decoded token reads every weight once, so bytes times tokens per second is
nearly constant on a machine, up to what unpacking a type's blocks costs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slmops.domain.runtime_settings import KV_CACHE_BYTES, check_kv_cache
from slmops.workshop.gguf_file import TensorEntry
from slmops.workshop.model_shape import ModelShape

MIB = 1 << 20

_CODE_MIB = 20.4
_HEAP_MIB = 16.7
_TOKEN_BYTES = 224
_MERGE_BYTES = 261
_SCRATCH_MIB = 2.5
_BATCH_TOKENS = 256
_FEED_FORWARD_BUFFERS = 3
_SCORE_BYTES = 6
"""Of one head, query and key: 32 bit, and a 16-bit copy to multiply with the values."""
_MASK_BYTES = 4
_REORDERED = frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL"})

_UNPACKING = {
    "F32": 1.35,
    "F16": 1.35,
    "BF16": 1.0,
    "Q8_0": 1.0,
    "Q6_K": 0.95,
    "Q5_K": 0.75,
    "Q5_1": 0.52,
    "Q5_0": 0.53,
    "Q4_K": 0.72,
    "Q4_1": 0.47,
    "Q4_0": 0.8,
    "IQ4_NL": 0.78,
    "IQ4_XS": 0.78,
    "Q3_K": 0.5,
    "Q2_K": 0.65,
}
"""Bytes per second of a type's blocks, against Q8_0's. Types whose blocks are reordered
are faster for their size; the IQ types' figures are guesses."""
_UNPACKING_REST = 0.6
_THREAD_SCALING = 0.8
_PROBE_BYTES = 128 * MIB
_PROBE_SHARE = 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class MachinePrior:
    """How fast a machine decodes, as one number."""

    decode_bytes_per_s: float
    """Bytes of an 8-bit model times tokens decoded per second, on one thread."""
    source: str
    """Where the figure comes from: a measured build, or a probe of memory bandwidth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryForecast:
    """Parts of a model process's peak resident memory, MiB."""

    runtime_mib: float
    """Code, libraries, heap and vocabulary."""
    weights_mib: float
    """The mapped tensors."""
    reordered_mib: float
    """Private copies of tensors whose blocks are reordered for the CPU."""
    kv_cache_mib: float
    """Keys and values of the whole context, 16 bit."""
    scratch_mib: float
    """Activations of one batch of the prompt."""
    attention_mib: float
    """What one batch's scores against the whole context take beyond that scratch."""

    @property
    def total_mib(self) -> float:
        """Their sum."""
        return (
            self.runtime_mib
            + self.weights_mib
            + self.reordered_mib
            + self.kv_cache_mib
            + self.scratch_mib
            + self.attention_mib
        )


def forecast_memory(
    shape: ModelShape,
    tensors: Sequence[TensorEntry],
    *,
    context_tokens: int,
    kv_cache: str = "f16",
) -> MemoryForecast:
    """Predict peak resident memory with one request at a time.

    Args:
        shape: the model's sizes.
        tensors: of the variant, with its types.
        context_tokens: context it is loaded with.
        kv_cache: type of the cache: see `slmops.domain.runtime_settings`. Values of few
            bits come with flash attention, which keeps no scores: they are counted all
            the same, so that the forecast errs upwards.

    Raises:
        InvalidInputError: no such type.
    """
    check_kv_cache(kv_cache)
    reordered = sum(tensor.bytes for tensor in tensors if _is_reordered(tensor))
    vocabulary = shape.vocabulary * _TOKEN_BYTES + shape.merges * _MERGE_BYTES
    batch = min(_BATCH_TOKENS, context_tokens)
    activations = 4 * (_FEED_FORWARD_BUFFERS * shape.feed_forward + shape.width)
    scores = context_tokens * (_SCORE_BYTES * shape.heads + _MASK_BYTES)
    return MemoryForecast(
        runtime_mib=_CODE_MIB + _HEAP_MIB + vocabulary / MIB,
        weights_mib=sum(tensor.bytes for tensor in tensors) / MIB,
        reordered_mib=reordered / MIB,
        kv_cache_mib=_cache_bytes(shape, context_tokens, kv_cache) / MIB,
        scratch_mib=_SCRATCH_MIB + batch * activations / MIB,
        attention_mib=batch * max(scores - activations, 0) / MIB,
    )


def _cache_bytes(shape: ModelShape, context_tokens: int, kv_cache: str) -> float:
    """Return the size of keys and values; windowed layers keep a window and a batch."""
    window = min(context_tokens, shape.window_tokens + _BATCH_TOKENS)
    tokens = (
        shape.windowed_layers * window
        + (shape.layers - shape.windowed_layers) * context_tokens
    )
    key_bytes, value_bytes = KV_CACHE_BYTES[kv_cache]
    width = key_bytes * shape.key_width + value_bytes * shape.value_width
    return tokens * shape.kv_heads * width


def forecast_decode(
    tensors: Sequence[TensorEntry], prior: MachinePrior, *, threads: int
) -> float:
    """Predict decoded tokens per second."""
    cost = sum(
        tensor.bytes / _UNPACKING.get(tensor.kind, _UNPACKING_REST)
        for tensor in tensors
    )
    return float(prior.decode_bytes_per_s * threads**_THREAD_SCALING / cost)


def measured_prior(
    decode_tokens_per_s: float, tensors: Sequence[TensorEntry], source: str
) -> MachinePrior:
    """Turn a measured decode speed on one thread into a prior."""
    unit = MachinePrior(decode_bytes_per_s=1.0, source=source)
    share = forecast_decode(tensors, unit, threads=1)
    return MachinePrior(decode_bytes_per_s=decode_tokens_per_s / share, source=source)


def probe_prior() -> MachinePrior:
    """Measure this machine's memory bandwidth for about 0.1 s; decoding gets a share."""
    block = np.ones(_PROBE_BYTES // 8, np.float64)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        block.max()
        times.append(time.perf_counter() - start)
    bandwidth = _PROBE_BYTES / min(times)
    return MachinePrior(
        decode_bytes_per_s=_PROBE_SHARE * bandwidth,
        source=f"memory bandwidth probe: {bandwidth / 1e9:.1f} GB/s on one thread",
    )


def _is_reordered(tensor: TensorEntry) -> bool:
    # The embedding is looked up by row, also when it serves as the output matrix.
    is_matrix = len(tensor.shape) > 1 and tensor.name != "token_embd.weight"
    return tensor.kind in _REORDERED and is_matrix
