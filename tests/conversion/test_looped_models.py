"""Models with Scan, Loop and If, by every recipe and for every target, beside ONNX Runtime's float.

Their bodies declare no shapes, which ONNX Runtime infers from the inputs of the whole model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.looped_graphs import BODIES, K, looped

from fptq_onnx import convert
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.float16 import convert_float16
from fptq_onnx.errors import FptqError
from fptq_onnx.runtime.session import open_session
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.recipes import FLOAT16, RECIPES, find_recipe

EQUALIZE_ONLY = "equalize only"
# Each way the values between linears are made: both streams, one, static scales, floats.
JOBS = [("fptq", "custom"), ("paper", "custom"), (EQUALIZE_ONLY, "float")]
OTHERS = [
    *[(recipe.name, recipe.target) for recipe in RECIPES],
    ("fptq", "matmulnbits"),
    ("fptq", "qdq"),
    ("mse", "custom"),
]


def samples() -> list[dict[str, np.ndarray]]:
    """Of two lengths, so that what is a size of one of them is none of the model."""
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((2, n, K)).astype(np.float32)} for n in (64, 48, 64)]


def converted(folder: Path, recipe: str, target: str) -> float:
    """The relative error of the outputs, for another batch and length than those seen."""
    out = folder / "out"
    given = {"samples": Samples(samples()), "verify_samples": 1, "threads": 1}
    if recipe == FLOAT16:
        convert_float16(folder / "model.onnx", out, **given)
    else:
        config = Config(quantize=False) if recipe == EQUALIZE_ONLY else Config(weights="mse")
        if recipe not in (EQUALIZE_ONLY, "mse"):
            config = find_recipe(recipe).config()
        targets = ("custom",) if target == "float" else (target,)
        convert(folder / "model.onnx", out, config=config, targets=targets, **given)
    x = np.random.default_rng(7).standard_normal((3, 7, K)).astype(np.float32)
    want, got = (
        open_session(path / "model.onnx", threads=1).run(None, {"x": x})[0]
        for path in (folder, out)
    )
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def bound(recipe: str, target: str) -> float:
    """Linears after each other and 4 bits in blocks of one size give 0.15 each, 8 bits 0.02."""
    return {"float": 1e-5, FLOAT16: 0.01, "qdq": 0.1 if recipe != "fptq" else 0.4}.get(target, 0.4)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(("recipe", "target"), JOBS)
def test_every_body(tmp_path: Path, name: str, recipe: str, target: str) -> None:
    onnx.save(looped(name), tmp_path / "model.onnx")
    several = 1.5 if name == "linear attention" else 1  # three linears are multiplied there
    assert converted(tmp_path, recipe, target) < several * bound(recipe, target)


@pytest.mark.process
@pytest.mark.parametrize("name", ["two scans", "if in a loop"])
@pytest.mark.parametrize(("recipe", "target"), OTHERS)
def test_every_recipe_and_target(tmp_path: Path, name: str, recipe: str, target: str) -> None:
    onnx.save(looped(name), tmp_path / "model.onnx")
    assert converted(tmp_path, recipe, target) < bound(recipe, target)


@pytest.mark.parametrize("name", [name for name in BODIES if "inside" in name or "outer" in name])
def test_bodies_that_hold_their_weights(tmp_path: Path, name: str) -> None:
    onnx.save(looped(name, held_inside=True), tmp_path / "model.onnx")
    assert converted(tmp_path, "fptq", "custom") < bound("fptq", "custom")


def test_linears_inside_are_left_alone_with_a_reason(tmp_path: Path) -> None:
    onnx.save(looped("scan with a linear inside"), tmp_path / "model.onnx")
    made = convert(
        tmp_path / "model.onnx", tmp_path / "out", samples=samples(), threads=1,
        verify_samples=0, config=Config(weights="rtn"),
    )  # fmt: skip
    assert len(made.plan.linears) == 2
    assert [other.reason for other in made.scan.others] == [
        "it is inside a subgraph (If, Loop or Scan)"
    ]


@pytest.mark.process
def test_a_float16_model_that_kills_onnxruntime_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 dies of this one; another version may well run it."""
    onnx.save(looped("loop over the tokens"), tmp_path / "model.onnx")
    try:
        assert converted(tmp_path, FLOAT16, FLOAT16) < bound(FLOAT16, FLOAT16)
    except FptqError as error:
        assert "ONNX Runtime crashes on the float16 model" in str(error)
        assert not (tmp_path / "out").exists()
