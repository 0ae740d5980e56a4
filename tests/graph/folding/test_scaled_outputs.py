"""Caches of a folded model are not compared with the original's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.attention import FOLDABLE, attention_model
from support.tiny_graphs import run

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.verify import verify
from fptq_onnx.graph.folding.linear_sites import find_linear_sites
from fptq_onnx.graph.folding.scaled_outputs import scaled_outputs
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.model_io.load import load_model
from fptq_onnx.passes.fold_into_producers import fold_into_producers

CACHES = ["cache", "GroupQueryAttention", "GroupQueryAttention, packed"]


@pytest.mark.parametrize("name", CACHES)
def test_the_cache_of_values_alone(rng: np.random.Generator, name: str) -> None:
    linears = find_linears(attention_model(rng, FOLDABLE[name])).linears
    site = find_linear_sites(linears)["o"]
    assert scaled_outputs(linears, (site.name,)) == {"present"}
    assert scaled_outputs(linears, ("o",)) == frozenset()


@pytest.mark.parametrize("name", CACHES)
def test_the_check_names_what_it_does_not_compare(
    rng: np.random.Generator, tmp_path: Path, name: str
) -> None:
    """Divided by 8 the cache is far off, everything else is the same but for rounding."""
    model = attention_model(rng, FOLDABLE[name])
    site = find_linear_sites(find_linears(model).linears)["o"]
    after = model.clone()
    fold_into_producers(after, {site.name: np.full(32, 8, np.float32)})
    for folder, item in (("a", model), ("b", after)):
        (tmp_path / folder).mkdir()
        ir.save(item, tmp_path / folder / "model.onnx")
    feeds = {
        value.name or "": rng.standard_normal(value.shape.numpy()).astype(np.float32) * 0
        for value in model.graph.inputs
        if value.shape is not None
    }
    feeds["x"] = rng.standard_normal(feeds["x"].shape).astype(np.float32)
    assert "present" in run(model, feeds)
    loaded = load_model(tmp_path / "a" / "model.onnx")
    divided = scaled_outputs(find_linears(loaded.model).linears, (site.name,))
    samples = Samples([feeds])
    plain = verify(loaded, tmp_path / "b", samples, 1, threads=1)
    assert "worst output present" in plain.line
    told = verify(loaded, tmp_path / "b", samples, 1, threads=1, divided=divided)
    assert "present" not in [output["name"] for output in told.outputs]
    assert told.as_dict()["divided"] == ["present"]
    assert min(output["sqnr_db"] for output in told.outputs) > 100
    assert "1 cache outputs hold divided values and are not compared" in told.line
