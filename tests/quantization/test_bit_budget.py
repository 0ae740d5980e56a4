"""A tiny language model within a budget of bits: walked, probed, spent, walked again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.layer_groups import loaded
from support.tiny_graphs import build, weight

from fptq_onnx.calibration.collect import collect
from fptq_onnx.calibration.data import TokenWindows
from fptq_onnx.calibration.feeds import Feeds
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.numerics.group_weights import quantize_rtn
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.passes.fold_into_producers import fold_into_producers
from fptq_onnx.quantization.bit_budget import quantize_within_budget
from fptq_onnx.quantization.mixed_precision import average_bits, measure_sensitivity
from fptq_onnx.quantization.sequential import SequentialResult
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.weight_store import WeightStore

K, M, V = 64, 128, 40


class Setting:
    def __init__(self, rng: np.random.Generator, folder: Path) -> None:
        model = build(
            "g_ (int64[B, S] input_ids) => (float[B, S, 40] logits) { e = Gather(E, input_ids)"
            " n = SimplifiedLayerNormalization<axis = -1, epsilon = 1.0e-5>(e, gain)"
            " g = MatMul(n, Wg) a = Sigmoid(g) up = MatMul(n, Wu) p = Mul(a, up)"
            " down = MatMul(p, Wd) r = Add(e, down) logits = MatMul(r, Wl) }",
            {
                "E": weight(rng, V, K), "gain": (1 + weight(rng, K)).astype(np.float32),
                "Wg": weight(rng, K, M), "Wu": weight(rng, K, M), "Wd": weight(rng, M, K),
                # The last linear alone decides: nearly all the sensitivity is its.
                "Wl": weight(rng, K, V),
            },
        )  # fmt: skip
        self.loaded = loaded(folder / "model", model)
        self.scan = find_linears(self.loaded.model)
        self.windows = TokenWindows([rng.integers(0, V, 20) for _ in range(6)], 2)
        self.stats = collect(self.loaded, self.windows)
        self.folder = folder
        self.lines: list[str] = []
        self.store = WeightStore(folder / "weights")

    def solve(self, config: Config, **options: object) -> SequentialResult:
        given = {"source": self.windows, "plan": choose_schemes(self.scan, self.stats, config),
                 "replay": False, **options}  # fmt: skip
        result = quantize_within_budget(
            self.loaded, self.scan, stats=self.stats, config=config, store=self.store,
            values=self.folder / "values", threads=1, quiet=True, say=self.lines.append, **given,
        )  # type: ignore[arg-type]  # fmt: skip
        assert not (self.folder / "values").exists()
        return result


@pytest.fixture
def setting(rng: np.random.Generator, tmp_path: Path) -> Setting:
    return Setting(rng, tmp_path)


def test_without_a_budget_it_is_one_walk(setting: Setting) -> None:
    result = setting.solve(Config(block_size=64))
    assert not setting.lines and not result.ratios
    assert all(row.weight_bits == 4 and row.block_size == 64 for row in result.plan.linears)


@pytest.mark.parametrize("budget", [4.9, 5.3, 7.0])
def test_the_budget_is_spent_and_kept(setting: Setting, budget: float) -> None:
    result = setting.solve(Config(block_size=64, bits_budget=budget))
    plain = average_bits(choose_schemes(setting.scan, setting.stats, Config(block_size=64)))
    assert plain < average_bits(result.plan) <= budget
    assert len(setting.lines) == 1 and f"{budget:g} bits on average" in setting.lines[0]
    for row in result.plan.linears:
        found = setting.store.get(row.name)
        assert (found.bits, found.block_size) == (row.weight_bits, row.block_size)
        assert (found.zero_points is None) == row.symmetric


def test_harm_is_that_of_the_stage_alone(setting: Setting) -> None:
    """Smoothing scales folded before and after are undone: weights in 8 bits cost hardly any."""
    result = setting.solve(Config(block_size=64))
    rows = [replace(row, equalization="balance:0.5") for row in result.plan.linears[:3]]
    plan = replace(result.plan, linears=(*rows, result.plan.linears[3]))
    result = setting.solve(Config(block_size=64), plan=plan, replay=True)
    assert set(result.scales) == {"n", "up"}

    def sensitivities() -> list[float]:
        groups, sensitivity = measure_sensitivity(
            setting.loaded, setting.scan, result.plan, result.scales, setting.store,
            setting.windows.windows, threads=1,
        )  # fmt: skip
        assert groups == [["g", "up"], ["down"], ["logits"]]
        return sensitivity

    coarse = sensitivities()
    folded = setting.loaded.model.clone()
    fold_into_producers(folded, result.scales)
    for linear in find_linears(folded).linears:
        setting.store.put(linear.name, quantize_rtn(linear.weight.load(), -1, bits=8))
    # 17 times finer steps in longer groups, and KL is quadratic in small errors; a scale left in
    # or out moves all.
    for fine, rough in zip(sensitivities(), coarse, strict=True):
        assert 0 < fine < rough / 30


def test_linears_of_8_bits_or_in_float_have_no_harm(setting: Setting) -> None:
    config = Config(block_size=64, w8=("^g$", "^up$"), ignore=("down",))
    result = setting.solve(config)
    _, sensitivity = measure_sensitivity(
        setting.loaded, setting.scan, result.plan, result.scales, setting.store,
        setting.windows.windows, threads=1,
    )  # fmt: skip
    assert sensitivity[:2] == [0, 0] and sensitivity[2] > 0


def test_refusals(setting: Setting) -> None:
    with pytest.raises(FptqError, match="cannot be met"):
        setting.solve(Config(block_size=64, bits_budget=4.2))
    with pytest.raises(FptqError, match="--bits-budget and --plan cannot be combined"):
        setting.solve(Config(block_size=64, bits_budget=6), replay=True)
    feeds = Feeds([{"input_ids": np.zeros((1, 3), np.int64)}])
    with pytest.raises(FptqError, match="needs token samples"):
        setting.solve(Config(block_size=64, bits_budget=6), source=feeds)
