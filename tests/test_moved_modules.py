"""What people imported before modules moved is still found by its old name."""

from __future__ import annotations

import importlib

import pytest

import fptq_onnx


@pytest.mark.parametrize("name", ["config", "pipeline", "plan", "recipes", "samples"])
def test_an_old_name_gives_the_same_module(name: str) -> None:
    old = importlib.import_module(f"fptq_onnx.{name}")
    assert old is importlib.import_module(f"fptq_onnx.{name}")
    assert old.__name__.startswith("fptq_onnx.") and old.__name__ != f"fptq_onnx.{name}"
    assert old is importlib.import_module(old.__name__)


def test_the_classes_are_the_same() -> None:
    config = importlib.import_module("fptq_onnx.config")
    assert config.Config is fptq_onnx.Config


def test_no_other_name_is_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("fptq_onnx.no_such_module")
