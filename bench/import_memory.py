"""Peak memory of import, export, quantization and merging, whatever the model's size.

    python bench/import_memory.py [--gib 2] [--folder /var/tmp] [--json FILE]

Makes a Llama-shaped model of random weights and the given size in a temporary folder
(four times the size is needed there), then runs each conversion in a process of its own
and reads the largest memory it ever had (VmHWM). The bound is the project's: 1.3 times
the largest tensor, as stored in 16 bits, plus 300 MB. Fails if a conversion exceeds it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measure import Column, options, print_table, write_json
from safetensors.numpy import save_file

from slmops.demo.source_model import fetch_smollm2
from slmops.workshop.gguf_file import MetadataEntry, TensorEntry, read_header
from slmops.workshop.gguf_writer import metadata_entry, with_metadata, write_gguf

WIDTH, FEED_FORWARD, HEADS, KV_HEADS, HEAD = 2048, 5632, 32, 8, 64
_ALLOWED_MB, _ALLOWED_SHARE = 300, 1.3
_MB = 1_000_000
_CHUNK = 1 << 22
_TASKS = {
    "import a GGUF file": "import_gguf",
    "export a checkpoint": "export",
    "import a checkpoint": "import_checkpoint",
    "quantize to Q8_0": "quantize:Q8_0",
    "quantize to Q4_K_M": "quantize:Q4_K_M",
    "merge an adapter": "merge",
}


def main() -> None:
    """Make the model, run every conversion, print the table."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--task", nargs=2, metavar=("TASK", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.task:
        run_task(arguments.task[0], Path(arguments.task[1]))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        header = read_header(write_model(folder / "model.gguf", arguments.gib))
        write_adapter(folder / "lora")
        largest = max(tensor.bytes for tensor in header.tensors)
        bound = _ALLOWED_SHARE * largest / _MB + _ALLOWED_MB
        rows: list[tuple[str, ...]] = []
        peaks: dict[str, dict[str, float]] = {}
        for title, task in _TASKS.items():
            print(title, file=sys.stderr, flush=True)
            peak, seconds = measured(task, folder)
            rows.append((title, f"{peak:.0f}", f"{bound:.0f}", f"{seconds:.0f}"))
            peaks[title] = {"peak_mb": peak, "seconds": seconds}
    print(f"model {header.file_bytes / _MB:.0f} MB, largest tensor {largest / _MB:.0f}")
    columns = ("conversion", 22), ("peak MB", 8), ("bound MB", 9), ("s", 5)
    print_table([Column(title=title, width=width) for title, width in columns], rows)
    write_json(arguments.json, {"bound_mb": bound, "conversions": peaks})
    if any(found["peak_mb"] > bound for found in peaks.values()):
        sys.exit("a conversion needs more memory than the bound")


def measured(task: str, folder: Path) -> tuple[float, float]:
    """Run a task in a process of its own; return its peak in MB, and seconds."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--task", task, str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - begin
    return float(json.loads(done.stdout.splitlines()[-1])) / _MB, seconds


def run_task(task: str, folder: Path) -> None:
    """Do one conversion, then say the process's peak in bytes."""
    name, _, detail = task.partition(":")
    model = folder / "model.gguf"
    if name.startswith("import"):
        from slmops.registry.workspace import Workspace
        from slmops.workshop.models import import_model

        source = model if name == "import_gguf" else folder / "hf"
        import_model(str(source), Workspace(root=folder / name))
    elif name == "export":
        from slmops.workshop.hf_export import export_checkpoint

        export_checkpoint(model, folder / "hf")
    elif name == "quantize":
        from slmops.workshop.quantize import quantize_gguf

        with Path(os.devnull).open("wb") as sink:
            quantize_gguf(model, detail, sink)
    else:
        from slmops.workshop.adapters import merge_adapter

        with Path(os.devnull).open("wb") as sink:
            merge_adapter(model, folder / "lora", sink)
    status = Path("/proc/self/status").read_text("ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024)


def write_model(path: Path, gib: float) -> Path:
    """Write a model of random weights and SmolLM2's tokenizer."""
    source = read_header(fetch_smollm2())
    tokens = source.find("tokenizer.ggml.tokens")
    assert tokens is not None
    vocabulary = tokens.length
    per_layer = sum(t.bytes for t in tensors(1, 1)) - WIDTH * 2
    layers = max(int((gib * 2**30 - vocabulary * WIDTH * 2) // per_layer), 1)
    listed = tensors(layers, vocabulary)
    block = np.random.default_rng(0).normal(0, 0.02, _CHUNK)
    data = (pieces(tensor, block) for tensor in listed)
    with path.open("wb") as file:
        write_gguf(file, metadata(source.metadata, layers), listed, data)
    return path


def metadata(
    entries: tuple[MetadataEntry, ...], layers: int
) -> tuple[MetadataEntry, ...]:
    """Return SmolLM2's metadata with this model's sizes."""
    sizes = {
        "block_count": layers,
        "embedding_length": WIDTH,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "rope.dimension_count": HEAD,
    }
    changes = [metadata_entry(f"llama.{k}", v, "UINT32") for k, v in sizes.items()]
    return with_metadata(entries, changes)


def tensors(layers: int, vocabulary: int) -> list[TensorEntry]:
    """Return the model's tensors; it uses its embedding as output."""
    matrices = {
        "attn_q": (WIDTH, HEADS * HEAD),
        "attn_k": (WIDTH, KV_HEADS * HEAD),
        "attn_v": (WIDTH, KV_HEADS * HEAD),
        "attn_output": (HEADS * HEAD, WIDTH),
        "ffn_gate": (WIDTH, FEED_FORWARD),
        "ffn_up": (WIDTH, FEED_FORWARD),
        "ffn_down": (FEED_FORWARD, WIDTH),
    }
    listed = [
        TensorEntry(name="token_embd.weight", shape=(WIDTH, vocabulary), kind="F16")
    ]
    for layer in range(layers):
        listed += [
            TensorEntry(name=f"blk.{layer}.{part}.weight", shape=shape, kind="F16")
            for part, shape in matrices.items()
        ]
        listed += [
            TensorEntry(name=f"blk.{layer}.{part}.weight", shape=(WIDTH,), kind="F32")
            for part in ("attn_norm", "ffn_norm")
        ]
    norm = TensorEntry(name="output_norm.weight", shape=(WIDTH,), kind="F32")
    return [*listed, norm]


def pieces(tensor: TensorEntry, block: npt.NDArray[np.float64]) -> Iterator[bytes]:
    """Give a tensor's bytes: the block's numbers, again and again."""
    dtype = np.float32 if tensor.kind == "F32" else np.float16
    stored = block.astype(dtype).tobytes()
    for begin in range(0, tensor.bytes, len(stored)):
        yield stored[: tensor.bytes - begin]


def write_adapter(folder: Path) -> None:
    """Write an adapter of the first layer, of rank 16."""
    folder.mkdir()
    name = "base_model.model.model.layers.0.mlp.gate_proj"
    factors = {
        f"{name}.lora_A.weight": np.full((16, WIDTH), 1e-3, np.float32),
        f"{name}.lora_B.weight": np.full((FEED_FORWARD, 16), 1e-3, np.float32),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 16}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")


if __name__ == "__main__":
    main()
