"""Quantize with llama.cpp's own `llama_model_quantize`, as built into `cyllama`.

    PYTHON bench/llama_quantize.py REFERENCE OUTPUT FILE_TYPE

Run by `bench/build_time.py --peer PYTHON`, with the interpreter of an environment of
its own (``pip install --no-deps cyllama==0.2.18``); one thread. Prints ``/proc/self/status``.
"""

import sys
from pathlib import Path

from cyllama.llama import llama_cpp


def main() -> None:
    """Quantize one file."""
    reference, output, file_type = sys.argv[1:]
    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.nthread = 1
    parameters.ftype = int(file_type)
    llama_cpp.model_quantize(reference, output, parameters)
    print(Path("/proc/self/status").read_text())


if __name__ == "__main__":
    main()
