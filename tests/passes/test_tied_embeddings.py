"""A head's weight that is looked up too, however it is turned: rows are those of the vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny_graphs import build, op_counts, run

from fptq_onnx.numerics.clip_search import quantize_mse
from fptq_onnx.numerics.group_weights import dequantize, quantize_rtn
from fptq_onnx.passes import PassResult
from fptq_onnx.passes.quantize_embeddings import find_embeddings, quantize_embeddings
from fptq_onnx.scheme.weight_store import WeightStore

V, D = 700, 128
IDS = np.array([[0, 1, 699], [5, 5, 350]])
# How the lookup gets its table [V, D] from what is stored, and the shape that is stored.
WAYS = {
    "Transpose": ("t = Transpose<perm = [1, 0]>(W)", (D, V)),
    "Transpose without perm": ("t = Transpose(W)", (D, V)),
    "Transpose and Identity": ("i = Identity(W) u = Transpose(i) t = Identity(u)", (D, V)),
    "Cast and Transpose": ("w = Cast<to = 1>(W16) t = Transpose<perm = [1, 0]>(w)", (D, V)),
    "Transpose and Cast": ("w = Transpose<perm = [1, 0]>(W16) t = Cast<to = 1>(w)", (D, V)),
    "Reshape": ("t = Reshape(W, whole)", (1, V, D)),
    "Reshape of a row": ("t = Reshape(W, whole)", (V * D,)),
    "Reshape, then Transpose": (
        "w = Reshape(W, turned) t = Transpose<perm = [1, 0]>(w)", (1, D, V)),
    "Squeeze": ("t = Squeeze(W, zero)", (1, V, D)),
    "Flatten": ("t = Flatten<axis = 1>(W)", (V, 4, D // 4)),
    "Transpose of three axes": (
        "w = Transpose<perm = [2, 0, 1]>(W) t = Reshape(w, whole)", (4, D // 4, V)),
    "a Constant": ("c = Identity(W) t = Transpose<perm = [1, 0]>(c)", (D, V)),
}  # fmt: skip


def parts(rng: np.random.Generator, way: str) -> tuple[str, dict[str, NDArray[np.generic]]]:
    text, shape = WAYS[way]
    stored = (rng.standard_normal(shape) * np.exp(rng.standard_normal(shape))).astype(np.float32)
    weights: dict[str, NDArray[np.generic]] = {"W": stored}
    if "W16" in text:
        weights = {"W16": stored.astype(np.float16)}
    ints = {"whole": [V, D], "turned": [D, V], "zero": [0]}
    weights |= {name: np.array(value) for name, value in ints.items() if f", {name})" in text}
    return text, weights


def exact_table(text: str, weights: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    """The table as ONNX Runtime computes it."""
    text = f"{text} y = Identity(t) z = Identity(ids)"
    model = build(f"g_ (int64[B] ids) => (float y, int64 z) {{ {text} }}", weights)
    return run(model, {"ids": IDS[0]})["y"].astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("way", WAYS)
def test_rows_are_looked_up_along_the_vocabulary(
    rng: np.random.Generator, tmp_path: Path, way: str, bits: int
) -> None:
    text, weights = parts(rng, way)
    table = exact_table(text, weights)
    assert table.shape == (V, D)
    model = build(f"g_ (int64[B, T] ids) => (float y) {{ {text} y = Gather(t, ids) }}", weights)
    before = run(model, {"ids": IDS})["y"]
    np.testing.assert_array_equal(before, table[IDS])
    result = quantize_embeddings(model, bits, WeightStore(tmp_path))
    assert result.changed == 1 and not result.declined
    rounded = (
        quantize_rtn(table.T, 128, bits=8) if bits == 8
        else quantize_mse(table.T, np.ones(D), 32, bits=4)
    )  # fmt: skip
    got = run(model, {"ids": IDS})["y"]
    np.testing.assert_allclose(got, dequantize(rounded).T[IDS], rtol=1e-6)
    # Of the float rows: half a step of 8 bits at most; 4 bits clip the largest.
    error = np.linalg.norm(got - before) / np.linalg.norm(before)
    assert error < {8: 0.02, 4: 0.15}[bits]
    assert not {"W", "W16"} & set(model.graph.initializers)
    assert not {"Transpose", "Squeeze", "Flatten"} & set(op_counts(model))


def test_a_lookup_each_with_its_own_transpose(rng: np.random.Generator, tmp_path: Path) -> None:
    text = (
        "a = Transpose(W) y = Gather(a, ids)"
        " i = Identity(W) b = Transpose<perm = [1, 0]>(i) z = Gather<axis = -2>(b, ids)"
    )
    weights = {"W": rng.standard_normal((D, V)).astype(np.float32)}
    model = build(f"g_ (int64[B, T] ids) => (float y, float z) {{ {text} }}", weights)
    (found,) = find_embeddings(model)
    assert found.constant.shape == (V, D) and len(found.lookups) == 2
    before = run(model, {"ids": IDS})
    quantize_embeddings(model, 8, WeightStore(tmp_path))
    after = run(model, {"ids": IDS})
    for name in "yz":
        error = np.linalg.norm(after[name] - before[name]) / np.linalg.norm(before[name])
        assert error < 0.01
    assert "W" not in model.graph.initializers


def test_a_square_table_read_both_ways_keeps_its_floats(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """Rows of one reading are columns of the other: codes of one do not serve the other."""
    weights = {"W": rng.standard_normal((300, 300)).astype(np.float32)}
    text = "t = Transpose<perm = [1, 0]>(W) y = Gather(t, ids) z = Gather(W, ids)"
    model = build(f"g_ (int64[B, T] ids) => (float y, float z) {{ {text} }}", weights)
    ids = np.array([[1, 299]])
    before = run(model, {"ids": ids})
    result = quantize_embeddings(model, 8, WeightStore(tmp_path))
    assert not result.changed and len(result.declined) == 2
    after = run(model, {"ids": ids})
    for name in "yz":
        np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize("text", [
    "y = Gather<axis = 1>(W, ids)",
    "t = Transpose(W) n = Neg(t) y = Gather(n, ids)",
    "t = Transpose(W) s = Shape(ids) y = Gather(t, s)",
])  # fmt: skip
def test_other_readings_are_left_alone(rng: np.random.Generator, tmp_path: Path, text: str) -> None:
    weights = {"W": rng.standard_normal((D, V)).astype(np.float32)}
    model = build(f"g_ (int64[B, T] ids) => (float y) {{ {text} }}", weights)
    assert quantize_embeddings(model, 8, WeightStore(tmp_path)) == PassResult()


def test_a_head_in_float_keeps_the_table(rng: np.random.Generator, tmp_path: Path) -> None:
    weights = {"W": rng.standard_normal((D, V)).astype(np.float32)}
    text = "t = Transpose<perm = [1, 0]>(W) e = Gather(t, ids) y = MatMul(e, W)"
    model = build(f"g_ (int64[B, T] ids) => (float y) {{ {text} }}", weights)
    result = quantize_embeddings(model, 8, WeightStore(tmp_path))
    (said,) = result.declined
    assert not result.changed and "W keeps its floats: y reads it too" in str(said)
    head = next(node for node in model.graph if node.op_type == "MatMul")
    (found,) = find_embeddings(model, {id(head)})
    assert found.obstacle == ""
