"""What stays in floats is said with its size: in convert's lines, the report, and inspect."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from saved_models import saved
from tiny_graphs import build

from fptq_onnx.config import Config
from fptq_onnx.float_tensors import float_notes, float_tensors
from fptq_onnx.inspection import inspect_model
from fptq_onnx.pipeline import convert

V, D = 800, 128


def tied_model(rng: np.random.Generator, *, extra: str = "", more: dict | None = None) -> ir.Model:
    """Tokens [B, T] -> logits [B, T, V], tied as onnxruntime-genai's builder ties them."""
    weights = {
        "W": (rng.standard_normal((D, V)) / 8).astype(np.float32), "g": np.ones(D, np.float32),
        "U": (rng.standard_normal((D, D)) / 8).astype(np.float32), **(more or {}),
    }  # fmt: skip
    text = (
        f"t = Transpose<perm = [1, 0]>(W) e = Gather(t, ids) {extra or 'x = Identity(e)'}"
        " u = MatMul(x, U) r = Relu(u) n = LayerNormalization(r, g) y = MatMul(n, W)"
    )
    return build(f"g_ (int64[B, T] ids) => (float[B, T, {V}] y) {{ {text} }}", weights,
                 opset=21, ir_version=10)  # fmt: skip


def feeds(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    return [{"ids": rng.integers(0, V, (1, 64))} for _ in range(4)]


def told(rng: np.random.Generator, folder: Path, model: ir.Model, **config: object):
    lines: list[str] = []
    done = convert(
        saved(folder / "model", model), folder / "out", samples=feeds(rng), say=lines.append,
        config=Config(**config), overwrite=True,  # type: ignore[arg-type]
    )  # fmt: skip
    (report,) = done.reports.values()
    return [line for line in lines if "stay float" in line], report


TABLE = 4 * V * D


def test_a_tied_embedding_left_in_float_is_told(rng: np.random.Generator, tmp_path: Path) -> None:
    (line,), report = told(rng, tmp_path, tied_model(rng), embedding_bits=32)
    assert re.fullmatch(
        r"note {9}409\.6 kB stay float: the embedding W \(409\.6 kB\), of 4\d\d\.\d kB in all", line
    )
    assert any("409.6 kB stay float" in note for note in report.notes)
    assert report.stays_float[0] == {"name": "W", "kind": "embedding", "bytes": TABLE}
    saved_report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved_report["stays_float"][0]["bytes"] == TABLE
    shown = inspect_model(tmp_path / "out", as_json=False, config=Config())
    assert any("409.6 kB stay float" in text for text in shown)


@pytest.mark.parametrize("bits", [8, 4])
def test_once_quantized_it_is_not(rng: np.random.Generator, tmp_path: Path, bits: int) -> None:
    lines, report = told(rng, tmp_path, tied_model(rng), embedding_bits=bits)
    assert lines == [] and not any(row["name"] == "W" for row in report.stays_float)
    # The table with its scales (of 4 bits one of 32 bits for 32), the head in panels of 64 columns,
    # U, and what pages and the graph take.
    head, table = 832 * D * 4.2 / 8, 1.26 * V * D * bits / 8
    assert report.bytes_after < table + head + D * D * 4.2 / 8 + 16_384


def test_inspect_tells_before(rng: np.random.Generator, tmp_path: Path) -> None:
    file = saved(tmp_path / "model", tied_model(rng))

    def shown(as_json: bool, **config: object) -> list[str]:
        return inspect_model(
            file, as_json=as_json, config=Config(**config), samples=feeds(rng)  # type: ignore[arg-type]
        )  # fmt: skip

    assert not any("stay float" in line for line in shown(False))
    (line,) = [line for line in shown(False, embedding_bits=32) if "stay float" in line]
    assert "the embedding W (409.6 kB)" in line
    (text,) = shown(True, embedding_bits=32)
    assert "the embedding W (409.6 kB)" in json.loads(text)["notes"][0]
    # The head kept in float keeps the table too: it is stored once, and told once.
    (line,) = [line for line in shown(False, ignore=("^y$",)) if "stay float" in line]
    assert line.count("409.6 kB") == 2 and "the embedding W" in line


def test_linears_positions_convolutions_and_experts_are_told(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    extra = (
        " s = Shape(ids) length = Gather(s, one) last = Squeeze(length, zero1)"
        " nil = Constant<value_int = 0>() step = Constant<value_int = 1>()"
        " at = Range(nil, last, step) pos = Gather(P, at)"
        " ep = Add(e, pos) c0 = Transpose<perm = [0, 2, 1]>(ep) c1 = Conv<pads = [1, 1]>(c0, K)"
        " x = Transpose<perm = [0, 2, 1]>(c1)"
    )  # fmt: skip
    more = {
        "P": rng.standard_normal((256, D)).astype(np.float32), "one": np.array([1]),
        "zero1": np.array([0]), "K": (rng.standard_normal((D, D, 3)) / 20).astype(np.float32),
    }  # fmt: skip
    (line,), report = told(rng, tmp_path, tied_model(rng, extra=extra, more=more), ignore=("^u$",))
    kinds = {str(row["name"]): row["kind"] for row in report.stays_float}
    assert kinds["P"] == "table" and kinds["K"] == "weight of convolutions"
    assert kinds["U"] == "weight of linears"
    sizes = {name: 4 * int(np.prod(array.shape)) for name, array in more.items() if name in "PK"}
    for name, size in {**sizes, "U": 4 * D * D}.items():
        assert f"the {kinds[name]} {name} ({size / 1000:.1f} kB)" in line
    assert "embedding" not in line


def test_what_is_small_is_not_told() -> None:
    model = build(
        "g_ (float[A, 512] x) => (float[A, 512] y) { a = Mul(x, small) y = Conv0(a, big) }"
        .replace("Conv0", "Add"),
        {"small": np.ones(512, np.float32), "big": np.ones((300, 512), np.float32)},
    )  # fmt: skip
    found = float_tensors(model)
    assert [tensor.name for tensor in found] == ["big", "small"]
    (sentence,) = float_notes(found, 10**6)
    assert "614.4 kB" in sentence and "small" not in sentence
    assert float_notes(found, 10**9) == ()
