from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fptq_onnx.packaging.converted_model import open_converted
from fptq_onnx.packaging.write_graphs import SHARED_DATA, write_graphs
from fptq_onnx.runtime.decoder import open_decoder

IDS = np.array([[1, 432, 445, 261, 406, 14, 403, 283]])


def logits(model: Path) -> np.ndarray:
    return open_decoder(model, threads=1).forward(IDS).logits


def locations(model: Path) -> dict[str, str]:
    tensors = (value.const_value for value in ir.load(model).graph.initializers.values())
    return {
        tensor.name: str(tensor.location)
        for tensor in tensors
        if isinstance(tensor, ir.ExternalTensor)
    }


@pytest.mark.parametrize("given", ["custom", "both"])
def test_both_graphs_compute_what_convert_wrote(
    request: pytest.FixtureRequest, both: Path, tmp_path: Path, given: str
) -> None:
    converted = open_converted(request.getfixturevalue(given))
    assert (converted.portable is None) == (given == "custom")
    assert write_graphs(converted, tmp_path, fallback=True)
    for name, original in (("model", "custom"), ("portable", "matmulnbits")):
        expected = logits(both / original / "model.onnx")
        np.testing.assert_array_equal(logits(tmp_path / f"{name}.onnx"), expected)


@pytest.mark.parametrize("given", ["custom", "both"])
def test_what_both_use_is_stored_once(
    request: pytest.FixtureRequest, both: Path, tmp_path: Path, given: str
) -> None:
    """Embeddings, norms and rotary tables, wherever the portable form came from."""
    write_graphs(open_converted(request.getfixturevalue(given)), tmp_path, fallback=True)
    main, portable = locations(tmp_path / "model.onnx"), locations(tmp_path / "portable.onnx")
    shared = {name for name, where in main.items() if where == SHARED_DATA}
    assert {name for name, where in portable.items() if where == SHARED_DATA} == shared
    assert {"model.embed_tokens.weight_fp16.W8", "cos_cache", "sin_cache"} <= shared
    assert {where for name, where in main.items() if name not in shared} == {"model.onnx.data"}
    rest = {where for name, where in portable.items() if name not in shared}
    assert rest == {"portable.onnx.data"}
    apart = sum((both / t / "model.onnx.data").stat().st_size for t in ("custom", "matmulnbits"))
    together = sum(path.stat().st_size for path in tmp_path.glob("*.data"))
    saved = (tmp_path / SHARED_DATA).stat().st_size
    assert saved > 500_000  # the table of 2048 x 256 codes
    assert apart - together > 0.95 * saved


def test_without_a_fallback_files_stay_as_they_are(custom: Path, tmp_path: Path) -> None:
    assert not write_graphs(open_converted(custom), tmp_path, fallback=False)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / name).read_bytes() == (custom / name).read_bytes()


def test_a_model_of_stock_ops_needs_no_fallback(both: Path, tmp_path: Path) -> None:
    converted = open_converted(both / "matmulnbits")
    assert not converted.needs_library
    assert not write_graphs(converted, tmp_path, fallback=True)
    assert not (tmp_path / "portable.onnx").exists()


def test_equal_values_of_another_tensor_are_not_taken_for_it(both: Path, tmp_path: Path) -> None:
    """Tensors of one shape and other bytes stay apart: each graph keeps its own."""
    converted = open_converted(both)
    portable = converted.portable.model
    name = "model.embed_tokens.weight_fp16.W8"
    value = portable.graph.initializers[name]
    changed = value.const_value.numpy().copy()
    changed[5, 0, 0] ^= 1
    file = tmp_path / "changed.bin"
    file.write_bytes(changed.tobytes())
    value.const_value = ir.ExternalTensor(
        file.name, 0, changed.nbytes, value.const_value.dtype, shape=value.const_value.shape,
        name=name, base_dir=tmp_path,
    )  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    write_graphs(converted, out, fallback=True)
    assert locations(out / "portable.onnx")[name] == "portable.onnx.data"
    assert locations(out / "model.onnx")[name] == "model.onnx.data"
