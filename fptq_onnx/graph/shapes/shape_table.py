"""What is known of the sizes of a graph's values, and of the small integers in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from fptq_onnx.graph.shapes.dim_arithmetic import Sizes


@dataclass
class SizeTable:
    """What is known of a graph's values, by their id; see the module's text."""

    shapes: dict[int, Sizes] = field(default_factory=dict)
    integers: dict[int, Sizes] = field(default_factory=dict)

    def shape(self, value: ir.Value | None) -> Sizes | None:
        """The sizes of a value, None where not even its rank is known."""
        return None if value is None else self.shapes.get(id(value))

    def integer(self, value: ir.Value | None) -> Sizes | None:
        """The elements of an integer vector or scalar, in order; None where unknown."""
        return None if value is None else self.integers.get(id(value))


def own_name(value: ir.Value) -> str:
    """A text that no other value has."""
    return value.name or f"#{id(value)}"
