"""Samples of a type that the model takes in another form."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fptq_onnx.calibration.feeds import feeds_from_iterable, feeds_from_npz
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.tensor_spec import TensorSpec


def test_bfloat16_for_an_input_that_is_float32(tmp_path: Path, rng: np.random.Generator) -> None:
    """A bfloat16 model's own samples; NumPy's files have no name for the type."""
    inputs = [TensorSpec("x", "float32", ("batch", 8))]
    x = rng.standard_normal((2, 8)).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "x.npz", x=x)
    for found in (
        feeds_from_iterable([{"x": x}], inputs, 1),
        feeds_from_npz(tmp_path / "x.npz", inputs, 1),
    ):
        for sample in (*found.samples, *found.verification):
            assert sample["x"].dtype == np.float32
            np.testing.assert_array_equal(sample["x"], x.astype(np.float32))
    with pytest.raises(FptqError, match=r"holds x bfloat16.*wants x float16.*the dtype differs"):
        feeds_from_iterable([{"x": x}], [TensorSpec("x", "float16", ("batch", 8))], 1)
