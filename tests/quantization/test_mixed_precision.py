"""Bits are counted as they are written, and spent where they take off most per bit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.quantized import quantized
from support.tiny_graphs import build, weight

from fptq_onnx.conversion.provenance import bits_per_weight
from fptq_onnx.conversion.targets import emit
from fptq_onnx.errors import FptqError
from fptq_onnx.quantization.mixed_precision import (
    allocate_bits,
    average_bits,
    check_budget,
    one_form,
    planned_bits,
    precision_candidates,
)
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import PER_TOKEN, SKIP, LinearPlan, Plan

ALL = ("zero points", "half blocks", "both", "8 bits")


def entry(name: str = "a", k: int = 256, n: int = 64, **changes: object) -> LinearPlan:
    found = LinearPlan(name, name, k, n, 1.0, PER_TOKEN, "", None, None, 128, True)
    return replace(found, **changes)  # type: ignore[arg-type]


def plan_of(*entries: LinearPlan) -> Plan:
    return Plan(15, 150, entries)


def test_bits_by_hand() -> None:
    assert planned_bits(entry()) == 64 * (256 * 4 + 2 * 16)
    assert planned_bits(entry(symmetric=False)) == 64 * (256 * 4 + 2 * 24)
    assert planned_bits(entry(weight_bits=8, block_size=-1)) == 64 * (256 * 8 + 16)
    assert planned_bits(entry(n=65)) == 128 * (256 * 4 + 2 * 16)
    assert planned_bits(entry(k=257)) == 64 * (264 * 4 + 3 * 16)
    assert planned_bits(entry(scheme=SKIP)) == 256 * 64 * 32
    pair = plan_of(entry(), entry("b", scheme=SKIP))
    assert average_bits(pair) == (4.125 + 32) / 2


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("k", "n"), [(64, 64), (100, 70), (33, 130)])
def test_the_written_model_has_the_bits_planned(
    rng: np.random.Generator, tmp_path: Path, k: int, n: int, symmetric: bool, fuse: bool
) -> None:
    """4 bits, 8 bits and float side by side, fused and apart."""
    model = build(
        f"g_ (float[A, {k}] x) => (float[A, {n}] q, float[A, {n}] r, float[A, 3] y) {{"
        " q = MatMul(x, Wq) r = MatMul(x, Wk) h = Relu(q) y = MatMul(h, Wy) }",
        {"Wq": weight(rng, k, n), "Wk": weight(rng, k, n), "Wy": weight(rng, n, 3)},
        opset=21, ir_version=10,
    )  # fmt: skip
    config = Config(block_size=32, symmetric=symmetric, int8_layers=("y",), fuse=fuse)
    made = quantized(model, tmp_path, block_size=32, symmetric=symmetric, int8_layers=("y",))
    emitted = emit("custom", model.clone(), made.plan, made.store, config)
    written = bits_per_weight(made.plan, emitted.model)
    np.testing.assert_allclose(average_bits(made.plan), written, rtol=1e-12)


def test_forms_of_a_linear() -> None:
    precisions = precision_candidates(entry())
    assert tuple(precisions) == ALL
    assert not precisions["zero points"].symmetric and precisions["zero points"].block_size == 128
    assert precisions["half blocks"].block_size == 64 and precisions["half blocks"].symmetric
    assert not precisions["both"].symmetric and precisions["both"].block_size == 64
    assert (precisions["8 bits"].weight_bits, precisions["8 bits"].block_size) == (8, -1)
    assert set(precision_candidates(entry(symmetric=False))) == {"half blocks", "8 bits"}
    assert set(precision_candidates(entry(block_size=32))) == {"zero points", "8 bits"}
    assert precision_candidates(entry(block_size=64))["half blocks"].block_size == 32
    assert set(precision_candidates(entry(block_size=-1))) == {"zero points", "8 bits"}
    assert not precision_candidates(entry(scheme=SKIP)) and not precision_candidates(
        entry(weight_bits=8)
    )


def test_a_budget_that_cannot_be_met() -> None:
    check_budget(plan_of(entry()), 4.125)
    with pytest.raises(FptqError, match=r"4\.1 cannot be met: this model needs 4\.12 bits"):
        check_budget(plan_of(entry()), 4.1)


RATIOS = {"zero points": 0.8, "half blocks": 0.7, "both": 0.6, "8 bits": 0.01}


def test_the_most_harm_per_bit_first() -> None:
    """Three layer groups of one size: each in turn gets what is best for its price."""
    plan = plan_of(*(entry(name) for name in "abc"))
    groups, sensitivity = [["a"], ["b"], ["c"]], [1.0, 10.0, 0.1]
    zero = (
        8 * 2 * 64
    )  # price of zero points: 0.2 of the sensitivity for a 64th of the price of 8 bits
    base = sum(map(planned_bits, plan.linears))
    weights = 3 * 256 * 64

    def spent(bits: float) -> list[tuple[int, bool, int]]:
        found = allocate_bits(plan, groups, sensitivity, [RATIOS] * 3, (base + bits) / weights)
        return [(row.weight_bits, row.symmetric, row.block_size) for row in found.linears]

    plain, asymmetric = (4, True, 128), (4, False, 128)
    assert spent(zero - 1) == [plain] * 3
    assert spent(zero) == [plain, asymmetric, plain]
    # Per bit: a's zero points 0.2 / 1024, b's step from there to both 2 / 3072.
    # Per bit: a's zero points 0.2 / 1024, b's step from there to half blocks 1 / 1024.
    assert spent(2 * zero) == [plain, (4, True, 64), plain]
    both = 64 * (2 * 8 + 2 * 24)
    assert spent(both) == [plain, (4, False, 64), plain]
    assert spent(1e9) == [(8, True, -1)] * 3


@pytest.mark.parametrize("budget", [4.125, 4.2, 4.5, 5, 6, 7.9, 8.0625, 40])
def test_never_above_the_budget_and_no_step_left_out(
    rng: np.random.Generator, budget: float
) -> None:
    sizes = [(256, 64), (256, 128), (512, 64), (128, 192), (1024, 64)]
    plan = plan_of(*(entry(str(i), k, n) for i, (k, n) in enumerate(sizes)))
    groups = [["0", "1"], ["2"], ["3", "4"]]
    sensitivity = [3.0, 0.5, 1.0]
    ratios = [{precision: float(rng.uniform(0, 1)) for precision in ALL} for _ in groups]
    found = allocate_bits(plan, groups, sensitivity, ratios, budget)
    assert average_bits(found) <= budget
    left = (budget - average_bits(found)) * sum(row.k * row.n for row in plan.linears)
    assert [row.name for row in found.linears] == [row.name for row in plan.linears]
    planned, now = plan.by_name(), found.by_name()
    for names, ratio in zip(groups, ratios, strict=True):
        shapes = {(now[n].weight_bits, now[n].symmetric, now[n].block_size) for n in names}
        assert len(shapes) == 1  # linears of one layer group go together
        has = [
            precision
            for precision in ALL
            if precision_candidates(planned[names[0]])[precision] == now[names[0]]
        ]
        current = ratio[has[0]] if has else 1.0
        for (
            precision
        ) in ALL:  # whatever is better than what the layer group has costs more than is left
            price = sum(
                planned_bits(precision_candidates(planned[n])[precision]) - planned_bits(now[n])
                for n in names
            )
            assert ratio[precision] >= current or price <= 0 or price > left


def test_a_step_that_helps_nothing_is_not_taken() -> None:
    plan = plan_of(entry("a"), entry("b"))
    for sensitivity, ratio in ((0.0, 0.1), (1.0, 1.0), (1.0, 1.5), (-0.001, 0.1)):
        ratios = [dict.fromkeys(ALL, ratio)] * 2
        assert allocate_bits(plan, [["a"], ["b"]], [sensitivity, 0.0], ratios, 32) == plan


def test_linears_that_are_float_or_wide_stay() -> None:
    fixed = (entry("b", scheme=SKIP), entry("c", weight_bits=8, block_size=-1))
    plan = plan_of(entry("a"), *fixed)
    found = allocate_bits(plan, [["a", "b", "c"]], [1.0], [RATIOS], 32)
    assert found.linears[1:] == fixed
    assert found.linears[0].weight_bits == 8


def test_greedy_is_near_the_best_of_all(rng: np.random.Generator) -> None:
    """Brute force over three layer groups: the greedy choice loses at most the last step's gain."""
    plan = plan_of(*(entry(name) for name in "abc"))
    groups = [["a"], ["b"], ["c"]]
    for _ in range(5):
        sensitivity = rng.uniform(0.1, 3, 3).tolist()
        ratios = [RATIOS] * 3
        found = allocate_bits(plan, groups, sensitivity, ratios, 5.5)

        def left(choice: Plan, sensitivity: list[float] = sensitivity) -> float:
            total = 0.0
            for row, cost in zip(choice.linears, sensitivity, strict=True):
                precisions = precision_candidates(entry(row.name))
                has = [precision for precision in ALL if precisions[precision] == row]
                total += cost * (RATIOS[has[0]] if has else 1.0)
            return total

        options = [[entry(name), *precision_candidates(entry(name)).values()] for name in "abc"]
        best = min(
            left(plan_of(*rows))
            for rows in itertools.product(*options)
            if average_bits(plan_of(*rows)) <= 5.5
        )
        assert left(found) <= best + 0.6 * max(sensitivity)
        assert left(found) < 0.75 * sum(sensitivity)


def test_one_weight_has_one_form() -> None:
    """Two precisions of one weight would be stored both: the wider one serves all its uses."""
    entries = [replace(entry(), name=name) for name in "abcd"]
    entries[1] = replace(entries[1], symmetric=False)
    entries[2] = precision_candidates(entries[2])["8 bits"]
    entries[3] = replace(entries[3], scheme=SKIP)
    plan = Plan(15, 150, tuple(entries))
    shared = {"a": "a", "b": "a", "c": "a", "d": "a"}
    found = one_form(plan, shared).linears
    assert [each.weight_bits for each in found] == [8, 8, 8, 4]
    assert {each.block_size for each in found[:3]} == {-1} and found[3] == entries[3]
    assert one_form(plan, {}) == plan
