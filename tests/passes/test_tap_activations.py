"""What the taps report must be what NumPy sees in the same activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tiny_graphs import build, run, weight

from fptq_onnx.graph.linears import find_linears
from fptq_onnx.passes.tap_activations import Tap, tap_activations

TEXT = (
    "g_ (TYPE[A, S, 8] x) => (TYPE[A, S, 6] y, TYPE[A, S, 8] present) {"
    " h = MatMul(x, W1) r = Relu(h) n = Neg(r) present = Identity(n)"
    " y = MatMul(n, W2) z = MatMul(n, W3) }"
)


def model_of(rng: np.random.Generator, opset: int, dtype: str) -> ir.Model:
    names = {"W1": (8, 8), "W2": (8, 6), "W3": (8, 6)}
    return build(
        TEXT.replace("TYPE", "float" if dtype == "float32" else dtype),
        {name: weight(rng, *shape, dtype=dtype) for name, shape in names.items()},
        opset=opset,
    )


def tapped(model: ir.Model, keep: tuple[str, ...] = ()) -> tuple[ir.Model, tuple[Tap, ...]]:
    clone = model.clone()
    return clone, tap_activations(clone, find_linears(clone).linears, keep)


def with_outputs(model: ir.Model, names: list[str], dtype: ir.DataType) -> ir.Model:
    clone = model.clone()
    for node in clone.graph:
        for value in node.outputs:
            if value.name in names:
                value.dtype = dtype
                clone.graph.outputs.append(value)
    return clone


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("opset", [17, 18, 20, 23])
def test_ranges_equal_numpys(rng: np.random.Generator, opset: int, dtype: str) -> None:
    model = model_of(rng, opset, dtype)
    clone, taps = tapped(model)
    assert [tap.activation for tap in taps] == ["x", "n"]  # two linears share n: one tap
    x = weight(rng, 3, 5, 8, dtype=dtype)
    seen = run(with_outputs(model, ["n"], ir.DataType.from_numpy(np.dtype(dtype))), {"x": x})
    got = run(clone, {"x": x})
    for tap, activation in zip(taps, (x, seen["n"]), strict=True):
        rows = activation.reshape(-1, 8).astype(np.float32)
        assert got[tap.low].dtype == np.float32
        np.testing.assert_array_equal(got[tap.low], rows.min(axis=0))
        np.testing.assert_array_equal(got[tap.high], rows.max(axis=0))
        np.testing.assert_array_equal(got[tap.bottom], rows.min(axis=1))
        np.testing.assert_array_equal(got[tap.top], rows.max(axis=1))
        assert got[tap.total].shape == ()
        # A sum of 120 terms in any order: 120 eps of the sum of magnitudes.
        exact = rows.sum(dtype=np.float64)
        assert abs(got[tap.total] - exact) <= 120 * 2.0**-23 * np.abs(rows).sum()


def test_the_ranges_are_not_trivial(rng: np.random.Generator) -> None:
    """low and high differ per channel and in sign, or the test above could pass by chance."""
    clone, taps = tapped(model_of(rng, 18, "float32"))
    got = run(clone, {"x": weight(rng, 3, 5, 8)})
    assert len(set(got[taps[0].low])) == 8
    assert (got[taps[0].low] < 0).all()
    assert (got[taps[1].high] <= 0).all()
    assert not (got[taps[1].low] == got[taps[0].low]).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("place", [(0, 0, 0), (2, 4, 7), (1, 2, 3)])
def test_one_bad_value_shows_in_the_total(
    rng: np.random.Generator, bad: float, dtype: str, place: tuple[int, int, int]
) -> None:
    clone, taps = tapped(model_of(rng, 18, dtype))
    x = weight(rng, 3, 5, 8, dtype=dtype)
    x[place] = bad
    got = run(clone, {"x": x})
    assert not np.isfinite(got[taps[0].total])


def test_opposite_infinities_do_not_cancel(rng: np.random.Generator) -> None:
    clone, taps = tapped(model_of(rng, 18, "float32"))
    x = weight(rng, 1, 2, 8)
    x[0, 0, 0], x[0, 1, 0] = np.inf, -np.inf
    assert not np.isfinite(run(clone, {"x": x})[taps[0].total])


def test_float16_totals_do_not_overflow(rng: np.random.Generator) -> None:
    clone, taps = tapped(model_of(rng, 18, "float16"))
    x = np.full((4, 4, 8), 60000, np.float16)
    total = run(clone, {"x": x})[taps[0].total]
    assert total == 128 * np.float32(np.float16(60000))  # exact: 128 is a power of two


def test_what_nobody_needs_is_dropped(rng: np.random.Generator) -> None:
    clone, taps = tapped(model_of(rng, 18, "float32"))
    assert "W1" in clone.graph.initializers
    assert not {"W2", "W3"} & set(clone.graph.initializers)
    names = {output.name for output in clone.graph.outputs}
    assert names == {name for tap in taps for name in tap.names}


def test_kept_outputs_stay_and_the_original_is_untouched(rng: np.random.Generator) -> None:
    model = model_of(rng, 18, "float32")
    before = ir.to_proto(model).SerializeToString()
    clone, _ = tapped(model, keep=("present",))
    assert clone.graph.outputs[0].name == "present"
    assert "y" not in {output.name for output in clone.graph.outputs}
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("dims", ["A", "A, S", "A, B, S"])
def test_any_rank(rng: np.random.Generator, dims: str) -> None:
    model = build(
        f"g_ (float[{dims}, 8] x) => (float[{dims}, 6] y) {{ y = MatMul(x, W) }}",
        {"W": weight(rng, 8, 6)},
    )
    clone, taps = tapped(model)
    x = weight(rng, *(2 for _ in dims.split(",")), 8)
    got = run(clone, {"x": x})
    np.testing.assert_array_equal(got[taps[0].high], x.reshape(-1, 8).max(axis=0))
