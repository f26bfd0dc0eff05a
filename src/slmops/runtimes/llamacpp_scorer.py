"""Full next-token logits from llama.cpp, through the C symbols the wheel exports.

The HTTP server lists a few log-probabilities a token; KL divergence needs all. The C
structures have no stable layout: their layouts here are of exactly one version of the
wheel (llama.cpp's ``include/llama.h`` of its commit), and their default values are
compared before anything is loaded, so that drift is an error and never garbage.
"""

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_float,
    c_int8,
    c_int32,
    c_uint8,
    c_void_p,
)
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.llamacpp_cache import cache_types, needs_flash_attention

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PINNED_VERSION = "2026.10.11549"
"""The only version of xllamacpp whose structures are known here."""

_BATCH_TOKENS = 256
_PIECE_BYTES = 64
_ERROR_LEVEL = 4
_DISABLED, _ENABLED = 0, 1
_GGML_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 8}


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


class _ModelParams(ctypes.Structure):
    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )


class _ContextParams(ctypes.Structure):
    _fields_ = (
        ("n_ctx", c_int32),
        ("n_batch", c_int32),
        ("n_ubatch", c_int32),
        ("n_seq_max", c_int32),
        ("n_rs_seq", c_int32),
        ("n_outputs_max", c_int32),
        ("n_outputs_max_per_seq", c_int32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_int32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        # Callbacks and options that stay as they are, and room behind the structure:
        # it is passed by value, and bytes too many do no harm.
        ("rest", c_uint8 * 144),
    )


_MODEL_DEFAULTS = {
    "devices": None,
    "tensor_buft_overrides": None,
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "tensor_split": None,
    "progress_callback": None,
    "kv_overrides": None,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
    "load_mtp": False,
}
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "cb_eval": None,
    "type_k": 1,
    "type_v": 1,
}

_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
_last_error = ""


def _keep_error(level: int, text: bytes, _: int | None) -> None:
    """Take the engine's log: errors are kept for messages, the rest is noise."""
    global _last_error
    if level == _ERROR_LEVEL:
        _last_error = text.decode(errors="replace").strip()


_KEEP_ERROR = _LOG_CALLBACK(_keep_error)
"""Kept for as long as the engine may call it."""


class LlamaCppScorer:
    """One model and one context; see `slmops.runtimes.base.Scorer`."""

    def __init__(self, artefact: Path, settings: WorkerSettings) -> None:
        self._model: int | None = None
        self._context: int | None = None
        self._limit = settings.context_tokens
        self._lib = load_library()
        self._model = self._lib.llama_model_load_from_file(
            str(artefact).encode(), _model_params(self._lib)
        )
        if not self._model:
            raise InvalidInputError(
                f"{artefact.name}: llama.cpp refused it: {_last_error}"
            )
        self._context = self._lib.llama_init_from_model(
            self._model, self._context_params(settings)
        )
        if not self._context:
            self.close()
            raise InvalidInputError(
                f"{artefact.name}: no context of {self._limit} tokens: {_last_error}"
            )
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary = int(self._lib.llama_vocab_n_tokens(self._vocab))

    def tokenize(self, text: str) -> list[int]:
        """Return token ids of plain text: no special tokens added or parsed."""
        raw = text.encode()
        room = len(raw) + 8
        tokens = (c_int32 * room)()
        count = self._lib.llama_tokenize(
            self._vocab, raw, len(raw), tokens, room, False, False
        )
        if count < 0:
            raise InvalidInputError(f"text of {len(raw)} bytes could not be tokenized")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """Return what a token writes; see `slmops.runtimes.base.Scorer`.

        Raises:
            InvalidInputError: it is outside the vocabulary.
        """
        self._check([token])
        room = _PIECE_BYTES
        while True:
            piece = ctypes.create_string_buffer(room)
            length = self._lib.llama_token_to_piece(
                self._vocab, token, piece, room, 0, True
            )
            if length >= 0:
                return piece.raw[:length]
            room = -length

    def logits(self, tokens: Sequence[int]) -> "npt.NDArray[np.float32]":
        """Score one window from empty context; see `slmops.runtimes.base.Scorer`.

        Raises:
            InvalidInputError: no tokens, too many, or one outside the vocabulary.
            UnavailableError: the engine failed.
        """
        import numpy as np

        scores = np.empty((len(tokens), self.vocabulary), np.float32)
        for begin, count in self._decoded(tokens):
            for row in range(count):
                found = self._lib.llama_get_logits_ith(self._context, row)
                if not found:
                    raise UnavailableError(f"llama.cpp gave no logits: {_last_error}")
                scores[begin + row] = np.ctypeslib.as_array(found, (self.vocabulary,))
        return scores

    def decode_window(self, tokens: Sequence[int]) -> None:
        """Run one window from empty context for what an evaluation callback sees of it.

        Raises:
            InvalidInputError: as `logits`.
            UnavailableError: the engine failed.
        """
        for _ in self._decoded(tokens):
            pass

    def close(self) -> None:
        """Free the model; safe to repeat."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def _context_params(self, settings: WorkerSettings) -> _ContextParams:
        """Return how the context is made; a subclass may ask for more."""
        return _context_params(self._lib, settings)

    def _decoded(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Decode a window in batches; yields each one's begin and length."""
        self._check(tokens)
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        for begin in range(0, len(tokens), _BATCH_TOKENS):
            part = tokens[begin : begin + _BATCH_TOKENS]
            self._decode(part, begin)
            yield begin, len(part)

    def _check(self, tokens: Sequence[int]) -> None:
        if not 1 <= len(tokens) <= self._limit:
            raise InvalidInputError(
                f"a window must have 1 to {self._limit} tokens, got {len(tokens)}"
            )
        if min(tokens) < 0 or max(tokens) >= self.vocabulary:
            raise InvalidInputError(
                f"token ids must be 0 to {self.vocabulary - 1},"
                f" got {min(tokens)} to {max(tokens)}"
            )

    def _decode(self, tokens: Sequence[int], begin: int) -> None:
        count = len(tokens)
        sequence = c_int32(0)
        batch = _Batch(
            n_tokens=count,
            token=(c_int32 * count)(*tokens),
            pos=(c_int32 * count)(*range(begin, begin + count)),
            n_seq_id=(c_int32 * count)(*[1] * count),
            seq_id=(POINTER(c_int32) * count)(*[ctypes.pointer(sequence)] * count),
            logits=(c_int8 * count)(*[1] * count),
        )
        code = self._lib.llama_decode(self._context, batch)
        if code != 0:
            raise UnavailableError(f"llama_decode failed ({code}): {_last_error}")


def load_library() -> Any:  # noqa: ANN401 - functions are typed by _PROTOTYPES
    """Load the extension's C symbols, quiet, with checked structures.

    Raises:
        UnavailableError: another version, or the structures are not as expected.
    """
    found = metadata.version("xllamacpp")
    if found != PINNED_VERSION:
        raise UnavailableError(
            f"scoring needs xllamacpp {PINNED_VERSION}, found {found}:"
            " its C structures are not known here"
        )
    import xllamacpp

    lib = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    for name, result, arguments in _PROTOTYPES:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(_KEEP_ERROR, None)
    lib.llama_backend_init()
    check_defaults(lib.llama_model_default_params(), _MODEL_DEFAULTS)
    check_defaults(lib.llama_context_default_params(), _CONTEXT_DEFAULTS)
    return lib


def check_defaults(found: ctypes.Structure, expected: dict[str, Any]) -> None:
    """Compare a structure's default values with those of the known layout.

    Raises:
        UnavailableError: they differ: the layout has drifted.
    """
    for name, value in expected.items():
        if getattr(found, name) != value:
            raise UnavailableError(
                f"{type(found).__name__.lstrip('_')}.{name} must default to {value},"
                f" got {getattr(found, name)}: llama.cpp's structures have changed"
            )


def _model_params(lib: Any) -> _ModelParams:  # noqa: ANN401
    parameters: _ModelParams = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    return parameters


def _context_params(lib: Any, settings: WorkerSettings) -> _ContextParams:  # noqa: ANN401
    parameters: _ContextParams = lib.llama_context_default_params()
    batch = min(settings.context_tokens, _BATCH_TOKENS)
    parameters.n_ctx = settings.context_tokens
    parameters.n_batch = parameters.n_ubatch = batch
    parameters.n_outputs_max = parameters.n_outputs_max_per_seq = batch
    parameters.n_threads = parameters.n_threads_batch = settings.threads
    # As the server: see `llamacpp`.
    keys, values = cache_types(settings.kv_cache)
    parameters.type_k, parameters.type_v = _GGML_TYPES[keys], _GGML_TYPES[values]
    parameters.flash_attn_type = (
        _ENABLED if needs_flash_attention(settings.kv_cache) else _DISABLED
    )
    return parameters


_PROTOTYPES: tuple[tuple[str, Any, list[Any]], ...] = (
    ("llama_backend_init", None, []),
    ("llama_log_set", None, [_LOG_CALLBACK, c_void_p]),
    ("llama_model_default_params", _ModelParams, []),
    ("llama_context_default_params", _ContextParams, []),
    ("llama_model_load_from_file", c_void_p, [c_char_p, _ModelParams]),
    ("llama_init_from_model", c_void_p, [c_void_p, _ContextParams]),
    ("llama_model_get_vocab", c_void_p, [c_void_p]),
    ("llama_vocab_n_tokens", c_int32, [c_void_p]),
    (
        "llama_tokenize",
        c_int32,
        [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool],
    ),
    (
        "llama_token_to_piece",
        c_int32,
        [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool],
    ),
    ("llama_get_memory", c_void_p, [c_void_p]),
    ("llama_memory_clear", None, [c_void_p, c_bool]),
    ("llama_decode", c_int32, [c_void_p, _Batch]),
    ("llama_get_logits_ith", POINTER(c_float), [c_void_p, c_int32]),
    ("llama_free", None, [c_void_p]),
    ("llama_model_free", None, [c_void_p]),
)
