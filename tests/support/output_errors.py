"""Tokens with correlated channels, and the output errors that weight quantizers minimize."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.numerics.group_weights import GroupWeights, dequantize
from fptq_onnx.numerics.hessian import Hessian

Array = NDArray[np.float64]


def correlated(rng: np.random.Generator, tokens: int, k: int) -> NDArray[np.float32]:
    """float32 [tokens, K]: a few directions carry most, channels differ in size, mean not 0."""
    mixing = rng.standard_normal((k, k)) / np.arange(1, k + 1)[:, None]
    sizes = np.exp(rng.standard_normal(k) / 2)
    return ((rng.standard_normal((tokens, k)) @ mixing + 0.2) * sizes).astype(np.float32)


def moments_of(x8: NDArray[np.float32], x: NDArray[np.float32] | None = None) -> Hessian:
    """The moments of one set of tokens."""
    moments = Hessian.empty(x8.shape[1], with_float=x is not None)
    moments.add(x8, x)
    return moments


def damping_of(moments: Hessian, share: float) -> float:
    """What is added to the diagonal."""
    return share * float(np.trace(moments.xx)) / len(moments.xx)


def damped(moments: Hessian, share: float) -> Array:
    """H in float64."""
    return moments.xx.astype(np.float64) + damping_of(moments, share) * np.eye(len(moments.xx))


def least_squares_target(
    x8: NDArray[np.float32], x: NDArray[np.float32], w: NDArray[np.float32], added: float
) -> Array:
    """argmin over T of |x W - x8 T|^2 + added |W - T|^2, by stacking equations."""
    root = np.sqrt(added)
    wide, exact = x8.astype(np.float64), w.astype(np.float64)
    left = np.concatenate([wide, root * np.eye(len(w))])
    right = np.concatenate([x.astype(np.float64) @ exact, root * exact])
    solution: Array = np.linalg.lstsq(left, right, rcond=None)[0]
    return solution


def quadratic_error(found: GroupWeights, target: Array, h: Array) -> Array:
    """(t - w4)^T H (t - w4) of each column."""
    e = target - dequantize(found)
    result: Array = (e * (h @ e)).sum(axis=0)
    return result


def weighted_error(found: GroupWeights, w: NDArray[np.float32], importance: Array) -> Array:
    """Sum over k of importance_k (w_k - w4_k)^2 of each group and column, [G, N]."""
    squares = importance[:, None] * np.square(w - dequantize(found).astype(np.float64))
    k = len(w)
    length = k if found.block_size == -1 else found.block_size
    result: Array = np.add.reduceat(squares, np.arange(0, k, length), axis=0)
    return result
