"""Causal attention with grouped heads, a KV cache and rotary embeddings: the kernels' reference.

What fptq::GroupQueryAttention computes, in float64. Kernels compute in float32, block of keys by
block of keys, so they differ by its roundings (docs/numerics.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def rotate(
    x: Floats, cos: Floats, sin: Floats, *, interleaved: bool = False
) -> NDArray[np.float64]:
    """Rotary position embedding of the first elements of each head (arXiv 2104.09864).

    Args:
        x: [..., size].
        cos: [..., rotary / 2], of each vector's position.
        sin: the same.
        interleaved: pairs are neighbours; else they are rotary / 2 apart.
    """
    out = x.astype(np.float64)
    half = cos.shape[-1]
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    a, b = out[..., first].copy(), out[..., second].copy()
    out[..., first] = a * cos - b * sin
    out[..., second] = b * cos + a * sin
    return out


def causal_attention(
    q: Floats, k: Floats, v: Floats, *, scale: float, seen: int
) -> NDArray[np.float64]:
    """One sequence; query t sees the first seen + t keys.

    Args:
        q: [tokens, heads, size].
        k: [keys, kv_heads, size]; heads is a multiple of kv_heads, and head h reads the key head
            h // (heads / kv_heads).
        v: as k.
        scale: of the products before softmax.
        seen: keys the first query sees, at least 1.

    Returns:
        [tokens, heads, size].
    """
    tokens, heads, _ = q.shape
    repeats = heads // k.shape[1]
    keys, values = (np.repeat(x.astype(np.float64), repeats, axis=1) for x in (k, v))
    scores = scale * np.einsum("thd,khd->htk", q.astype(np.float64), keys)
    visible = np.arange(len(k)) < seen + np.arange(tokens)[:, None]
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("htk,khd->thd", weights, values))
