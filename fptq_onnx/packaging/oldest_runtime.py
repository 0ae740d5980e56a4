"""The oldest ONNX Runtime that runs a package.

Measured, by loading a model of every opset, and one with an int8 cache, in the last release of each
minor version from 1.20 on.
"""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.op_domains import MSFT_DOMAIN, onnx_opset

# Largest opset a release takes; what it does not know by name it may still take, with a warning.
_OPSETS = {21: "1.20", 22: "1.21", 23: "1.23", 25: "1.24", 26: "1.25"}
_NEWEST = "1.32"
_STOCK_INT8 = "1.25"  # com.microsoft's GroupQueryAttention with a cache of int8


def oldest_runtime(model: ir.Model, *, portable: bool) -> str:
    """Major and minor version.

    Args:
        model: the main model of the package.
        portable: whether its form in ONNX Runtime's own operators is packaged, too.
    """
    opset = onnx_opset(model)
    wanted = next((name for most, name in _OPSETS.items() if opset <= most), _NEWEST)
    int8 = any(value.dtype == ir.DataType.INT8 for value in model.graph.inputs)
    stock = any(
        node.domain == MSFT_DOMAIN and node.op_type == "GroupQueryAttention" for node in model.graph
    )
    if int8 and (portable or stock):
        wanted = max(wanted, _STOCK_INT8, key=_numbers)
    return wanted


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
