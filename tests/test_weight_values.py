"""NaN and infinity are found in every kind of weight and float; masks may hold -inf."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from saved_models import saved
from tiny_graphs import raw, weight

from fptq_onnx import weight_values
from fptq_onnx.errors import FptqError
from fptq_onnx.model_load import load_model
from fptq_onnx.weight_values import check_weights

NAN, INF = np.nan, np.inf
TYPES = {"float": np.float32, "float16": np.float16, "double": np.float64,
         "bfloat16": ml_dtypes.bfloat16}  # fmt: skip
GRAPHS = {
    "matrix": ("y = MatMul(x, W)", (64, 64)),
    "bias": ("y = Add(x, W)", (64,)),
    "gain": ("y = Mul(x, W)", (64,)),
    "norm": ("y = SimplifiedLayerNormalization<axis = -1>(x, W)", (64,)),
    "table": ("e = Gather(W, i) y = Add(x, e)", (32, 64)),
    "moved": ("t = Transpose<perm = [1, 0]>(W) c = Cast<to = 1>(t) y = MatMul(x, c)", (64, 64)),
    "gemm": ("y = Gemm<transB = 1>(x, W)", (64, 64)),
}  # fmt: skip


def graph(body: str, array: np.ndarray) -> ir.Model:
    kind = next(name for name, dtype in TYPES.items() if array.dtype == dtype)
    return raw(f"g ({kind}[A, 64] x, int64[A] i) => ({kind}[A, 64] y) {{ {body} }}", {"W": array})


@pytest.mark.parametrize("body", GRAPHS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", TYPES)
def test_kinds(body: str, value: float, dtype: str) -> None:
    text, shape = GRAPHS[body]
    array = np.random.default_rng(0).standard_normal(shape).astype(TYPES[dtype])
    check_weights("m.onnx", graph(text, array))
    array[(5,) * len(shape)] = value
    place = ", ".join("5" * len(shape))
    what = "NaN" if np.isnan(value) else "infinity"
    with pytest.raises(FptqError) as caught:
        check_weights("m.onnx", graph(text, array))
    said = str(caught.value)
    assert said.startswith("m.onnx: the weight 'W' (of ")
    assert f"holds {what} (1 of {array.size} values, the first at [{place}])" in said


def test_extremes_that_are_finite() -> None:
    for dtype in TYPES.values():
        info = ml_dtypes.finfo(dtype)
        array = np.full((64, 64), info.max, dtype)
        array[0] = info.min
        array[1] = info.smallest_subnormal
        check_weights("m.onnx", graph(GRAPHS["matrix"][0], array))


@pytest.mark.parametrize("place", [0, 6, 7, 8, 63, 64 * 64 - 1])
def test_pieces(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """The count and the first place are those of the whole, wherever a piece ends."""
    monkeypatch.setattr(weight_values, "_CHUNK", 7)
    array = np.random.default_rng(0).standard_normal(64 * 64).astype(np.float32)
    array[place] = NAN
    array[-1] = INF if place != array.size - 1 else NAN
    first = np.argwhere(np.isnan(array.reshape(64, 64)))[0]
    count = np.count_nonzero(~np.isfinite(array))
    with pytest.raises(FptqError) as caught:
        check_weights("m", graph(GRAPHS["matrix"][0], array.reshape(64, 64)))
    assert f"({count} of 4096 values, the first at [{first[0]}, {first[1]}])" in str(caught.value)
    array[place] = array[-1] = INF
    with pytest.raises(FptqError, match=rf"the first at \[{first[0]}, {first[1]}\]"):
        check_weights("m", graph(GRAPHS["matrix"][0], array.reshape(64, 64)))


def test_masks_may_hold_minus_infinity() -> None:
    causal = np.triu(np.full((64, 64), -INF, np.float32), 1)
    check_weights("m", graph("y = Add(x, W)", causal))
    check_weights("m", graph("e = Gather(W, i) y = Add(x, e)", causal))
    alibi = causal + np.arange(64, dtype=np.float32)
    check_weights("m", graph("y = Add(x, W)", alibi))
    forbidden = np.zeros(64, np.float32)
    forbidden[3] = -INF  # of tokens that are never to be chosen
    check_weights("m", graph("y = Add(x, W)", forbidden))
    forbidden[4] = INF
    with pytest.raises(FptqError, match="holds infinity"):
        check_weights("m", graph("y = Add(x, W)", forbidden))


def test_constants_of_nodes_and_several_weights(tmp_path) -> None:
    broken = np.ones((64, 64), np.float32)
    broken[1, 2] = NAN
    rng = np.random.default_rng(0)
    model = raw(
        "g (float[A, 64] x) => (float[A, 64] y) { a = MatMul(x, W) b = MatMul(a, V) y = Add(b, c)}",
        {"W": weight(rng, 64, 64), "V": broken, "c": broken[1]},
    )
    file = saved(tmp_path, model)  # mapped, not in memory
    with pytest.raises(FptqError) as caught:
        check_weights(file, load_model(file).model)
    assert "the weight 'V' (of MatMul " in str(caught.value)
    assert ", and 1 more" in str(caught.value)
    held = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) '
        "{ k = Constant<value = float[2] {1, nan}>() y = Sin(k) }"
    )
    with pytest.raises(FptqError, match=r"the weight 'k' \(of Sin"):
        check_weights("m", held)
