"""What flows through a model in llama.cpp, handed over while it runs.

`llama_context_params.cb_eval` calls back for every node of the compute graph, before
(whether its value is wanted) and after it was computed. This reads, without copying,
the inputs of all multiplications with a weight, and every block's input and output:
what llama.cpp's own imatrix tool reads, and more.

`struct ggml_tensor` has no stable layout; the one here is of the pinned wheel
(``ggml/include/ggml.h``). Before anything is loaded, tensors that ggml itself made are
read through it, so that drift is an error and never garbage.
"""

import ctypes
from collections.abc import Callable, Sequence
from ctypes import (
    POINTER,
    c_bool,
    c_char,
    c_char_p,
    c_int32,
    c_int64,
    c_size_t,
    c_void_p,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmops.domain.errors import UnavailableError
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.llamacpp_scorer import (
    LlamaCppScorer,
    _ContextParams,
    load_library,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.float32]

_F32 = 0
_OBJECT_BYTES = 32
"""``sizeof(struct ggml_object)``: what ggml keeps in front of every tensor."""


class _Tensor(ctypes.Structure):
    pass


_Tensor._fields_ = (
    ("type", c_int32),
    ("buffer", c_void_p),
    ("ne", c_int64 * 4),
    ("nb", c_size_t * 4),
    ("op", c_int32),
    ("op_params", c_int32 * 16),
    ("flags", c_int32),
    ("src", POINTER(_Tensor) * 10),
    ("view_src", c_void_p),
    ("view_offs", c_size_t),
    ("data", c_void_p),
    ("name", c_char * 64),
    ("extra", c_void_p),
    ("padding", c_char * 8),
)


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", c_size_t),
        ("mem_buffer", c_void_p),
        ("no_alloc", c_bool),
    )


_EVAL_CALLBACK = ctypes.CFUNCTYPE(c_bool, POINTER(_Tensor), c_bool, c_void_p)
_PROTOTYPES: tuple[tuple[str, Any, list[Any]], ...] = (
    ("ggml_init", c_void_p, [_InitParams]),
    ("ggml_free", None, [c_void_p]),
    ("ggml_tensor_overhead", c_size_t, []),
    ("ggml_new_tensor_2d", c_void_p, [c_void_p, c_int32, c_int64, c_int64]),
    ("ggml_mul_mat", c_void_p, [c_void_p, c_void_p, c_void_p]),
    ("ggml_rms_norm", c_void_p, [c_void_p, c_void_p, ctypes.c_float]),
    ("ggml_set_name", c_void_p, [c_void_p, c_char_p]),
    ("ggml_get_data", c_void_p, [c_void_p]),
    ("ggml_op_name", c_char_p, [c_int32]),
)

OnInput = Callable[[str, "Rows", "str | None"], None]
"""Told of a multiplication: the weight's name, its (tokens, width) input (valid during
the call only), and the weight that was first multiplied with the very same input, or
None when this is the first."""
OnBlock = Callable[[int, "Rows", "Rows"], None]
"""Told of a block: its number, its (tokens, width) input and output (same rule)."""


class _WatchedScorer(LlamaCppScorer):
    """A scorer whose graph evaluation calls back."""

    def __init__(
        self, artefact: Path, settings: WorkerSettings, reader: "ActivationReader"
    ) -> None:
        self._reader = reader
        # Kept for as long as the engine may call it.
        self._callback = _EVAL_CALLBACK(reader.called)
        super().__init__(artefact, settings)

    def _decode(self, tokens: Sequence[int], begin: int) -> None:
        self._reader.begin_batch()
        super()._decode(tokens, begin)

    def _context_params(self, settings: WorkerSettings) -> _ContextParams:
        parameters = super()._context_params(settings)
        parameters.cb_eval = ctypes.cast(self._callback, c_void_p).value
        return parameters


class ActivationReader:
    """One model whose activations can be watched; close it when done."""

    def __init__(
        self,
        artefact: Path,
        settings: WorkerSettings,
        *,
        on_input: OnInput,
        on_block: OnBlock,
    ) -> None:
        """Load a model.

        Raises:
            InvalidInputError: llama.cpp refused it.
            UnavailableError: another version, or structures not as expected.
        """
        self._on_input, self._on_block = on_input, on_block
        self._operations = _checked_operations(load_library())
        self._seen: dict[int, str] = {}
        self._block_input: Rows | None = None
        self._error: Exception | None = None
        self._scorer = _WatchedScorer(artefact, settings, self)

    def tokenize(self, text: str) -> list[int]:
        """Return token ids of plain text: no special tokens added or parsed."""
        return self._scorer.tokenize(text)

    def run(self, tokens: Sequence[int]) -> None:
        """Run one window from empty context; the callbacks are told of all of it.

        Raises:
            InvalidInputError: no tokens, too many, or one outside the vocabulary.
            UnavailableError: the engine failed.
        """
        self._error = None
        try:
            self._scorer.decode_window(tokens)
        except UnavailableError:
            if self._error is None:
                raise
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Free the model; safe to repeat."""
        self._scorer.close()

    def begin_batch(self) -> None:
        """Forget the graph before: its nodes are gone, and others at their addresses."""
        self._seen.clear()
        self._block_input = None

    def called(self, pointer: Any, ask: bool, _: int | None) -> bool:  # noqa: ANN401
        """Answer the engine, which runs a node: see the module's docstring."""
        # Whatever is raised here would vanish in C: it is kept, and the run ended.
        try:
            tensor = pointer.contents
            operation = self._operations.get(tensor.op)
            if ask:
                return _is_wanted(tensor, operation)
            self._take(tensor, operation)
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._error = error
            return ask
        return True

    def _take(self, tensor: _Tensor, operation: str | None) -> None:
        if operation == "MUL_MAT":
            self._take_input(_weight_name(tensor), tensor.src[1])
        elif tensor.name.startswith(b"l_out-"):
            self._take_output(int(tensor.name[len(b"l_out-") :]), tensor)
        elif self._block_input is None:
            # A block begins with the norm of what flows in. The residual stream stays
            # where it is until it was added to, but no longer: hence the copy.
            self._block_input = _rows_of(tensor.src[0].contents).copy()

    def _take_input(self, weight: str, source: Any) -> None:  # noqa: ANN401
        address = ctypes.addressof(source.contents)
        first = self._seen.get(address)
        if first is None:
            self._seen[address] = weight
        self._on_input(weight, _rows_of(source.contents), first)

    def _take_output(self, block: int, tensor: _Tensor) -> None:
        if self._block_input is None:
            raise UnavailableError(f"block {block} has no norm of its input")
        self._on_block(block, self._block_input, _rows_of(tensor))
        self._block_input = None


def _is_wanted(tensor: _Tensor, operation: str | None) -> bool:
    if operation == "MUL_MAT":
        source = tensor.src[1].contents
        return _weight_name(tensor).endswith(".weight") and source.type == _F32
    return operation == "RMS_NORM" or tensor.name.startswith(b"l_out-")


def _weight_name(tensor: _Tensor) -> str:
    """Return the first operand's name without a backend's marks: ``CPU#name#0``."""
    name: str = tensor.src[0].contents.name.decode(errors="replace")
    return name.split("#")[1] if "#" in name else name


def _rows_of(tensor: _Tensor) -> "Rows":
    """View a tensor as (rows, width) float32."""
    import numpy as np

    width, rows, *rest = tensor.ne
    contiguous = list(tensor.nb[:2]) == [4, 4 * width]
    if tensor.type != _F32 or rest != [1, 1] or not contiguous or not tensor.data:
        raise UnavailableError(
            f"activation {tensor.name.decode(errors='replace')!r} must be one matrix of"
            f" float32, got type {tensor.type}, shape {list(tensor.ne)},"
            f" strides {list(tensor.nb)}"
        )
    values = (ctypes.c_float * (width * rows)).from_address(tensor.data)
    return np.ctypeslib.as_array(values).reshape(rows, width)


def _checked_operations(lib: Any) -> dict[int, str]:  # noqa: ANN401
    """Return the operations watched, by number, after a look at tensors of ggml.

    Raises:
        UnavailableError: the structure's layout is not the one known here.
    """
    for name, result, arguments in _PROTOTYPES:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    size = lib.ggml_tensor_overhead() - _OBJECT_BYTES
    if size != ctypes.sizeof(_Tensor):
        raise UnavailableError(
            f"ggml_tensor must have {ctypes.sizeof(_Tensor)} bytes, got {size}:"
            " ggml's structures have changed"
        )
    context = lib.ggml_init(_InitParams(1 << 16, None, False))
    try:
        return _probed(lib, context)
    finally:
        lib.ggml_free(context)


def _probed(lib: Any, context: int) -> dict[int, str]:  # noqa: ANN401
    weight = lib.ggml_new_tensor_2d(context, _F32, 6, 5)
    rows = lib.ggml_new_tensor_2d(context, _F32, 6, 7)
    lib.ggml_set_name(weight, b"probe.weight")
    product = _Tensor.from_address(lib.ggml_mul_mat(context, weight, rows))
    norm = _Tensor.from_address(lib.ggml_rms_norm(context, rows, 1e-6))
    source = _Tensor.from_address(rows)
    found = {
        "name": _weight_name(product),
        "shape": list(product.ne),
        "strides": list(source.nb[:2]),
        "type": source.type,
        "data": source.data,
        "first": ctypes.addressof(product.src[0].contents),
        "second": ctypes.addressof(product.src[1].contents),
        "operations": [lib.ggml_op_name(product.op), lib.ggml_op_name(norm.op)],
    }
    expected = {
        "name": "probe.weight",
        "shape": [5, 7, 1, 1],
        "strides": [4, 24],
        "type": _F32,
        "data": lib.ggml_get_data(rows),
        "first": weight,
        "second": rows,
        "operations": [b"MUL_MAT", b"RMS_NORM"],
    }
    for what, value in expected.items():
        if found[what] != value:
            raise UnavailableError(
                f"ggml_tensor: {what} must be {value}, got {found[what]}:"
                " ggml's structures have changed"
            )
    return {product.op: "MUL_MAT", norm.op: "RMS_NORM"}
