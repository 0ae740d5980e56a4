"""The real exports, where they are at hand: what is found in them, and that folds are exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.tiny_graphs import op_counts

from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.linears import LinearScan, find_linears
from fptq_onnx.model_io.load import LoadedModel, load_model
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.passes.equalize import equalize
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.runtime.decoder import Decoder
from fptq_onnx.runtime.decoder_io import decoder_io_of
from fptq_onnx.runtime.session import open_session_in_memory
from fptq_onnx.scheme.activation_stats import ActivationStats, ChannelRange
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import LAE_STATIC

# Export -> (linears, MatMul-like nodes, linears whose input is the output of a norm).
# 6 layers: qkv 1 or 3, o, gate, up, down, and the head; a decomposed attention adds 2 products a
# layer and the rotary 1 in all. Foldable are qkv, gate and up (or fc1), and the head.
EXPORTS = {
    "tinystories-7m-genai": (31, 31, 19),
    "tinystories-7m-outliers-genai": (31, 31, 19),
    "tinystories-7m-outliers-optimum": (43, 56, 31),
    "tinystories-7m-dynamo-past": (43, 56, 31),
    "llama-dynamo-past": (15, 20, 11),
    "llama-genai": (11, 11, 7),
    "llama-genai-noqkvfuse": (15, 15, 11),
    "llama-optimum": (15, 20, 11),
    "llama-optimum-ext": (15, 20, 11),
    "llama-tied-genai-shared": (11, 11, 7),
    "llama-tied-optimum": (15, 20, 11),
    "mistral-optimum": (15, 20, 11),
    "qwen2-genai": (11, 11, 7),
    "qwen3-dynamo": (15, 20, 11),
    "phi3-genai": (11, 11, 7),
    "gpt2-optimum": (9, 13, 5),
    "opt-optimum": (13, 17, 9),
    "bloom-optimum": (9, 13, 5),
    "gemma2-optimum": (15, 20, 11),
}


def loaded(shared_exports: Path, name: str) -> tuple[LoadedModel, LinearScan]:
    path = shared_exports / name
    if not path.is_dir():
        pytest.skip(f"no export {name} here")
    model = load_model(path)
    normalize(model.model)
    return model, find_linears(model.model)


@pytest.mark.parametrize("name", EXPORTS)
def test_linears_and_fold_sites(shared_exports: Path, name: str) -> None:
    _, scan = loaded(shared_exports, name)
    linears, total, foldable = EXPORTS[name]
    assert (len(scan.linears), len(scan.linears) + len(scan.others)) == (linears, total)
    sites = find_fold_sites(scan.linears)
    found = [key for key, site in sites.items() if isinstance(site, FoldSite)]
    assert len(found) == foldable, {key: s for key, s in sites.items() if isinstance(s, str)}
    assert len({linear.name for linear in scan.linears}) == linears
    # What cannot be folded are o_proj and down_proj (or fc2), and says what makes its input.
    for key, site in sites.items():
        if isinstance(site, str):
            assert "made by" in site, (key, site)


def logits(source: LoadedModel) -> np.ndarray:
    """Of two rows of nine tokens, and of one more decode step on the cache they leave."""
    io = decoder_io_of(source)
    session = open_session_in_memory(source.model, source.folder, threads=1)
    decoder = Decoder(session, io)
    ids = np.random.default_rng(0).integers(3, 200, (2, 9))
    first = decoder.forward(ids)
    parts = [first.logits]
    if io.has_cache:
        parts.append(decoder.forward(ids[:, :1], first.cache).logits)
    return np.concatenate(parts, axis=1)


def forced_statistics(scan: LinearScan) -> ActivationStats:
    """Ranges that put every foldable site between v0 and v1: channels from 0 to 140."""
    rng = np.random.default_rng(1)
    ranges = {}
    for linear in scan.linears:
        top = (140 * rng.random(linear.k) ** 4).astype(np.float32)
        top[0], top[1], top[2] = 0, 1e-3, 140
        ranges[linear.x.name or ""] = ChannelRange(-top, top / 2)
    return ActivationStats(ranges, 1, "forced")


@pytest.mark.parametrize("name", EXPORTS)
def test_equalization_is_exact(shared_exports: Path, name: str) -> None:
    source, scan = loaded(shared_exports, name)
    expected = logits(source)
    before = op_counts(source.model)
    stats = forced_statistics(scan)
    plan = choose_schemes(scan, stats, Config())
    assert plan.counts()[LAE_STATIC] == EXPORTS[name][2]
    folded = equalize(source.model, plan, stats).names
    assert len(folded) == len(plan.folded_sites())
    after = op_counts(source.model)
    assert all(after[op] <= before[op] for op in after)  # folded casts may go, nothing comes
    got = logits(source)
    assert np.isfinite(expected).all()
    # The acceptance of the issue. Each fold rounds gain and weight once more, about 2**-24 of every
    # term, and there are at most 13 folds in a row: 1e-6 of the logits' scale, a tenth of this.
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
