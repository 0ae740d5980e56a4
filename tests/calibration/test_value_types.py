"""What values show of their types, and what of it is true of all."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny_graphs import build

from fptq_onnx.calibration.value_types import ValueType, is_array


def told(*held: object) -> ir.Value:
    types = [ValueType.of(item) for item in held]
    common = types[0]
    for other in types[1:]:
        common = common.common(other)
    value = ir.Value(name="v")
    common.tell(value)
    return value


def test_sizes_that_differ_are_left_open() -> None:
    a, b = np.zeros((2, 5, 8), np.float32), np.zeros((2, 7, 8), np.float32)
    assert told(a, a).shape == ir.Shape([2, 5, 8])
    assert [dim if isinstance(dim, int) else None for dim in told(a, b).shape] == [2, None, 8]
    assert told(a, b).dtype == ir.DataType.FLOAT
    assert told(np.zeros((), np.int64)).shape == ir.Shape([])


def test_another_number_of_axes_leaves_all_open() -> None:
    a, b = np.zeros((2, 5), np.float32), np.zeros((2, 5, 1), np.float32)
    for order in ((a, b), (b, a), (a, b, a)):
        assert told(*order).shape is None
        assert told(*order).dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(("code", "dtype"), [(1, "FLOAT"), (7, "INT64"), (10, "FLOAT16")])
def test_sequences_keep_their_type(code: int, dtype: str) -> None:
    model = build(f"g (float[2] x) => (q) {{ c = Cast<to = {code}>(x) q = SequenceConstruct(c) }}")
    model.graph.outputs[0].type = ir.SequenceType(ir.TensorType(ir.DataType[dtype]))
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = ort.OrtValue.ortvalue_from_numpy(np.ones(2, np.float32))
    held = session.run_with_ort_values(["q"], {"x": x})[0]
    assert not is_array(held) and is_array(x)
    assert told(held).type == ir.SequenceType(ir.TensorType(ir.DataType[dtype]))
    assert told(held, held).shape is None
