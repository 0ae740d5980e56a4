"""Why an equalization cannot be folded, where the reason is a mathematical one."""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of
from fptq_onnx.graph.linears.linears import Linear, LinearScan

POST_NORM = "it reads the residual stream itself (post-norm): divided, the sums with it are others"
GELU = "fc2 reads gelu(fc1), and gelu(x / s) is not gelu(x) / s"
_SUMS = ("Add", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_GELUS = ("Erf", "Tanh", "Gelu", "FastGelu", "QuickGelu", "BiasGelu")


def is_residual(value: ir.Value) -> bool:
    """Whether a normalized value is added, as it is, to what is computed: no bias of a norm."""
    return any(
        other is not value and other is not None and constant_of(other) is None
        for use in value.uses()
        if use.node.op_type in _SUMS and use.idx < 2
        for other in use.node.inputs[:2]
    )


def reads_gelu(linear: Linear, scan: LinearScan) -> bool:
    """Whether a gelu, one node or its parts, is between this linear and those before it."""
    ends = {id(node) for other in scan.linears for node in other.nodes}
    pending, seen = [linear.x.producer()], set[int]()
    while pending:
        node = pending.pop()
        if node is None or id(node) in ends or id(node) in seen:
            continue
        if node.op_type in _GELUS:
            return True
        seen.add(id(node))
        pending += [value.producer() for value in node.inputs if value is not None]
    return False
