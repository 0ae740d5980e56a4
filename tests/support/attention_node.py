"""A model of one GroupQueryAttention, every input of which is fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

NAMES = (
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length",
    "cos_cache", "sin_cache",
)  # fmt: skip
INTEGERS = {"seqlens_k", "total_sequence_length"}
OUTPUTS = ("output", "present_key", "present_value")


def attention_model(
    inputs: Sequence[str | None],
    attributes: Mapping[str, Any],
    *,
    domain: str = "fptq",
    cache: ir.DataType = ir.DataType.FLOAT,
) -> ir.Model:
    """The model.

    Args:
        inputs: names in the operator's order; None leaves one out.
        attributes: of the node; those with the value None are left out.
        domain: whose operator it is.
        cache: the type of past and present.
    """

    def value(name: str) -> ir.Value:
        kind = ir.DataType.INT32 if name in INTEGERS else ir.DataType.FLOAT
        kind = cache if name.startswith(("past", "present")) else kind
        return ir.Value(name=name, type=ir.TensorType(kind))

    given = [None if name is None else value(name) for name in inputs]
    outputs = [value(name) for name in OUTPUTS]
    kept = {name: setting for name, setting in attributes.items() if setting is not None}
    node = ir.node("GroupQueryAttention", given, kept, domain=domain, outputs=outputs, name="core")
    graph = ir.Graph(
        [item for item in given if item is not None], outputs, nodes=[node],
        opset_imports={"": 21, domain: 1}, name="one",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)
