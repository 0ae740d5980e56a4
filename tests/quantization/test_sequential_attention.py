"""The walk through attention: what is stored of v and o is what the folded model has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.attention import FOLDABLE, attention_model
from support.layer_groups import feeds_of, loaded
from support.tiny_graphs import run

from fptq_onnx.calibration.collect import collect
from fptq_onnx.calibration.feeds import Feeds
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.numerics.group_weights import dequantize
from fptq_onnx.numerics.smoothing_scales import CANDIDATES
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.passes.fold_into_producers import fold_into_producers
from fptq_onnx.quantization.sequential import quantize_sequentially
from fptq_onnx.runtime.session import open_session_in_memory
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.weight_store import WeightStore


@pytest.mark.parametrize("equalization", CANDIDATES)
@pytest.mark.parametrize("name", ["grouped", "parts of heads", "MultiHeadAttention"])
def test_stored_weights_are_those_of_the_folded_model(
    rng: np.random.Generator, tmp_path: Path, name: str, equalization: str
) -> None:
    """With 8 bits in one group and rounding to nearest: W within half a step, folds included.

    And within 127 * 2**-11 of a step, from the rounding of scales to float16 after a fold.
    """
    model = attention_model(rng, FOLDABLE[name])
    ready = loaded(tmp_path / "model", model)
    shape = (2, 3, 32)
    batches = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(3)]
    config = Config(block_size=-1, weights="rtn", policy="thresholds", v0=0, v1=0, w8=(".",))
    scan = find_linears(ready.model)
    stats = collect(ready, Feeds(batches), description="x")
    plan = choose_schemes(scan, stats, config)
    rows = tuple(
        replace(entry, equalization=equalization if entry.name == "o" else "none", weight_bits=8)
        for entry in plan.linears
    )
    store = WeightStore(tmp_path / "weights")
    result = quantize_sequentially(
        ready, scan, replace(plan, linears=rows), stats, config, feeds_of(*batches), store,
        tmp_path / "values", threads=1, replay=True,
    )  # fmt: skip
    source = result.plan.by_name()["o"].fold_site
    assert (source is None) == (equalization == "none")
    folded = ready.model.clone()
    assert fold_into_producers(folded, result.scales).names == (() if source is None else (source,))
    for linear in find_linears(folded).linears:
        found = store.get(linear.name)
        w = linear.weight.load()
        bound = found.scales[0] * (0.5001 + 127 * 2.0**-11) + np.abs(w) * 2.0**-22
        assert (np.abs(dequantize(found) - w) <= bound).all()
    expected = run(model, batches[0])["o"]
    session = open_session_in_memory(folded, ready.folder, threads=1)
    got = session.run(["o"], batches[0])[0]
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()
    if source is not None and equalization != "none":
        assert (result.scales[source] != 1).any()
