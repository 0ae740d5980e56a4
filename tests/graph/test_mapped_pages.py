"""forget_pages: resident memory goes, the numbers stay."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fptq_onnx.graph.mapped_pages import forget_pages

ROWS = 8 << 20


def _resident_file_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssFile")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_pages_of_an_external_tensor_are_given_back_and_views_stay_good(tmp_path):
    numbers = np.arange(ROWS, dtype=np.float32)
    (tmp_path / "w.data").write_bytes(numbers.tobytes())
    tensor = ir.ExternalTensor(
        "w.data", 0, numbers.nbytes, ir.DataType.FLOAT,
        shape=ir.Shape([ROWS]), name="w", base_dir=tmp_path,
    )  # fmt: skip
    value = ir.Value(name="w", const_value=tensor)
    view = tensor.numpy()
    assert view.sum(dtype=np.float64) == numbers.sum(dtype=np.float64)
    held = _resident_file_bytes()
    forget_pages([value, None])
    assert held - _resident_file_bytes() > 0.9 * numbers.nbytes
    np.testing.assert_array_equal(view, numbers)


def test_what_is_in_memory_or_was_never_read_is_left_alone(tmp_path):
    (tmp_path / "w.data").write_bytes(b"\0" * 16)
    unread = ir.ExternalTensor(
        "w.data", 0, 16, ir.DataType.FLOAT, shape=ir.Shape([4]), name="w", base_dir=tmp_path
    )
    held = ir.Tensor(np.ones(4, np.float32), name="m")
    forget_pages([ir.Value(name="w", const_value=unread), ir.Value(name="m", const_value=held)])
    np.testing.assert_array_equal(held.numpy(), 1)
    np.testing.assert_array_equal(unread.numpy(), 0)
