from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.norms import NORMS, K, Norm, normed_graph
from support.tiny_graphs import stats_of

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.scheme.activation_stats import ActivationStats, ChannelRange
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import LAE_STATIC, PER_TOKEN, SKIP, STATIC, LinearPlan

# q and k read the norm; down reads an activation that no gain can take.
READERS = "q = MatMul(n, Wq) k = MatMul(n, Wk) act = Tanh(x) down = MatMul(act, Wd)"
OUTPUTS = "float q, float k, float down"


@pytest.fixture
def model(rng: np.random.Generator) -> ir.Model:
    more = {"Wd": rng.standard_normal((K, 3)).astype(np.float32)}
    return normed_graph(rng, NORMS["dynamo RMSNorm"], readers=READERS, outputs=OUTPUTS, more=more)


def absmax(top: float) -> np.ndarray:
    values = np.ones(K, np.float32)
    values[3] = top  # an odd channel: only its negative side is that large
    return values


def planned(model: ir.Model, top_n: float, top_a: float, config: Config) -> dict[str, LinearPlan]:
    stats = stats_of(model, {"n": absmax(top_n), "act": absmax(top_a)})
    return choose_schemes(find_linears(model), stats, config).by_name()


def above(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def test_thresholds_are_inclusive(model: ir.Model) -> None:
    tops = {15.0: STATIC, above(15): LAE_STATIC, 150.0: LAE_STATIC, above(150): PER_TOKEN}
    for top, scheme in tops.items():
        plan = planned(model, top, 1, Config())
        assert {plan["q"].scheme, plan["k"].scheme} == {scheme}, top
        assert plan["q"].range == top


def test_thresholds_come_from_the_config(model: ir.Model) -> None:
    assert planned(model, 15, 1, Config(v0=14, v1=150))["q"].scheme == LAE_STATIC
    assert planned(model, 15, 1, Config(v0=14, v1=14.5))["q"].scheme == PER_TOKEN
    assert planned(model, 0.5, 1, Config(v0=0, v1=0))["q"].scheme == PER_TOKEN


def test_static_scale_is_range_over_127(model: ir.Model) -> None:
    plan = planned(model, 12.7, 1, Config())["q"]
    assert plan.input_scale == float(np.float32(12.7) / np.float32(127))
    assert plan.fold_site is None
    assert plan.reason == "range 12.7 <= v0 = 15"


def test_equalized_scale_is_the_equalized_range_over_127(model: ir.Model) -> None:
    plan = planned(model, 126, 1, Config())["q"]
    # Channel 3 becomes log2(2 + 126) = 7; the others log2(3) < 7.
    assert plan.input_scale == pytest.approx(7 / 127, rel=2**-22)
    assert plan.fold_site == "n"
    assert plan.reason == "v0 = 15 < range 126 <= v1 = 150"


def test_no_site_means_per_token_with_the_reason(model: ir.Model) -> None:
    plan = planned(model, 1, 20, Config())["down"]
    assert (plan.scheme, plan.fold_site, plan.input_scale) == (PER_TOKEN, None, None)
    assert plan.reason == (
        "v0 = 15 < range 20 <= v1 = 150, but it cannot be equalized: "
        "its input is made by act (Tanh), which has no gain to fold into"
    )


def test_beyond_v1_says_so(model: ir.Model) -> None:
    plan = planned(model, 1, 3000, Config())["down"]
    assert (plan.scheme, plan.reason) == (PER_TOKEN, "range 3000 > v1 = 150")


def test_the_entries_carry_shape_and_groups(model: ir.Model) -> None:
    plan = planned(model, 1, 1, Config(block_size=32, symmetric=False))
    assert list(plan) == ["q", "k", "down"]
    down = plan["down"]
    assert (down.k, down.n, down.block_size, down.symmetric) == (K, 3, 32, False)


@pytest.mark.parametrize("pattern", ["^k$", "W[k]", "k"])
def test_ignored_linears_stay_float_but_follow_a_fold(model: ir.Model, pattern: str) -> None:
    """By node name and by weight name; q is equalized, so k's weight must take s too."""
    plan = planned(model, 100, 1, Config(ignore=(pattern,)))
    assert (plan["q"].scheme, plan["q"].fold_site) == (LAE_STATIC, "n")
    assert (plan["k"].scheme, plan["k"].fold_site) == (SKIP, "n")
    assert (plan["k"].input_scale, pattern in plan["k"].reason) == (None, True)
    assert plan["down"].scheme == STATIC


def test_ignoring_by_module_path(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.name == "k")
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'model.layers.0.k_proj', 'linear']"
    plan = planned(model, 1, 1, Config(ignore=(r"layers\.0\.k_proj",)))
    assert [entry.scheme for entry in plan.values()] == [STATIC, SKIP, STATIC]


def test_no_fold_when_every_reader_is_ignored(model: ir.Model) -> None:
    plan = planned(model, 100, 1, Config(ignore=("^q$", "^k$")))
    assert [plan[name].fold_site for name in "qk"] == [None, None]


def test_a_pattern_without_a_match_is_an_error(model: ir.Model) -> None:
    with pytest.raises(FptqError, match=r"--ignore 'v_proj' matches no linear.*'q'"):
        planned(model, 1, 1, Config(ignore=("^q$", "v_proj")))


def test_statistics_of_another_model(model: ir.Model) -> None:
    scan = find_linears(model)
    with pytest.raises(FptqError, match="do not cover the input of q"):
        choose_schemes(scan, ActivationStats({}), Config())
    short = stats_of(model, {"n": np.ones(K - 1)})
    with pytest.raises(FptqError, match=f"have {K - 1} channels .* has {K}"):
        choose_schemes(scan, short, Config())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_statistics_that_are_not_finite(model: ir.Model, bad: float) -> None:
    stats = stats_of(model, {"act": absmax(bad)})
    with pytest.raises(FptqError, match="NaN or infinity for the input of down"):
        choose_schemes(find_linears(model), stats, Config())


def test_a_site_is_scaled_by_all_its_readers(rng: np.random.Generator) -> None:
    """Two views of one value (through a Reshape) may have been seen with different ranges."""
    norm = NORMS["dynamo RMSNorm"]
    readers = "q = MatMul(n, Wq) rows = Reshape(n, to_rows) k = MatMul(rows, Wk)"
    model = normed_graph(rng, norm, readers=readers, outputs="float q, float k")
    left, right = np.ones(K, np.float32), np.ones(K, np.float32)
    left[0], right[1] = 30, 62
    stats = ActivationStats(
        {"n": ChannelRange(-left, left), "rows": ChannelRange(-right, right)}, 1
    )
    plan = choose_schemes(find_linears(model), stats, Config()).by_name()
    # s_0 = 30 / log2(32) = 6 and s_1 = 62 / log2(64): q tops at 5, k at 6.
    assert plan["q"].input_scale == pytest.approx(5 / 127, rel=2**-22)
    assert plan["k"].input_scale == pytest.approx(6 / 127, rel=2**-22)


def test_an_all_zero_activation(rng: np.random.Generator) -> None:
    model = normed_graph(
        rng, Norm("n = Tanh(x)", ()), readers="q = MatMul(n, Wq)", outputs="float q"
    )
    stats = stats_of(model, {"n": np.zeros(K)})
    entry = choose_schemes(find_linears(model), stats, Config()).linears[0]
    assert (entry.scheme, entry.range, entry.input_scale) == (STATIC, 0.0, 1.0)
