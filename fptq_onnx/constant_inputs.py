"""Weights that a graph lists among its inputs too, as old exporters leave them."""

from __future__ import annotations

import onnx_ir as ir

_FIRST_WITHOUT = 4  # in older IR versions every initializer had to be an input as well
_SHOWN = 3


def drop_constant_inputs(model: ir.Model) -> tuple[str, ...]:
    """Take initializers off the inputs, in place: what has a value is a constant.

    Inputs that a caller may leave out keep ONNX Runtime from folding what they feed, and hide the
    weights from everything that looks for constants.

    Returns:
        A note for people; nothing where there were none.
    """
    dropped = [value for value in model.graph.inputs if value.name in model.graph.initializers]
    for value in dropped:
        model.graph.inputs.remove(value)
    if not dropped:
        return ()
    model.ir_version = max(model.ir_version or 0, _FIRST_WITHOUT)
    names = [str(value.name) for value in dropped]
    shown = ", ".join(names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    )
    what = (
        "weights were inputs with a default value"
        if len(names) > 1
        else ("weight was an input with a default value")
    )
    return (f"{len(names)} {what} ({shown}): constants in the result, not to be fed",)
