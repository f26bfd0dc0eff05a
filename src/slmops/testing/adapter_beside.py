"""A LoRA adapter loaded beside a model, as llama.cpp's own programs do."""

import ctypes
from pathlib import Path
from typing import Any


def load_beside(scorer: Any, adapter: Path) -> None:  # noqa: ANN401 - its C handles
    """Add a GGUF adapter to an open llama.cpp scorer, at full strength."""
    pointer = ctypes.c_void_p
    init = scorer._lib.llama_adapter_lora_init
    init.restype, init.argtypes = pointer, [pointer, ctypes.c_char_p]
    handle = init(scorer._model, str(adapter).encode())
    assert handle, "llama.cpp refused the adapter"
    apply = scorer._lib.llama_set_adapters_lora
    apply.restype = ctypes.c_int32
    apply.argtypes = [
        pointer,
        ctypes.POINTER(pointer),
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_float),
    ]
    code = apply(scorer._context, (pointer * 1)(handle), 1, (ctypes.c_float * 1)(1.0))
    assert code == 0
