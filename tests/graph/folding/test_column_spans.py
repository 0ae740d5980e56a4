"""Which axis of a value holds its columns."""

import onnx_ir as ir
import pytest

from fptq_onnx.graph.folding.column_spans import is_last


@pytest.mark.parametrize(
    ("axis", "shape", "last"),
    [
        (-1, None, True),
        (-1, ["b", "s", 8, 4], True),
        (2, ["b", "s", 8], True),
        (2, None, True),
        (2, ["b", "s", 8, 4], False),
        (3, ["b", "s", 8, 4], True),
        (1, ["s", 8], True),
        (1, ["b", "s", 8], False),
        (-2, ["b", "s", 8], False),
        (None, ["b", "s", 8], False),
    ],
)
def test_the_last_axis(axis: int | None, shape: list[int | str] | None, last: bool) -> None:
    value = ir.Value(name="x", shape=None if shape is None else ir.Shape(shape))
    assert is_last(axis, value) == last
