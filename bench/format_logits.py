"""How far torch and llama.cpp are apart on the same model: GGUF → checkpoint → torch.

    python bench/format_logits.py MODEL.gguf [MODEL.gguf …] --text FILE [--tokens 512]
        [--json FILE]

Each 16-bit model (a reference, as `slmops model import` stores it) is exported as a
checkpoint, loaded by transformers in float32, and both score the same window of text.
Needs the extra `training`. One thread.
"""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measure import Column, options, print_table, write_json

from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.llamacpp_scorer import LlamaCppScorer
from slmops.workshop.gguf_file import read_header
from slmops.workshop.hf_export import export_checkpoint

Logits = npt.NDArray[np.float32]
_HEADS = "model", "tokens", "largest", "max diff", "mean diff", "top-1", "KL", "cut"


def main() -> None:
    """Compare every model, print the table."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=512)
    arguments = parser.parse_args()
    text = arguments.text.read_text("utf-8")[: 8 * arguments.tokens]
    found = [compared(path, text, arguments.tokens) for path in arguments.models]
    columns = [Column(title=title, width=12) for title in _HEADS]
    print_table(columns, [[str(value) for value in row.values()] for row in found])
    write_json(arguments.json, found)


def compared(path: Path, text: str, limit: int) -> dict[str, object]:
    """Score a window in both engines."""
    scorer = LlamaCppScorer(path, WorkerSettings(context_tokens=limit, threads=1))
    try:
        cut = scorer.tokenize(text)
        tokens = cut[:limit]
        ours = scorer.logits(tokens)
    finally:
        scorer.close()
    theirs, their_cut = torch_logits(path, text, tokens)
    difference = np.abs(ours - theirs)
    return {
        "model": read_header(path).text("general.name"),
        "tokens": len(tokens),
        "largest": round(float(np.abs(theirs).max()), 1),
        "max diff": round(float(difference.max()), 3),
        "mean diff": round(float(difference.mean()), 4),
        "top-1": f"{(ours.argmax(1) == theirs.argmax(1)).sum()}/{len(tokens)}",
        "KL": f"{divergence(theirs, ours):.1e}",
        "cut": "alike" if cut == their_cut else "differs",
    }


def torch_logits(path: Path, text: str, tokens: list[int]) -> tuple[Logits, list[int]]:
    """Return torch's logits, and how its tokenizer cuts the text."""
    import torch
    import transformers

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(path, Path(folder) / "hf")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder) / "hf", dtype=torch.float32
        ).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(Path(folder) / "hf")
        with torch.no_grad():
            logits: Logits = model(torch.tensor([tokens])).logits[0].numpy()
        return logits, tokenizer.encode(text, add_special_tokens=False)


def divergence(wanted: Logits, found: Logits) -> float:
    """Return the mean KL divergence of the rows, nats."""
    p, q = (log_probabilities(logits) for logits in (wanted, found))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def log_probabilities(logits: Logits) -> npt.NDArray[np.float64]:
    """Return (tokens, vocabulary) log-probabilities."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(
        np.exp(shifted).sum(axis=1, keepdims=True)
    )
    return result


if __name__ == "__main__":
    main()
