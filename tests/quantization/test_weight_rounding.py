from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.planned import carried_out, planned_task
from support.tiny_graphs import build, stats_of, weight

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.numerics.group_weights import quantize_rtn
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.quantization.from_statistics import quantize_from_statistics
from fptq_onnx.quantization.subgraphs import LayerGroup
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import SKIP, Plan
from fptq_onnx.scheme.weight_store import WeightStore


def model_and_plan(rng: np.random.Generator) -> tuple[ir.Model, Plan]:
    model = build(
        "g (float[A, 40] x) => (float[A, 6] z, float[A, 3] u) {"
        " y = MatMul(x, W1) r = Relu(y) z = Gemm<transB = 1>(r, W2, b) u = MatMul(x, W3) }",
        {
            "W1": weight(rng, 40, 7),
            "W2": weight(rng, 6, 7),
            "b": weight(rng, 6),
            "W3": weight(rng, 40, 3),
        },
    )
    plan = choose_schemes(find_linears(model), stats_of(model, {}), Config(block_size=32))
    rows = plan.linears
    edited = (
        rows[0],
        replace(rows[1], symmetric=False, block_size=-1),
        replace(rows[2], scheme=SKIP),
    )
    return model, replace(plan, linears=edited)


def test_each_linear_with_its_own_groups(rng: np.random.Generator, tmp_path: Path) -> None:
    model, plan = model_and_plan(rng)
    store = WeightStore(tmp_path)
    before = ir.to_proto(model).SerializeToString()
    carried_out(model, plan, stats_of(model, {}), store)
    w1 = model.graph.initializers["W1"].const_value.numpy()
    w2 = model.graph.initializers["W2"].const_value.numpy()
    for name, expected in {
        "y": quantize_rtn(w1, 32),
        "z": quantize_rtn(w2.T, -1, symmetric=False),
    }.items():
        got = store.get(name)
        np.testing.assert_array_equal(got.codes, expected.codes)
        np.testing.assert_array_equal(got.scales, expected.scales)
        assert (got.zero_points is None) == (expected.zero_points is None)
        assert got.block_size == expected.block_size
    assert "u" not in store  # kept in float
    assert ir.to_proto(model).SerializeToString() == before


def test_progress_sees_every_layer_group(rng: np.random.Generator, tmp_path: Path) -> None:
    model, plan = model_and_plan(rng)
    seen: list[str] = []

    def track(groups: Iterable[LayerGroup], total: int) -> Iterator[LayerGroup]:
        assert total == 2
        for group in groups:
            seen.append(group.x)
            yield group

    task = planned_task(model, plan, stats_of(model, {}))
    quantize_from_statistics(task, WeightStore(tmp_path), track=track)
    assert seen == ["x", "r"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_weight_is_named(rng: np.random.Generator, tmp_path: Path, bad: float) -> None:
    w = weight(rng, 8, 4)
    w[3, 2] = bad
    model = build("g (float[A, 8] x) => (float[A, 4] y) { y = MatMul(x, W) }", {"W": w})
    plan = choose_schemes(find_linears(model), stats_of(model, {}), Config())
    with pytest.raises(FptqError, match="cannot quantize W of y: the weight holds NaN"):
        carried_out(model, plan, stats_of(model, {}), WeightStore(tmp_path))
