"""Activation statistics: what llama.cpp multiplies with, against NumPy's own forward."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slmops.domain.errors import InvalidInputError, UnavailableError
from slmops.runtimes import llamacpp_activations
from slmops.runtimes.base import WorkerSettings
from slmops.runtimes.llamacpp_activations import ActivationReader
from slmops.runtimes.llamacpp_scorer import load_library
from slmops.testing.tiny_gemma import write_tiny_gemma
from slmops.testing.tiny_gguf import TinyLlama, tiny_weights, write_tiny_llama
from slmops.workshop.gguf_file import read_header
from slmops.workshop.jobs.job import Job
from slmops.workshop.precision import collect
from slmops.workshop.precision.collect import collect_statistics
from slmops.workshop.precision.statistics_file import Floats, load_statistics

TEXT = "The heron stands on one leg. The tin roof hums in the heat of the harbour. " * 8
SIZES = TinyLlama()
Collect = Callable[..., Path]


@pytest.fixture
def collected(tmp_path: Path) -> Collect:
    """Run the job on a tiny model; keywords are parameters."""

    def run(model: Path | None = None, **parameters: int | bool) -> Path:
        text, state = tmp_path / "text", tmp_path / "state"
        text.write_text(TEXT)
        state.mkdir(exist_ok=True)
        job = Job(
            inputs={
                "model": model or write_tiny_llama(tmp_path / "tiny.gguf"),
                "text": text,
            },
            parameters={"tokens": 64, "window_tokens": 32, "hessians": True}
            | parameters,
            output=tmp_path,
            state=state,
        )
        return collect_statistics(job)["statistics"]

    return run


def tokens_of(model: Path) -> list[int]:
    reader = ActivationReader(
        model,
        WorkerSettings(threads=1, context_tokens=32),
        on_input=lambda *_: None,
        on_block=lambda *_: None,
    )
    try:
        return reader.tokenize(TEXT)
    finally:
        reader.close()


def normed(rows: Floats) -> Floats:
    scale = np.sqrt((rows * rows).mean(axis=1, keepdims=True) + 1e-5)
    return np.asarray(rows / scale)


def rotated(heads: Floats) -> Floats:
    """Rotary embedding of (tokens, heads, width), neighbours paired (Su et al. 2021)."""
    tokens, _, width = heads.shape
    rates = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(tokens)[:, None, None] * rates
    pairs = heads[..., 0::2] + 1j * heads[..., 1::2]
    turned = pairs * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(heads.shape)


def attended(rows: Floats, weights: dict[str, Floats]) -> Floats:
    def heads_of(name: str, count: int) -> Floats:
        return (rows @ weights[f"blk.0.{name}.weight"].T).reshape(len(rows), count, -1)

    query = rotated(heads_of("attn_q", SIZES.heads))
    shared = SIZES.heads // SIZES.kv_heads
    key = rotated(heads_of("attn_k", SIZES.kv_heads)).repeat(shared, axis=1)
    value = heads_of("attn_v", SIZES.kv_heads).repeat(shared, axis=1)
    scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(query.shape[2])
    scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
    mass = np.exp(scores - scores.max(axis=2, keepdims=True))
    mass /= mass.sum(axis=2, keepdims=True)
    mixed: Floats = np.einsum("hqk,khd->qhd", mass, value).reshape(len(rows), -1)
    return mixed


def first_block(window: list[int]) -> dict[str, Floats]:
    """Return the inputs of the first block's matrices, and what it adds up to."""
    weights = dict(tiny_weights(SIZES, 0))
    start = weights["token_embd.weight"][window]
    inner = normed(start)
    mixed = attended(inner, weights)
    middle = start + mixed @ weights["blk.0.attn_output.weight"].T
    forward = normed(middle)
    gate = forward @ weights["blk.0.ffn_gate.weight"].T
    up = forward @ weights["blk.0.ffn_up.weight"].T
    hidden = gate / (1 + np.exp(-gate)) * up
    return {
        "blk.0.attn_q.weight": inner,
        "blk.0.attn_output.weight": mixed,
        "blk.0.ffn_up.weight": forward,
        "blk.0.ffn_down.weight": hidden,
        "start": start,
        "end": middle + hidden @ weights["blk.0.ffn_down.weight"].T,
    }


@pytest.mark.parametrize(
    "name", ["attn_q", "attn_output", "ffn_up", "ffn_down"], ids=str
)
def test_statistics_are_those_of_the_forward_pass(
    name: str, collected: Collect, tmp_path: Path
) -> None:
    found = load_statistics(collected())
    tokens = tokens_of(tmp_path / "tiny.gguf")
    windows = [first_block(tokens[at : at + 32]) for at in (0, 32)]
    weight = f"blk.0.{name}.weight"
    rows = np.concatenate([window[weight] for window in windows])
    expected = rows.T @ rows / 64
    moment = found.moment(weight)
    assert found.tokens == 64
    assert moment is not None
    spread = np.abs(expected).max()
    np.testing.assert_allclose(moment / spread, expected / spread, atol=3e-3)
    np.testing.assert_allclose(moment.diagonal(), found.importance[weight], rtol=1e-4)
    before, after = (
        np.concatenate([window[end] for window in windows]) for end in ("start", "end")
    )
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosine = ((before * after).sum(axis=1) / lengths).mean()
    assert found.block_similarity[0] == pytest.approx(cosine, abs=2e-3)


def test_every_matrix_and_the_tied_head_are_covered(collected: Collect) -> None:
    found = load_statistics(collected())
    matrices = {name for name, w in tiny_weights(SIZES, 0).items() if w.ndim > 1}
    assert set(found.inputs) == matrices
    one, two = "blk.1.attn_q.weight", "blk.1.attn_v.weight"
    assert found.inputs[one] == found.inputs[two]
    assert found.inputs["blk.0.attn_q.weight"] != found.inputs[one]
    assert len(found.block_similarity) == SIZES.layers


def test_gemma_3_is_read_alike(collected: Collect, tmp_path: Path) -> None:
    model = write_tiny_gemma(tmp_path / "gemma.gguf")
    found = load_statistics(collected(model))
    matrices = {t.name for t in read_header(model).tensors if len(t.shape) > 1}
    assert set(found.inputs) == matrices
    assert np.abs(found.block_similarity).max() <= 1


def test_moments_added_up_on_disk_are_the_same(
    collected: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = collected().read_bytes()
    monkeypatch.setattr(collect, "MOMENTS_IN_MEMORY", 0)
    assert collected().read_bytes() == in_memory


def test_without_hessians_there_are_none(collected: Collect) -> None:
    assert not load_statistics(collected(hessians=False)).has_moments


def test_a_text_shorter_than_a_window_is_refused(collected: Collect) -> None:
    with pytest.raises(InvalidInputError, match="at least 2048 tokens, got"):
        collected(window_tokens=2048)


def test_what_a_callback_raises_ends_the_run(tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise InvalidInputError("seen enough")

    reader = ActivationReader(
        write_tiny_llama(tmp_path / "tiny.gguf"),
        WorkerSettings(threads=1, context_tokens=32),
        on_input=refuse,
        on_block=lambda *_: None,
    )
    with pytest.raises(InvalidInputError, match="seen enough"):
        reader.run([5, 6, 7])
    reader.close()


def test_a_drifted_tensor_layout_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = load_library()
    monkeypatch.setattr(llamacpp_activations, "_OBJECT_BYTES", 48)
    with pytest.raises(UnavailableError, match="ggml_tensor must have"):
        llamacpp_activations._checked_operations(lib)
