"""Domains of ops: both names of ONNX's own are one, and nobody else spells them."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

from fptq_onnx.graph.op_domains import domain_of, is_onnx_op, onnx_opset
from fptq_onnx.model_io.load import load_model

REPOSITORY = Path(__file__).resolve().parents[2]
# Where a second name of the domain is taken for the first, and the module itself.
ALLOWED = {"fptq_onnx/graph/op_domains.py", "fptq_onnx/model_io/load.py"}


def node(domain: str) -> ir.Node:
    return ir.Node(domain, "Gelu", [ir.Value(name="x")])


def test_both_names_are_one_domain() -> None:
    assert [domain_of(node(name)) for name in ("", "ai.onnx", "com.microsoft")] == [
        "", "", "com.microsoft",
    ]  # fmt: skip
    assert is_onnx_op(node("ai.onnx"), "Erf", "Gelu") and is_onnx_op(node(""), "Gelu")
    assert not is_onnx_op(node("com.microsoft"), "Gelu")
    assert not is_onnx_op(node(""), "Erf") and not is_onnx_op(None, "Gelu")


def test_the_opset_of_a_model() -> None:
    model = load_model(REPOSITORY / "models" / "tinystories-7m").model
    version = model.opset_imports[""]
    assert onnx_opset(model) == version >= 17
    model.opset_imports["ai.onnx"] = model.opset_imports.pop("")
    assert onnx_opset(model) == version
    del model.opset_imports["ai.onnx"]
    assert onnx_opset(model) == 0


def test_no_other_module_spells_a_domain() -> None:
    spelled = re.compile(r"""["'](ai\.onnx|com\.microsoft)["']""")
    found = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("fptq_onnx", "passes")
        for path in (REPOSITORY / folder).rglob("*.py")
        if spelled.search(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED
