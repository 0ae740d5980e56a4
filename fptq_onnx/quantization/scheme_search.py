"""For a layer group: which scales to fold, and whether its input is rounded per tensor or token.

Judged on the output error of the real thing, on a sample of tokens: the linears of the group with
their input in int8 and their weights in groups, fed what the quantized model feeds them, beside the
float linears fed what the float model feeds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.numerics.group_weights import dequantize
from fptq_onnx.numerics.hessian import Hessian
from fptq_onnx.numerics.int8 import quantize_per_token, quantize_static
from fptq_onnx.numerics.smoothing_scales import ChannelSizes, smoothing_scale
from fptq_onnx.numerics.token_sizes import count_sizes, loses_tokens
from fptq_onnx.numerics.weight_methods import GroupFormat, Seen, quantize_weight
from fptq_onnx.quantization.mixed_precision import precision_candidates
from fptq_onnx.scheme.plan import SKIP, WEIGHT_ONLY, LinearPlan

Rows = NDArray[np.float32]

NOT_ROUNDED = "not rounded"
Rounding = float | str | None  # a static scale, NOT_ROUNDED, or None: one scale per token

# Columns of each weight that a candidate is judged by, spread over all of them. All candidates see
# the same columns, so that what 256 of thousands happen to be does not decide between them; every
# candidate is a rounding and a product of so many.
_COLUMNS = 256


@dataclass(frozen=True)
class Sample:
    """Some tokens of a layer group's input, float32 [tokens, K], in both models.

    weights: [tokens] of `token_weights`; None where all are 1.
    """

    x: Rows
    x_quantized: Rows
    weights: NDArray[np.float32] | None = None

    def sum(self, of_tokens: NDArray[np.float64]) -> float:
        """The sum over tokens, each as it counts."""
        return float(of_tokens.sum() if self.weights is None else of_tokens @ self.weights)


def rounding_of(entry: LinearPlan) -> Rounding:
    """How the plan rounds a linear's input."""
    return NOT_ROUNDED if entry.scheme == WEIGHT_ONLY else entry.input_scale


def fake_int8(x: Rows, smoothing: NDArray[np.float32], scale: Rounding) -> Rows:
    """X / scale in int8 and back: static scale, per token (None), or NOT_ROUNDED at all."""
    divided = x / smoothing
    if scale == NOT_ROUNDED:
        return divided
    codes, scales = (
        quantize_per_token(divided)
        if scale is None
        else quantize_static(divided, np.float32(cast(float, scale)))
    )
    return codes.astype(np.float32) * scales[:, None]


class SchemeSearch:
    """Output errors of one layer group, candidate by candidate."""

    def __init__(
        self,
        sizes: ChannelSizes,
        sample: Sample,
        weights: Sequence[Rows],
        entries: Sequence[LinearPlan],
        method: str,
    ) -> None:
        """Prepare what all candidates share.

        Args:
            sizes: of the layer group's channels.
            sample: tokens.
            weights: [K, N] of each linear of the layer group.
            entries: their plans, in the same order; those that stay in float do not count.
            method: "rtn", "mse" or "gptq": how the weights will be rounded.
        """
        self._sizes, self._sample, self._method = sizes, sample, method
        self._linears = []
        self._known: dict[tuple[str, Rounding], tuple[float, float]] = {}
        self._float_inputs = all(entry.scheme in (WEIGHT_ONLY, SKIP) for entry in entries)
        for w, entry in zip(weights, entries, strict=True):
            if entry.scheme != SKIP:
                count = min(w.shape[1], _COLUMNS)
                part = w[:, np.linspace(0, w.shape[1] - 1, count).astype(int)]
                self._linears.append((part, sample.x @ part, entry))

    def error(self, equalization: str, scale: Rounding = None) -> float:
        """Squared output error, massive tokens counted as less (numerics/token_weights.py).

        Args:
            equalization: of the smoothing scales.
            scale: static, None for one per token, or NOT_ROUNDED.
        """
        return self._judged(equalization, scale)[0]

    def token_error(self, equalization: str, scale: Rounding = None) -> float:
        """Output error of a token relative to its output, at most 1, on average over tokens.

        It shows what no sum of squares does: that tokens are lost beside larger ones.

        Args:
            equalization: of the smoothing scales.
            scale: as `error` takes it.
        """
        return self._judged(equalization, scale)[1]

    def loses_tokens(self, equalization: str, full: float) -> bool:
        """Whether one scale for magnitudes up to `full`, of the divided input, loses tokens."""
        divided = self._sample.x_quantized / smoothing_scale(equalization, self._sizes)
        return loses_tokens(count_sizes(np.abs(divided).max(axis=1, initial=0)), full)

    def _judged(self, equalization: str, scale: Rounding) -> tuple[float, float]:
        key = (equalization, scale)
        if key not in self._known:
            self._known[key] = self._judge(equalization, scale)
        return self._known[key]

    def _judge(self, equalization: str, scale: Rounding) -> tuple[float, float]:
        smoothing = smoothing_scale(equalization, self._sizes)
        if scale is None and self._float_inputs:
            scale = NOT_ROUNDED
        x8 = fake_int8(self._sample.x_quantized, smoothing, scale)
        total, relative = 0.0, []
        for part, want, entry in self._linears:
            rounded = self._rounded(part * smoothing[:, None], x8, entry)
            missed = np.square(want - x8 @ rounded, dtype=np.float64).sum(axis=1)
            total += self._sample.sum(missed)
            wanted = np.square(want, dtype=np.float64).sum(axis=1)
            alive = wanted > 0
            relative.append(np.minimum(np.sqrt(missed[alive] / wanted[alive]), 1))
        every = np.concatenate(relative) if relative else np.zeros(0)
        return total, float(every.mean()) if len(every) else 0.0

    def weight_error(self, equalization: str, precision: str = "") -> float:
        """The part of it that bits can take off: of the rounding of this group's weights alone.

        Args:
            equalization: of the smoothing scales.
            precision: of precision_candidates, for linears that have it; "" is as planned.
        """
        smoothing = smoothing_scale(equalization, self._sizes)
        scale = NOT_ROUNDED if self._float_inputs else None
        x8 = fake_int8(self._sample.x_quantized, smoothing, scale)
        total = 0.0
        for part, _, entry in self._linears:
            w = part * smoothing[:, None]
            rounded = self._rounded(w, x8, precision_candidates(entry).get(precision, entry))
            total += self._sample.sum(np.square(x8 @ (w - rounded), dtype=np.float64).sum(axis=1))
        return total

    def _rounded(self, w: Rows, x8: Rows, entry: LinearPlan) -> Rows:
        return _rounded(w, x8, entry, self._method, self._sample.weights)


def _rounded(
    w: Rows, x8: Rows, entry: LinearPlan, method: str, weights: NDArray[np.float32] | None
) -> Rows:
    """The weight as it will be, near enough to compare scales: GPTQ without its refinement."""
    seen: Seen | None = None
    form = GroupFormat(entry.block_size, entry.symmetric, entry.weight_bits)
    try:
        # With fewer tokens than GPTQ has freedom for, it would be judged on what it was fitted to.
        if method == "gptq" and len(x8) >= 2 * w.shape[0]:
            seen = Hessian.empty(w.shape[0], with_float=False)
            seen.add(x8, weights=weights)
        elif method != "rtn":
            method = "mse"
            squares = np.square(x8, dtype=np.float64)
            seen = (squares if weights is None else squares * weights[:, None]).mean(axis=0)
        return dequantize(quantize_weight(w, method, seen, form, rounds=0))
    except (ValueError, np.linalg.LinAlgError) as error:
        raise FptqError(
            f"cannot choose smoothing scales for {entry.name}: {error}; try --weight-method mse"
        ) from error
