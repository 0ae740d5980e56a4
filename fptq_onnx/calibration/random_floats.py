"""Normal random numbers as the inputs of a model that takes no tokens: images, features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fptq_onnx.calibration.feeds import Feeds, Sample
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.tensor_spec import FLOAT_DTYPES, TensorSpec


def random_floats(
    inputs: Sequence[TensorSpec], samples: int, heldout: int, rng: np.random.Generator
) -> Feeds:
    """Samples of mean 0 and deviation 1, one row each where the first dimension is open.

    Args:
        inputs: what the model must be fed, all floats.
        samples: to calibrate on.
        heldout: to compare models on, drawn after those.
        rng: draws them.

    Raises:
        FptqError: an input that is no float, or a size other than the first that is not fixed.
    """
    shapes = [_shape(spec) for spec in inputs]

    def draw() -> Sample:
        return {
            spec.name: rng.standard_normal(shape).astype(spec.dtype)
            for spec, shape in zip(inputs, shapes, strict=True)
        }

    return Feeds([draw() for _ in range(samples)], [draw() for _ in range(heldout)])


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    shape = list(spec.shape or ())
    if shape and not isinstance(shape[0], int):
        shape[0] = 1
    sizes = [size for size in shape if isinstance(size, int) and size > 0]
    if spec.dtype not in FLOAT_DTYPES - {"bfloat16"} or not shape or len(sizes) != len(shape):
        raise FptqError(
            f"cannot draw {spec.describe()} at random: only floats are drawn, and every size after "
            f"the first must be a number, as in [batch, 3, 224, 224]; give .npz files with "
            f"{spec.name} instead"
        )
    return tuple(sizes)
