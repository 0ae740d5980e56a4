"""What is said of a place that was left alone."""

from __future__ import annotations

import dataclasses

import pytest

from fptq_onnx.graph.declined import Declined


def test_it_reads_as_a_sentence() -> None:
    assert str(Declined("MatMul_3", "its input is a weight")) == "MatMul_3: its input is a weight"
    assert f"{Declined('', 'nothing was found')}" == "nothing was found"


def test_it_is_a_value() -> None:
    first, second = Declined("a", "b"), Declined("a", "b")
    assert first == second and len({first, second}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.reason = "c"  # type: ignore[misc]


def test_a_reason_is_demanded() -> None:
    with pytest.raises(ValueError, match="'MatMul_3'"):
        Declined("MatMul_3", "")
