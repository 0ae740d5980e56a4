from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from support.tiny_graphs import build

from fptq_onnx.graph.constants import constant_of, scalar_ints

W = np.array([[1, 2, 3], [4, 5, 6]], np.float32)

INTS = {
    "32": [3, 2],
    "flat": [-1],
    "keep": [0, -1, 1],
    "both": [0, -1],
    "pair": [1, 1],
    "uneven": [1, 2],
    "nil": [0],
    "unit": [1],
    "last": [-1],
    "end": [2**31],
    "square": [2],
    "second": 1,
}


def operand_of(node_text: str, weights: dict[str, np.ndarray], inputs: str = "") -> ir.Value:
    """The value `c` of a graph that computes it by `node_text`."""
    model = build(
        f"g (float[A] x{inputs}) => (float[B] y) {{ {node_text}\n y = Mul(x, c) }}", weights
    )
    value = model.graph.node(-1).inputs[1]
    assert value is not None
    return value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("c = Identity(W)", W),
        ("c = Transpose(W)", W.T),
        ("c = Transpose<perm = [1, 0]>(W)", W.T),
        ("c = Transpose<perm = [0, 1]>(W)", W),
        ("c = Cast<to = 10>(W)", W.astype(np.float16)),
        ("c = Cast<to = 16>(W)", W.astype(ml_dtypes.bfloat16)),
        ("t = Transpose(W) h = Cast<to = 10>(t) c = Identity(h)", W.T.astype(np.float16)),
        ("c = Constant<value = float[2] {1.5, 2}>()", np.array([1.5, 2], np.float32)),
        ("c = Add(W, one)", W + 1),
        ("c = Add(one, W)", W + 1),
        ("c = Sub(W, one)", W - 1),
        ("c = Mul(W, row)", W * np.array([1, 10, 100], np.float32)),
        ("c = Div(W, row)", W / np.array([1, 10, 100], np.float32)),
        ("c = Reshape(W, i_32)", W.reshape(3, 2)),
        ("c = Reshape(W, i_flat)", W.reshape(-1)),
        ("c = Reshape(W, i_keep)", W.reshape(2, 3, 1)),
        ("c = Unsqueeze(W, i_both)", W.reshape(1, 2, 3, 1)),
        ("t = Unsqueeze(W, i_both) c = Squeeze(t, i_nil)", W.reshape(2, 3, 1)),
        ("t = Unsqueeze(W, i_both) c = Squeeze(t)", W),
        ("c, d = Split(W, i_pair)", W[:1]),
        ("d, c = Split<axis = 1>(W, i_uneven)", W[:, 1:]),
        ("d, c = Split<axis = -1, num_outputs = 2>(W)", W[:, 2:]),
        ("c = Slice(W, i_nil, i_unit, i_unit)", W[:, :1]),
        ("c = Slice(W, i_unit, i_end, i_last)", W[:, 1:]),
        ("c = Gather<axis = 0>(W, i_second)", W[1]),
        ("c = Gather<axis = -1>(W, i_last)", W[:, 2:]),
        ("c = Gather<axis = 1>(W, i_pair)", W[:, [1, 1]]),
        ("c = Concat<axis = 0>(W, W)", np.concatenate([W, W])),
        ("c = Concat<axis = -1>(W, W)", np.concatenate([W, W], -1)),
        ("c = Neg(W)", -W),
        ("n = Neg(W) c = Abs(n)", W),
        ("c = Sqrt(W)", np.sqrt(W)),
        ("c = Reciprocal(W)", 1 / W),
        ("c = Pow(W, i_square)", W * W),
        ("t = Transpose(W) c = MatMul(W, t)", W @ W.T),
        ("c = ReduceSum(W, i_last)", W.sum(-1, keepdims=True)),
        ("c = ReduceSum(W)", W.sum(keepdims=True)),
        ("c = ReduceL2(W, i_nil)", np.sqrt((W * W).sum(0, keepdims=True))),
        ("c = Constant<value_ints = [3, 4]>()", np.array([3, 4])),
        ("c = Constant<value_float = 0.5>()", np.array(0.5, np.float32)),
    ],
)
def test_what_is_looked_through(text: str, expected: np.ndarray) -> None:
    weights = {
        "W": W,
        "one": np.array(1, np.float32),
        "row": np.array([1, 10, 100], np.float32),
        **{f"i_{name}": np.array(items, np.int64) for name, items in INTS.items()},
    }
    used = {name: array for name, array in weights.items() if name in text}
    constant = constant_of(operand_of(text, used))
    assert constant is not None
    assert constant.shape == expected.shape
    assert constant.dtype == ir.DataType.from_numpy(expected.dtype)
    loaded = constant.load()
    assert loaded.dtype == expected.dtype
    np.testing.assert_array_equal(loaded, expected)


def test_a_rank_3_transpose_follows_its_perm(rng: np.random.Generator) -> None:
    w = rng.standard_normal((2, 3, 4)).astype(np.float32)
    constant = constant_of(operand_of("c = Transpose<perm = [2, 0, 1]>(W)", {"W": w}))
    assert constant is not None
    assert constant.shape == (4, 2, 3)
    np.testing.assert_array_equal(constant.load(), w.transpose(2, 0, 1))


def test_the_sources_are_the_initializers() -> None:
    weights = {"W": W, "one": np.array(1, np.float32)}
    constant = constant_of(operand_of("t = Transpose(W) c = Add(t, one)", weights))
    assert constant is not None
    assert [source.name for source in constant.sources] == ["W", "one"]
    assert constant.name == "W"


def test_nothing_is_read_before_load(monkeypatch: pytest.MonkeyPatch) -> None:
    value = operand_of("t = Transpose(W) c = Cast<to = 10>(t)", {"W": W})
    reads = []
    monkeypatch.setattr(ir.Tensor, "numpy", lambda self: reads.append(self.name) or W)
    constant = constant_of(value)
    assert constant is not None
    assert not reads
    constant.load()
    assert reads == ["W"]


@pytest.mark.parametrize(
    "text",
    [
        "c = Identity(x)",
        "c = Relu(W)",
        "c = ReduceSum<keepdims = 0>(W)",
        "c = Add(W, x)",
        "c = Cast<to = 9>(W)",
        'c = Constant<value_string = "a">()',
    ],
)
def test_what_is_not_constant(text: str) -> None:
    assert constant_of(operand_of(text, {"W": W} if "W" in text else {})) is None


def test_an_initializer_that_callers_may_override_is_not_constant() -> None:
    value = operand_of("c = Identity(W)", {"W": W}, inputs=", float[2, 3] W")
    assert constant_of(value) is None


def test_no_value_and_other_domains() -> None:
    assert constant_of(None) is None
    model = build(
        "g (float[A] x) => (float[B] y) { c = com.microsoft.Identity(W) y = Mul(x, c) }",
        {"W": W},
        microsoft=True,
    )
    assert constant_of(model.graph.node(1).inputs[1]) is None


def test_small_integers() -> None:
    axes = {"W": np.array([-1, 2], np.int64)}
    assert scalar_ints(operand_of("c = Identity(W)", axes)) == [-1, 2]
    assert scalar_ints(operand_of("c = Identity(W)", {"W": np.array(3, np.int64)})) == [3]
    assert scalar_ints(operand_of("c = Identity(W)", {"W": np.zeros(17, np.int64)})) is None
    assert scalar_ints(operand_of("c = Identity(x)", {})) is None


def test_many_paths_to_one_value_are_followed_once() -> None:
    """Each of 60 sums reads the one before twice: 2**60 paths."""
    sums = " ".join(f"v{i} = Add(v{i - 1}, v{i - 1})" for i in range(1, 60))
    value = operand_of(f"v0 = Relu(x) {sums} c = Add(v59, v59)", {})
    assert constant_of(value) is None
    constant = constant_of(operand_of(f"v0 = Add(W, W) {sums} c = Mul(v59, W)", {"W": W}))
    assert constant is not None and constant.shape == W.shape


def test_half_floats_are_summed_in_float32() -> None:
    """In float16 the squares of these overflow, the norm does not."""
    w = np.full((2, 8), 300, np.float16)
    constant = constant_of(operand_of("c = ReduceL2<axes = [1]>(W)", {"W": w}))
    assert constant is not None and constant.dtype == ir.DataType.FLOAT16
    expected = np.full((2, 1), np.sqrt(8) * 300).astype(np.float16)
    np.testing.assert_array_equal(constant.load(), expected)
