"""Token embeddings in 8 and 4 bits: what is looked up is what was rounded; nothing else moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support.tiny_graphs import build, op_counts, run

from fptq_onnx.errors import FptqError
from fptq_onnx.numerics.clip_search import quantize_mse
from fptq_onnx.numerics.group_weights import dequantize, quantize_rtn
from fptq_onnx.passes import PassResult
from fptq_onnx.passes.quantize_embeddings import quantize_embeddings
from fptq_onnx.scheme.weight_store import WeightStore

TOKENS = 700
IDS = np.array([[0, 1, 699], [5, 5, 350]])
LOOKUP = "y = Gather<axis = 0>(table, ids)"


def table_of(rng: np.random.Generator, channels: int, dtype: str) -> NDArray[np.floating]:
    spread = np.exp(rng.standard_normal((TOKENS, channels)))
    return (rng.standard_normal((TOKENS, channels)) * spread).astype(dtype)


def model_of(table: NDArray[np.generic], text: str = LOOKUP, outputs: str = "y") -> ir.Model:
    kind = "float16" if table.dtype == np.float16 else "float"
    declared = ", ".join(f"{kind} {name}" for name in outputs.split())
    return build(f"g_ (int64[B, T] ids) => ({declared}) {{ {text} }}", {"table": table})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("channels", "block"), [(128, 128), (384, 128), (96, 32), (100, 100)])
def test_eight_bits_look_up_the_rounded_table(
    rng: np.random.Generator, tmp_path: Path, channels: int, block: int, dtype: str
) -> None:
    table = table_of(rng, channels, dtype)
    model = model_of(table)
    assert quantize_embeddings(model, 8, WeightStore(tmp_path)) == PassResult(1, names=("table",))
    rounded = quantize_rtn(table.astype(np.float32).T, block, bits=8)
    got = run(model, {"ids": IDS})["y"]
    assert got.dtype == dtype and got.shape == (2, 3, channels)
    expected = dequantize(rounded).T[IDS]
    # float16 rounds the scale and the product.
    np.testing.assert_allclose(got, expected, rtol=0 if dtype == "float32" else 2.1 * 2.0**-11)
    assert not op_counts(model).keys() - {"Gather", "Cast", "Mul", "Reshape"}
    assert "table" not in model.graph.initializers
    steps = np.repeat(rounded.scales.T, block, axis=1)[IDS]
    slack = 1.0 if dtype == "float32" else 1.3
    assert (np.abs(got - table[IDS].astype("f4")) <= 0.5001 * slack * steps).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("channels", [128, 96])
def test_four_bits_look_up_the_rounded_table(
    rng: np.random.Generator, tmp_path: Path, channels: int, dtype: str
) -> None:
    table = table_of(rng, channels, dtype)
    model = model_of(table)
    assert quantize_embeddings(model, 4, WeightStore(tmp_path)) == PassResult(1, names=("table",))
    rounded = quantize_mse(table.astype(np.float32).T, np.ones(channels), 32, bits=4)
    got = run(model, {"ids": IDS})["y"]
    expected = dequantize(rounded).T[IDS]
    np.testing.assert_allclose(got, expected, rtol=1e-6 if dtype == "float32" else 2.1 * 2.0**-11)
    assert op_counts(model) == {"GatherBlockQuantized": 1}


def test_a_table_stored_in_halves_is_seen_through_its_cast(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    table = table_of(rng, 128, "float16")
    text = "wide = Cast<to = 1>(table) y = Gather<axis = 0>(wide, ids)"
    model = build(f"g_ (int64[B, T] ids) => (float y) {{ {text} }}", {"table": table})
    assert quantize_embeddings(model, 8, WeightStore(tmp_path)) == PassResult(1, names=("table",))
    expected = dequantize(quantize_rtn(table.astype(np.float32).T, 128, bits=8)).T[IDS]
    np.testing.assert_array_equal(run(model, {"ids": IDS})["y"], expected)
    assert "table" not in model.graph.initializers


@pytest.mark.parametrize("bits", [8, 4])
def test_lookups_of_one_table_share_it(rng: np.random.Generator, tmp_path: Path, bits: int) -> None:
    text = f"{LOOKUP} flat = Reshape(ids, one) z = Gather(table, flat)"
    table = table_of(rng, 128, "float32")
    model = build(
        f"g_ (int64[B, T] ids) => (float y, float z) {{ {text} }}",
        {"table": table, "one": np.array([-1])},
    )
    for node in model.graph:
        if node.name == "flat":
            node.outputs[0].shape = ir.Shape(["N"])
    result = quantize_embeddings(model, bits, WeightStore(tmp_path))
    assert result == PassResult(1, names=("table",))
    assert sum(name.startswith("table.") for name in model.graph.initializers) == 2
    got = run(model, {"ids": IDS})
    np.testing.assert_array_equal(got["y"].reshape(6, 128), got["z"])


@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        (f"{LOOKUP} z = Transpose(table)", "y z"),
        (f"{LOOKUP} p = Neg(ids) z = Gather(table, p)", "y z"),
        (LOOKUP, "y table"),
    ],
    ids=["another reader", "computed indices", "an output"],
)
def test_a_table_that_others_read_stays_and_says_so(
    rng: np.random.Generator, tmp_path: Path, text: str, outputs: str
) -> None:
    model = model_of(table_of(rng, 128, "float32"), text, outputs)
    before = op_counts(model)
    result = quantize_embeddings(model, 8, WeightStore(tmp_path))
    assert result.changed == 0 and op_counts(model) == before
    (said,) = result.declined
    assert "the embedding table keeps its floats: " in str(said)


def test_a_table_looked_up_in_two_types_stays(rng: np.random.Generator, tmp_path: Path) -> None:
    text = "wide = Cast<to = 1>(table) y = Gather(wide, ids) z = Gather(table, ids)"
    model = build(
        f"g_ (int64[B, T] ids) => (float y, float16 z) {{ {text} }}",
        {"table": table_of(rng, 128, "float16")},
    )
    result = quantize_embeddings(model, 8, WeightStore(tmp_path))
    assert not result.changed and len(result.declined) == 2
    run(model, {"ids": IDS})


def test_indices_of_unknown_rank_are_told_of(rng: np.random.Generator, tmp_path: Path) -> None:
    model = model_of(table_of(rng, 128, "float32"))
    model.graph.inputs[0].shape = None
    result = quantize_embeddings(model, 8, WeightStore(tmp_path))
    assert not result.changed and "rank of its indices" in result.declined[0].reason


@pytest.mark.parametrize(
    "text",
    [
        "p = Shape(ids) y = Gather(table, p)",
        "y = Gather<axis = 1>(table, ids)",
        "t = Neg(table) y = Gather(t, ids)",
    ],
    ids=["positions", "columns", "a computed table"],
)
def test_other_lookups_are_left_alone(rng: np.random.Generator, tmp_path: Path, text: str) -> None:
    model = model_of(table_of(rng, 128, "float32"), text)
    before = op_counts(model)
    assert quantize_embeddings(model, 8, WeightStore(tmp_path)) == PassResult()
    assert op_counts(model) == before


def test_small_tables_are_left_alone(rng: np.random.Generator, tmp_path: Path) -> None:
    model = model_of(rng.standard_normal((2, 128)).astype(np.float32))
    assert quantize_embeddings(model, 8, WeightStore(tmp_path)) == PassResult()


def test_nan_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    table = table_of(rng, 128, "float32")
    table[3, 3] = np.nan
    with pytest.raises(FptqError, match="table holds NaN"):
        quantize_embeddings(model_of(table), 8, WeightStore(tmp_path))
