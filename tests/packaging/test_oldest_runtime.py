"""Which ONNX Runtime a package asks for."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from support.tiny_graphs import build

from fptq_onnx.packaging.oldest_runtime import oldest_runtime


def model(opset: int, kind: str, domain: str = "fptq") -> ir.Model:
    made = build(f"g ({kind}[b, 2, p, 8] past) => ({kind}[b, 2, p, 8] y) {{ y = Identity (past) }}")
    made.graph.append(ir.node("GroupQueryAttention", [], domain=domain))
    made.opset_imports[""] = opset
    return made


@pytest.mark.parametrize(
    "opset, kind, domain, portable, wanted",
    [
        (17, "float", "fptq", True, "1.20"),
        (21, "float", "com.microsoft", False, "1.20"),
        (22, "float", "fptq", True, "1.21"),
        (24, "float", "fptq", True, "1.24"),
        (28, "float", "fptq", True, "1.32"),
        (21, "int8", "fptq", False, "1.20"),
        (21, "int8", "fptq", True, "1.25"),
        (21, "int8", "com.microsoft", False, "1.25"),
        (28, "int8", "fptq", True, "1.32"),
    ],
)
def test_oldest(opset: int, kind: str, domain: str, portable: bool, wanted: str) -> None:
    assert oldest_runtime(model(opset, kind, domain), portable=portable) == wanted
