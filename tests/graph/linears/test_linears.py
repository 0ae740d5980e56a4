"""Linears however they are written: the view must compute what the graph computes."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from support.tiny_graphs import FLOAT16_EPS, build, product_bound, run, weight

from fptq_onnx.graph.linears.linears import Linear, find_linears

K, N = 6, 4
KN = ("W", (K, N))
NK = ("W", (N, K))
BIAS = ("b", (N,))

# (graph nodes, weights by name and shape, has a bias, nodes that belong to the linear)
VARIANTS = {
    "matmul": ("y = MatMul(x, W)", [KN], False, 1),
    "matmul_then_bias": ("p = MatMul(x, W) y = Add(p, b)", [KN, BIAS], True, 2),
    "bias_on_the_left": ("p = MatMul(x, W) y = Add(b, p)", [KN, BIAS], True, 2),
    "transposed": ("w = Transpose<perm = [1, 0]>(W) y = MatMul(x, w)", [NK], False, 1),
    "transposed_without_perm": ("w = Transpose(W) y = MatMul(x, w)", [NK], False, 1),
    "identity_perm": ("w = Transpose<perm = [0, 1]>(W) y = MatMul(x, w)", [KN], False, 1),
    "identity": ("w = Identity(W) y = MatMul(x, w)", [KN], False, 1),
    "a_part_of_a_larger_weight": (
        "v, u = Split<axis = 0, num_outputs = 2>(W) w = Transpose(u) y = MatMul(x, w)",
        [("W", (2 * N, K))],
        False,
        1,
    ),
    "reshaped": (
        "s = Constant<value_ints = [6, 4]>() w = Reshape(W, s) y = MatMul(x, w)",
        [("W", (K * N,))],
        False,
        1,
    ),
    "bias_behind_identity": (
        "c = Identity(b) p = MatMul(x, W) y = Add(p, c)",
        [KN, BIAS],
        True,
        2,
    ),
}
# The same, and how many axes x has at least.
ROWS = {
    "row": ("p = MatMul(x, W) y = Add(p, b)", [KN, ("b", (1, N))], 2),
    "row on the left": ("p = MatMul(x, W) y = Add(b, p)", [KN, ("b", (1, N))], 2),
    "row of a row": ("p = MatMul(x, W) y = Add(p, b)", [KN, ("b", (1, 1, N))], 3),
    "row of four axes": ("p = MatMul(x, W) y = Add(p, b)", [KN, ("b", (1, 1, 1, N))], 4),
}
GEMMS = {
    "gemm": ("y = Gemm(x, W)", [KN], False, 1),
    "gemm_bias": ("y = Gemm(x, W, b)", [KN, BIAS], True, 1),
    "gemm_row_bias": ("y = Gemm(x, W, b)", [KN, ("b", (1, N))], True, 1),
    "gemm_bias_of_one": ("y = Gemm(x, W, b)", [KN, ("b", (1,))], True, 1),
    "gemm_bias_of_one_one": ("y = Gemm(x, W, b)", [KN, ("b", (1, 1))], True, 1),
    "gemm_trans_b": ("y = Gemm<transB = 1>(x, W, b)", [NK, BIAS], True, 1),
    "gemm_trans_b_0": ("y = Gemm<transB = 0, alpha = 1.0>(x, W, b)", [KN, BIAS], True, 1),
    "gemm_twice_transposed": (
        "w = Transpose(W) y = Gemm<transB = 1>(x, w, b)",
        [KN, BIAS],
        True,
        1,
    ),
}


def only_linear(model: ir.Model) -> Linear:
    scan = find_linears(model)
    assert len(scan.linears) == 1, scan
    assert not scan.others
    return scan.linears[0]


def view_in_numpy(linear: Linear, x: np.ndarray) -> np.ndarray:
    y = x.astype(np.float64) @ linear.weight.load().astype(np.float64)
    return y if linear.bias is None else y + linear.bias.load().astype(np.float64)


def check_view(rng: np.random.Generator, variant: tuple, dims: str, shape: tuple[int, ...]) -> None:
    text, shapes, has_bias, node_count = variant
    weights = {name: weight(rng, *dims_) for name, dims_ in shapes}
    model = build(f"g (float[{dims}, {K}] x) => (float[{dims}, {N}] y) {{ {text} }}", weights)
    linear = only_linear(model)
    assert (linear.k, linear.n) == (K, N)
    assert linear.weight.load().shape == (K, N)
    assert (linear.bias is not None) == has_bias
    assert linear.x.name == "x"
    assert linear.output.name == "y"
    assert len(linear.nodes) == node_count
    x = weight(rng, *shape, K)
    expected = view_in_numpy(linear, x)
    w = linear.weight.load()
    bound = product_bound(x, w) + 2.0**-23 * np.abs(expected)  # the bias is one more rounding
    assert (np.abs(run(model, {"x": x})["y"] - expected) <= bound).all()


@pytest.mark.parametrize(("dims", "shape"), [("A", (5,)), ("A, B", (2, 3)), ("A, B, C", (2, 1, 3))])
@pytest.mark.parametrize("name", VARIANTS)
def test_matmul_variants(
    rng: np.random.Generator, name: str, dims: str, shape: tuple[int, ...]
) -> None:
    check_view(rng, VARIANTS[name], dims, shape)


@pytest.mark.parametrize("axes", [2, 3, 4])
@pytest.mark.parametrize("name", ROWS)
def test_a_bias_with_axes_of_one(rng: np.random.Generator, name: str, axes: int) -> None:
    """It is a bias where the product has as many axes; else it adds axes, and is left alone."""
    text, shapes, least = ROWS[name]
    dims, shape = "A, B, C"[: 3 * axes - 5], (2, 1, 3)[: axes - 1]
    if axes >= least:
        check_view(rng, (text, shapes, True, 2), dims, shape)
        return
    y = ", ".join("1" * (least - axes)) + f", {dims}, {N}"
    weights = {name: weight(rng, *sizes) for name, sizes in shapes}
    linear = only_linear(build(f"g (float[{dims}, {K}] x) => (float[{y}] y) {{ {text} }}", weights))
    assert (linear.bias, linear.output.name) == (None, "p")


@pytest.mark.parametrize("name", GEMMS)
def test_gemm_variants(rng: np.random.Generator, name: str) -> None:
    check_view(rng, GEMMS[name], "A", (5,))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("text", ["w = Cast<to = 1>(W)", "t = Transpose(W) w = Cast<to = 1>(t)"])
def test_weights_stored_in_half_precision(rng: np.random.Generator, text: str, dtype: str) -> None:
    shape = (N, K) if "Transpose" in text else (K, N)
    w = weight(rng, *shape, dtype=dtype)
    model = build(
        f"g (float[A, {K}] x) => (float[A, {N}] y) {{ {text} y = MatMul(x, w) }}", {"W": w}
    )
    linear = only_linear(model)
    assert linear.weight.dtype == ir.DataType.FLOAT
    loaded = linear.weight.load()
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, (w.T if "Transpose" in text else w).astype(np.float32))
    x = weight(rng, 3, K)
    assert (np.abs(run(model, {"x": x})["y"] - x @ loaded) <= product_bound(x, loaded)).all()


def test_a_float16_model(rng: np.random.Generator) -> None:
    model = build(
        f"g (float16[A, {K}] x) => (float16[A, {N}] y) {{ p = MatMul(x, W) y = Add(p, b) }}",
        {"W": weight(rng, K, N, dtype="float16"), "b": weight(rng, N, dtype="float16")},
    )
    linear = only_linear(model)
    assert linear.weight.dtype == ir.DataType.FLOAT16
    x = weight(rng, 3, K, dtype="float16")
    expected = view_in_numpy(linear, x)
    bound = product_bound(x, linear.weight.load(), eps=FLOAT16_EPS)
    bound += 2 * FLOAT16_EPS * np.abs(linear.bias.load().astype(np.float64))
    assert (np.abs(run(model, {"x": x})["y"] - expected) <= bound).all()


def test_a_weight_in_a_constant_node() -> None:
    model = build(
        "g (float[A, 2] x) => (float[A, 2] y) {"
        " w = Constant<value = float[2, 2] {1, 2, 3, 4}>() y = MatMul(x, w) }"
    )
    linear = only_linear(model)
    np.testing.assert_array_equal(linear.weight.load(), [[1, 2], [3, 4]])
    x = np.array([[1, 10]], np.float32)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], view_in_numpy(linear, x))


def test_fused_qkv_and_split_is_one_linear(rng: np.random.Generator) -> None:
    model = build(
        "g (float[A, 6] x) => (float[A, 4] q, float[A, 2] k, float[A, 2] v) {"
        " p = MatMul(x, W) s = Add(p, b) q, k, v = Split(s, sizes) }",
        {"W": weight(rng, 6, 8), "b": weight(rng, 8), "sizes": np.array([4, 2, 2], np.int64)},
    )
    linear = only_linear(model)
    assert (linear.n, linear.output.name) == (8, "s")


def test_a_head_tied_to_the_embedding(rng: np.random.Generator) -> None:
    model = build(
        "g (int64[A] ids) => (float[A, 10] logits) {"
        " x = Gather(E, ids) w = Transpose(E) logits = MatMul(x, w) }",
        {"E": weight(rng, 10, 6)},
    )
    linear = only_linear(model)
    assert (linear.k, linear.n, linear.weight.name) == (6, 10, "E")


def test_two_linears_may_share_a_weight_and_an_input(rng: np.random.Generator) -> None:
    model = build(
        "g (float[A, 6] x) => (float[A, 6] y, float[A, 6] z) { y = MatMul(x, W) t = MatMul(x, W)"
        " z = MatMul(t, W) }",
        {"W": weight(rng, 6, 6)},
    )
    scan = find_linears(model)
    assert [linear.name for linear in scan.linears] == ["y", "t", "z"]
    assert [linear.x.name for linear in scan.linears] == ["x", "x", "t"]
    assert set(scan.by_name()) == {"y", "t", "z"}


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("p = MatMul(x, W) y = Add(p, p)", "p"),  # not a constant
        ("p = MatMul(x, W) y = Add(p, c)", "p"),  # a row per token, not one per channel
        ("p = MatMul(x, W) z = Add(p, b) y = Add(z, p)", "p"),  # the product is read twice
        ("p = MatMul(x, W) y = Sub(p, b)", "p"),
        ("p = MatMul(x, W) y = com.microsoft.Add(p, b)", "p"),
    ],
)
def test_additions_that_are_no_bias(rng: np.random.Generator, text: str, output: str) -> None:
    weights = {"W": weight(rng, K, N), "b": weight(rng, N), "c": weight(rng, 3, N)}
    used = {name: array for name, array in weights.items() if re.search(rf"\b{name}\b", text)}
    model = build(f"g (float[3, {K}] x) => (float[3, {N}] y) {{ {text} }}", used, microsoft=True)
    linear = only_linear(model)
    assert linear.bias is None
    assert linear.output.name == output


def test_a_product_that_is_also_a_model_output_keeps_its_bias_apart(
    rng: np.random.Generator,
) -> None:
    model = build(
        f"g (float[A, {K}] x) => (float[A, {N}] y, float[A, {N}] p) "
        "{ p = MatMul(x, W) y = Add(p, b) }",
        {"W": weight(rng, K, N), "b": weight(rng, N)},
    )
    assert only_linear(model).bias is None


def test_coverage_sentence(rng: np.random.Generator) -> None:
    model = build(
        "g (float[A, 6] x) => (float[A, A] y) "
        "{ q = MatMul(x, W) t = Transpose(x) u = MatMul(x, V) s = Transpose(u) y = MatMul(q, s) }",
        {"W": weight(rng, 6, 6), "V": weight(rng, 6, 6)},
    )
    scan = find_linears(model)
    assert scan.coverage == "2 of 3 MatMul-like nodes are linears"
    assert [other.name for other in scan.others] == ["y"]


SCOPES = "['', 'model', 'model.layers.0.self_attn.q_proj', 'linear_3']"


@pytest.mark.parametrize(
    ("node_name", "weight_name", "scopes", "path"),
    [
        ("node_linear_3", "val_68", SCOPES, "model.layers.0.self_attn.q_proj"),
        ("/model/layers.0/q_proj/MatMul", "onnx::MatMul_7", "", "model.layers.0.q_proj"),
        ("n1", "model.layers.0.attn.o_proj.MatMul.weight", "", "model.layers.0.attn.o_proj"),
        ("n1", "onnx::MatMul_7.x", "", "n1"),
        ("n1", "W", "not a list", "n1"),
    ],
)
def test_paths(
    rng: np.random.Generator, node_name: str, weight_name: str, scopes: str, path: str
) -> None:
    model = build(
        "g (float[A, 6] x) => (float[A, 4] y) { y = MatMul(x, W) }", {"W": weight(rng, 6, 4)}
    )
    node = model.graph.node(0)
    node.name = node_name
    node.inputs[1].name = weight_name
    node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    linear = only_linear(model)
    assert linear.path == path
    for text in (path, node_name, weight_name):
        assert linear.matches(re.compile(re.escape(text) + "$"))
    assert not linear.matches(re.compile("k_proj"))
