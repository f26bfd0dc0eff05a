"""Score a model that Olive made: logits of windows of token ids. Runs in Olive's environment.

    python olive_score.py FOLDER WINDOWS.npy LOGITS.npy

onnxruntime, one window a run, two threads; no past. The project itself is not imported.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]

THREADS = 2
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def main() -> None:
    """Write (windows, tokens, vocabulary) float32."""
    folder, windows, logits = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        str(Path(folder) / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    rows = [_logits(session, tokens) for tokens in np.load(windows)]
    np.save(logits, np.stack(rows))


def _logits(
    session: onnxruntime.InferenceSession, tokens: npt.NDArray[np.int32]
) -> npt.NDArray[np.float32]:
    ids = tokens.astype(np.int64)[None]
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
    }
    fed = {}
    for entry in session.get_inputs():
        if entry.name in known:
            fed[entry.name] = known[entry.name]
        else:
            # An empty past: (batch, heads, 0, head size).
            _, heads, _, size = entry.shape
            fed[entry.name] = np.zeros((1, heads, 0, size), _TYPES[entry.type])
    found: npt.NDArray[np.float32] = session.run(["logits"], fed)[0][0]
    return found.astype(np.float32)


if __name__ == "__main__":
    main()
