"""Sessions: our library only where it is needed, and errors in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import fptq_onnx.runtime.native_library
from fptq_onnx.errors import FptqError
from fptq_onnx.runtime.session import (
    first_line,
    open_session,
    open_session_in_memory,
    opset_domains,
)

DEMO = Path(__file__).resolve().parents[2] / "models" / "tinystories-7m"


def tiny(*, op: str = "Relu", domains: tuple[str, ...] = ("",)) -> ir.Model:
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["n"])
    node = ir.node(op, [x])
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    imports = {domain: 18 if domain == "" else 1 for domain in domains}
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports=imports, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr(fptq_onnx.runtime.native_library, "register", calls.append)
    return calls


def test_our_library_is_registered_only_where_the_model_imports_it(
    tmp_path: Path, registered: list[Any]
) -> None:
    ir.save(tiny(), tmp_path / "plain.onnx")
    ir.save(tiny(domains=("", "fptq")), tmp_path / "ours.onnx")
    assert opset_domains(tmp_path / "ours.onnx") == {"", "fptq"}
    open_session(tmp_path / "plain.onnx", threads=1)
    assert registered == []
    open_session(tmp_path / "ours.onnx", threads=1)
    assert len(registered) == 1


def test_domains_are_read_without_the_external_data(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((DEMO / "model.onnx").read_bytes())
    assert "com.microsoft" in opset_domains(tmp_path / "model.onnx")


def test_external_data_of_a_model_in_memory_is_found() -> None:
    session = open_session_in_memory(ir.load(DEMO / "model.onnx"), DEMO, threads=1)
    assert session.get_inputs()[0].name == "input_ids"


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(FptqError, match="no model file at"):
        open_session(path)
    path.write_bytes(b"not protobuf at all")
    with pytest.raises(FptqError, match="is not an ONNX model"):
        open_session(path)
    path.write_bytes(b"")
    with pytest.raises(FptqError, match="is not an ONNX model"):
        open_session(path)
    ir.save(tiny(op="NoSuchOp"), path)
    with pytest.raises(FptqError, match=r"ONNX Runtime cannot run .*model\.onnx: .*NoSuchOp"):
        open_session(path)
    with pytest.raises(FptqError, match=r"ONNX Runtime cannot run the model: .*NoSuchOp"):
        open_session_in_memory(tiny(op="NoSuchOp"), tmp_path)


def test_first_line() -> None:
    assert first_line(RuntimeError("one\ntwo")) == "one"
    assert first_line(RuntimeError()) == "RuntimeError"
