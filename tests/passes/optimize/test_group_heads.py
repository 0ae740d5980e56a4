"""Products of repeated heads: the same numbers from heads that are not repeated."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.exported_attention import (
    ATTENTION,
    CACHE,
    GUARDED,
    KEYS_TURNED,
    MERGED,
    QUERIES,
    SCORES,
    attention,
    feeds,
    repeated,
)
from support.tiny_graphs import build, op_counts, run

from fptq_onnx.passes import PassResult
from fptq_onnx.passes.optimize.group_heads import group_heads

# Sums of 8 products of size 1 and of up to 20 probabilities, in float32, in another order.
TOLERANCE = 2e-6
SHAPES = [(2, 3, 5), (1, 1, 9), (2, 7, 0), (3, 1, 6), (1, 20, 0)]


@pytest.mark.parametrize(("batch", "new", "past"), SHAPES)
@pytest.mark.parametrize("optimize", [False, True])
def test_the_same_numbers(
    rng: np.random.Generator, batch: int, new: int, past: int, optimize: bool
) -> None:
    model = attention()
    inputs = feeds(rng, batch=batch, new=new, past=past)
    before = run(model, inputs, optimize=optimize)["y"]
    assert group_heads(model) == PassResult(2)
    after = run(model, inputs, optimize=optimize)["y"]
    np.testing.assert_allclose(after, before, rtol=0, atol=TOLERANCE)
    assert np.abs(before).max() > 0.1
    assert "Expand" not in op_counts(model)  # nothing is left of it
    assert "Unsqueeze" not in op_counts(model)


def test_names_of_outputs_stay() -> None:
    model = attention(outputs="float[b, s, 32] y, float o, float s0")
    group_heads(model)
    assert [value.name for value in model.graph.outputs] == ["y", "o", "s0"]


def test_outputs_that_are_products_are_the_same(rng: np.random.Generator) -> None:
    model, inputs = (
        attention(outputs="float y, float[b, 4, s, 8] o, float[b, 4, s, t] s0"),
        feeds(rng),
    )
    before = run(model, inputs)
    group_heads(model)
    after = run(model, inputs)
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=2e-5)


def test_repeated_heads_that_others_read_stay(rng: np.random.Generator) -> None:
    text = ATTENTION + " z = Exp(vh)"
    model, inputs = attention(text, outputs="float y, float z"), feeds(rng)
    before = run(model, inputs)
    assert group_heads(model).changed == 2
    after = run(model, inputs)
    np.testing.assert_array_equal(after["z"], before["z"])
    np.testing.assert_allclose(after["y"], before["y"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("start", "part"), [("", 4), ("<start = 1, end = 3>", 2)])
def test_a_shape_that_is_read_does_not_keep_them(
    rng: np.random.Generator, start: str, part: int
) -> None:
    text = ATTENTION + f" z = Shape{start}(kh)"
    model, inputs = attention(text, outputs=f"float y, int64[{part}] z"), feeds(rng)
    before = run(model, inputs)
    assert group_heads(model).changed == 2
    after = run(model, inputs)
    np.testing.assert_array_equal(after["z"], before["z"])
    assert "Expand" not in op_counts(model)


def parts(**changed: str) -> str:
    texts = {
        "queries": QUERIES, "cache": CACHE, "k": repeated("k"), "v": repeated("v"),
        "turned": KEYS_TURNED, "scores": SCORES, "guarded": GUARDED, "merged": MERGED,
    } | changed  # fmt: skip
    return " ".join(texts.values())


# What is done to keys, and the reason for leaving the first product as it is. Each of these gives
# other numbers where it is taken for plain repetition, or cannot be told from what does.
DECLINED = {
    "heads side by side": (
        parts(k=repeated("k").replace("Unsqueeze(kc, at2)", "Unsqueeze(kc, at1)")),
        "the axis they are repeated along",
    ),
    "tokens repeated": (
        parts(k=repeated("k").replace("k_b, two, two, k_t, eight", "k_b, two, two, three, eight")),
        "which may change more than heads",
    ),
    "channels for tokens": (
        parts(k=repeated("k").replace("four, k_t, eight", "four, eight, k_t").replace("kh", "kt"),
              turned=""),
        "which may mix heads",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_not_plain_repetition_is_left(name: str) -> None:
    text, reason = DECLINED[name]
    model = attention(text)
    result = group_heads(model)
    assert result.changed == 1  # the values
    (said,) = result.declined
    assert str(said).startswith("s0: its heads are still repeated") and reason in said.reason


def test_rows_of_one_head_are_left(rng: np.random.Generator) -> None:
    """One head of queries for all heads of keys: the product repeats it, by broadcasting."""
    text = parts(queries="qh = Unsqueeze(q, at1)").replace(MERGED, "y = Identity(o)")
    text = text.replace("qs = Mul(qh, scale)", "qt = Slice(qh, i0, eight, i3) qs = Mul(qt, scale)")
    model = attention(text)
    declined = group_heads(model).declined
    assert any("not known to have 4 heads" in each.reason for each in declined)
    run(model, feeds(rng))


def test_a_factor_for_each_head_is_left() -> None:
    """Heads that share keys would need one each."""
    model = attention(parts(scores=SCORES.replace("ks = Mul(kt, scale)", "ks = Mul(kt, a_head)")))
    assert group_heads(model) == PassResult(1)


def test_a_size_that_may_be_another_is_not_trusted() -> None:
    """The batch that the heads are expanded to is that of another input."""
    body = (
        "s = Shape(other) b = Gather(s, i0) w = Concat<axis = 0>(b, rest) u = Unsqueeze(k, at2)"
        " e = Expand(u, w) n = Concat<axis = 0>(b, merged) h = Reshape(e, n) y = MatMul(a, h)"
    )
    arrays: dict[str, list[int]] = {
        "i0": [0], "at2": [2], "rest": [2, 2, 5, 8], "merged": [4, 5, 8],
    }  # fmt: skip
    given = {name: np.array(value) for name, value in arrays.items()}
    for batch, count in (("b", 1), ("c", 0)):
        inputs = f"float[b, 4, s, 5] a, float[b, 2, 5, 8] k, float[{batch}, 3] other"
        model: ir.Model = build(f"g_ ({inputs}) => (float y) {{ {body} }}", given)
        result = group_heads(model)
        assert (result.changed, len(result.declined)) == (count, 1 - count)
