from __future__ import annotations

import json
import math

import numpy as np

from fptq_onnx.quantization.layer_errors import LinearErrors, Ratio


def test_decibels_of_a_known_ratio() -> None:
    ratio = Ratio()
    ratio.add(np.array([[3.0, 0.0]]), np.array([[3.0, 0.1]]))
    ratio.add(np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]]))
    np.testing.assert_allclose(ratio.decibels, 10 * math.log10(10 / 0.01))


def test_ends_of_the_scale() -> None:
    assert Ratio().decibels == math.inf
    assert Ratio(4.0, 0.0).decibels == math.inf
    assert Ratio(0.0, 4.0).decibels == -math.inf
    np.testing.assert_allclose(Ratio(1e-300, 1e300).decibels, -6000)  # their ratio underflows


def test_sums_are_float64() -> None:
    ratio = Ratio()
    ratio.add(np.full(3, 1e30, np.float32), np.zeros(3, np.float32))
    np.testing.assert_allclose(ratio.signal, 3e60, rtol=1e-6)
    assert ratio.decibels == 0


def test_the_report_is_json_and_names_each_ratio() -> None:
    errors = LinearErrors("n", "a.b")
    for power, name in enumerate(
        ("input_local", "input_total", "weight", "output_local", "output_total")
    ):
        getattr(errors, name).add(np.array([10.0**power]), np.array([10.0**power - 1]))
    found = errors.to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["name"] == "n" and found["path"] == "a.b"
    values = [found[f"{name}_sqnr_db"] for name in
              ("input_local", "input_total", "weight", "output_local", "output_total")]  # fmt: skip
    np.testing.assert_allclose(values, [0, 20, 40, 60, 80], atol=1e-9)
    assert LinearErrors("n", "p").to_dict()["weight_sqnr_db"] is None
