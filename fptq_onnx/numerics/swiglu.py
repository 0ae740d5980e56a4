"""The gate of a gated MLP: silu(g) * u or gelu_tanh(g) * u, as the kernels compute it.

    t     = g                                           SiLU
    t     = g * fma(0.0713548163, g * g, 1.59576912)    tanh-GELU: 2 sqrt(2 / pi) (g + 0.044715 g^3)
    out   = g / (1 + exp(clip(-t, -87, 88))) * u

since 0.5 (1 + tanh(t / 2)) = 1 / (1 + exp(-t)). All operations are float32, in this order; fma
rounds once. exp is 2^n times a Taylor polynomial of degree 7 in r, |r| <= ln(2) / 2, so its
relative error is at most r^8 / 8! < 6e-9 plus rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.numerics.matmul_w4a8 import fma

SILU = "silu"
GELU_TANH = "gelu_tanh"

_F = np.float32
_TAYLOR = [_F(1) / _F(factorial) for factorial in (5040, 720, 120, 24, 6, 2, 1, 1)]
# ln(2) in two parts; n times the first is exact.
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)


def exponential(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """e^x for x float32 in -87..88, to the last bit what the kernels compute."""
    n = np.rint(x * _F(1.44269504)).astype(np.float32)
    r = fma(n, np.full_like(n, -_LN2_HIGH), x)
    r = fma(n, np.full_like(n, -_LN2_LOW), r)
    p = np.full_like(r, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        p = fma(p, r, np.full_like(r, coefficient))
    power: NDArray[np.float32] = np.ldexp(np.float32(1), n.astype(np.int32)).astype(np.float32)
    return p * power


def gated(gate: NDArray[np.float32], up: NDArray[np.float32], function: str) -> NDArray[np.float32]:
    """function(gate) * up.

    Args:
        gate: float32, any shape, finite or NaN.
        up: float32 of the same shape.
        function: SILU or GELU_TANH.

    Returns:
        float32 of the same shape.
    """
    t = gate
    if function == GELU_TANH:
        with np.errstate(over="ignore"):
            cubic = np.full_like(gate, _F(0.0713548163))
            t = gate * fma(cubic, gate * gate, np.full_like(gate, _F(1.59576912)))
    with np.errstate(invalid="ignore"):
        z = np.clip(-t, _F(-87), _F(88))
    z = np.where(np.isnan(z), _F(-87), z).astype(np.float32)
    return (gate / (_F(1) + exponential(z)) * up).astype(np.float32)
