"""How a weight becomes codes: the methods by name, and what each needs to know of the inputs.

    rtn     nothing                          round to nearest
    mse     mean squares E[x_k^2] [K]        nearest, on the grid with the least weighted error
    gptq    Hessian X^T X                    columns in turn, errors made up for by later ones

Whoever rounds a weight calls `quantize_weight`: linears, candidates of the scheme search, tables of
embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.numerics.clip_search import quantize_mse
from fptq_onnx.numerics.gptq import ROUNDS, quantize_gptq
from fptq_onnx.numerics.group_weights import GroupWeights, dequantize, quantize_rtn
from fptq_onnx.numerics.hessian import Hessian

Seen: TypeAlias = Hessian | NDArray[np.floating]


@dataclass(frozen=True)
class GroupFormat:
    """How codes are stored.

    block_size: input channels per group, or -1 for one group.
    symmetric: zero point fixed in the middle, or one zero point per group.
    bits: 4 or 8.
    """

    block_size: int
    symmetric: bool = True
    bits: int = 4


def quantize_weight(
    w: NDArray[Any],
    method: str,
    seen: Seen | None,
    form: GroupFormat,
    *,
    rounds: int = ROUNDS,
    left: NDArray[np.float32] | None = None,
) -> GroupWeights:
    """Round a weight by one of METHODS, or by what the inputs allow of it.

    Args:
        w: float32 [K, N], finite; any float type where it is rounded to nearest.
        method: one of METHODS.
        seen: of the inputs: a Hessian (its diagonal serves mse), or mean squares [K] for mse. None
            where no token is known: every method then rounds to nearest. With inputs that are all
            zero GPTQ has nothing to fit to, and mse is used.
        form: groups, zero points and bits.
        rounds: of GPTQ's refinement; 0 is plain GPTQ.
        left: float32 [K, N], overwritten with what rounding left of w; of GPTQ's target for gptq.

    Raises:
        KeyError: no such method.
        ValueError: see the methods.
        numpy.linalg.LinAlgError: see quantize_gptq.
    """
    if seen is None:
        method = "rtn"
    elif method == "gptq" and isinstance(seen, Hessian) and not np.diag(seen.xx).any():
        method = "mse"
    return METHODS[method](w, seen, form, rounds, left)


def _rtn(
    w: NDArray[Any], seen: Seen | None, form: GroupFormat, rounds: int,
    left: NDArray[np.float32] | None,
) -> GroupWeights:  # fmt: skip
    found = quantize_rtn(w, form.block_size, symmetric=form.symmetric, bits=form.bits)
    return _with_left(found, w, left)


def _mse(
    w: NDArray[Any], seen: Seen | None, form: GroupFormat, rounds: int,
    left: NDArray[np.float32] | None,
) -> GroupWeights:  # fmt: skip
    if seen is None:
        raise ValueError("a clip search needs mean squares of the inputs")
    squares = seen.diagonal() if isinstance(seen, Hessian) else seen
    found = quantize_mse(w, squares, form.block_size, symmetric=form.symmetric, bits=form.bits)
    return _with_left(found, w, left)


def _gptq(
    w: NDArray[Any], seen: Seen | None, form: GroupFormat, rounds: int,
    left: NDArray[np.float32] | None,
) -> GroupWeights:  # fmt: skip
    if not isinstance(seen, Hessian):
        raise ValueError("GPTQ needs the Hessian of the inputs")
    return quantize_gptq(
        w, seen, form.block_size, symmetric=form.symmetric, bits=form.bits, rounds=rounds, left=left
    )


def _with_left(
    found: GroupWeights, w: NDArray[Any], left: NDArray[np.float32] | None
) -> GroupWeights:
    if left is not None:
        np.subtract(w, dequantize(found), out=left)
    return found


METHODS: dict[
    str,
    Callable[
        [NDArray[Any], Seen | None, GroupFormat, int, NDArray[np.float32] | None], GroupWeights
    ],
] = {"rtn": _rtn, "mse": _mse, "gptq": _gptq}
