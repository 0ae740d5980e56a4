"""One layer group as the choices made for it see it: its input in both models, sizes, a sample.

Behind a router the two models' rows may be different tokens: then the quantized model's alone are
looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.folding.linear_sites import LinearSite
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.numerics.hessian import Hessian
from fptq_onnx.numerics.smoothing_scales import ChannelSizes, weight_sizes
from fptq_onnx.numerics.token_weights import token_weights
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.quantization.paired_activations import FLOAT, QUANTIZED, PairedActivations
from fptq_onnx.quantization.scheme_search import Rounding, Sample, fake_int8
from fptq_onnx.quantization.subgraphs import LayerGroup
from fptq_onnx.scheme.activation_stats import ChannelRange

Rows = NDArray[np.float32]

# Tokens of a layer group's input that choices are judged by.
_SAMPLE_TOKENS = 4096
# One token in so many has its local output error measured, which takes three matrix products.
_TOKENS_PER_LOCAL_ERROR = 4


class LayerGroupInputs:
    """What the choices of one layer group look at.

    Tokens that are massive count as less (numerics/token_weights.py) in sizes, sample and moments.

    paired: whether row i of the input is the same token in both models.
    unseen: whether a router sent no token here; all that is known then are the weights.
    """

    def __init__(
        self,
        group: LayerGroup,
        activations: PairedActivations,
        weights: list[Rows],
        ranges: ChannelRange,
        columns: LinearSite | None = None,
    ) -> None:
        """Read the layer group's input once.

        Args:
            group: the one at hand.
            activations: the two models.
            weights: [K, N] of its linears.
            ranges: of its input.
            columns: what the smoothing scales of its input would go into, if not a norm.
        """
        self.group, self.activations, self.weights, self.ranges = (
            group,
            activations,
            weights,
            ranges,
        )
        float_rows = [len(rows) for rows in activations.rows(group, FLOAT)]
        batches = [len(rows) for rows in activations.rows(group, QUANTIZED)]
        self.paired = not group.routed and float_rows == batches
        self._seen = QUANTIZED
        if not self.paired and not sum(batches):
            self._seen, batches = FLOAT, float_rows
        self.unseen = not sum(batches)
        if self.unseen and not group.routed:
            raise FptqError(
                f"no token of the calibration samples reaches {self._where}: give more samples"
            )
        share = min(1.0, _SAMPLE_TOKENS / max(1, sum(batches)))
        squares = np.zeros(group.linears[0].k)
        weight_squares = weight_sizes(weights)[1] ** 2
        energies: list[NDArray[np.float64]] = []  # of tokens' outputs, were channels uncorrelated
        picked = [np.zeros((0, len(squares)), np.float32)]
        picked_quantized = picked.copy()
        broken = ""
        for x, x_quantized in self.pairs():
            square = np.square(x, dtype=np.float64)
            energies.append(square @ weight_squares)
            if len(x) == 0:
                continue
            squares += square.sum(axis=0)
            if not np.isfinite(x_quantized).all():
                broken = "once the linears before it are quantized: keep some of them in float"
            some = _picked(len(x), share)
            picked.append(x[some])
            picked_quantized.append(x_quantized[some])
        if not np.isfinite(squares).all():
            broken = "check that the model runs well in float on this data"
        if broken:
            raise FptqError(f"NaN or infinity in the input of {self._where}: {broken}")
        self._token_weights = _by_batch(energies)
        few = None
        if self._token_weights is not None:
            squares = np.zeros(len(squares))
            for (x, _), counted in zip(self.pairs(), self._token_weights, strict=True):
                squares += counted @ np.square(x, dtype=np.float64)
            few = np.concatenate(
                [counted[_picked(len(counted), share)] for counted in self._token_weights]
            )
        self.sample = Sample(np.concatenate(picked), np.concatenate(picked_quantized), few)
        sizes = (ranges.absmax, np.sqrt(squares / max(1, sum(batches))), *weight_sizes(weights))
        # Channels that one column makes have one smoothing scale: the formulas see them alike.
        self.sizes = ChannelSizes(*(columns.tied(x) for x in sizes) if columns else sizes)

    def pairs(self) -> Iterator[tuple[Rows, Rows]]:
        """The input in the float and in the quantized model, batch by batch.

        Where rows do not pair, what the quantized model sees stands for both: its linears are then
        fitted to their own inputs, without making up for errors made before.
        """
        if self.paired:
            yield from zip(
                self.activations.rows(self.group, FLOAT),
                self.activations.rows(self.group, QUANTIZED),
                strict=True,
            )
        else:
            yield from ((rows, rows) for rows in self.activations.rows(self.group, self._seen))

    def _counted(self) -> Iterable[NDArray[np.float32] | None]:
        """What the tokens of each batch count; None where all count 1."""
        return repeat(None) if self._token_weights is None else self._token_weights

    @property
    def _where(self) -> str:
        linear = self.group.linears[0]
        return f"{linear.path} ({linear.name})"

    def moments(self, smoothing: NDArray[np.float32], scale: Rounding) -> Hessian:
        """Of the divided input, in int8 and in the float model."""
        found = Hessian.empty(len(smoothing))
        for (x, x_quantized), counted in zip(self.pairs(), self._counted(), strict=False):
            found.add(fake_int8(x_quantized, smoothing, scale), x / smoothing, counted)
        return found

    def mean_squares(self, smoothing: NDArray[np.float32], scale: Rounding) -> NDArray[np.float64]:
        """E[x8_k^2] [K], the part of the moments that a clip search needs."""
        total, tokens = np.zeros(len(smoothing)), 0
        for (_, x_quantized), counted in zip(self.pairs(), self._counted(), strict=False):
            squares = np.square(fake_int8(x_quantized, smoothing, scale), dtype=np.float64)
            total += squares.sum(axis=0) if counted is None else counted @ squares
            tokens += len(squares)
        return total / tokens

    def outputs(
        self,
        linear: Linear,
        w: Rows,
        quantized: tuple[Rows, Rows] | None,
        smoothing: NDArray[np.float32],
        scale: Rounding,
        errors: LinearErrors,
    ) -> Iterator[tuple[Rows, Rows]]:
        """The linear's output in both models, batch by batch; counts its errors on the way.

        Args:
            linear: of this layer group.
            w: its float weight [K, N].
            quantized: the divided weight as rounded, and what rounding left of the weight that was
                aimed at; None for a linear in float.
            smoothing: of its input [K].
            scale: how the divided input is rounded.
            errors: receives sums. The local output error is of the two roundings alone: weights
                that make up for errors made before are no error.
        """
        bias: Rows = np.zeros(1, np.float32)
        if linear.bias is not None:
            bias = linear.bias.load().astype(np.float32).reshape(-1)
        for float_rows, x_quantized in zip(
            self.activations.rows(self.group, FLOAT),
            self.activations.rows(self.group, QUANTIZED),
            strict=True,
        ):
            x = float_rows if self.paired else x_quantized
            want = x @ w
            if quantized is None:
                got = x_quantized @ w
                errors.input_total.add(x, x_quantized)
            else:
                rounded, left = quantized
                x8 = fake_int8(x_quantized, smoothing, scale)
                got = x8 @ rounded
                errors.input_local.add(x_quantized / smoothing, x8)
                errors.input_total.add(x / smoothing, x8)
                few = slice(None, None, _TOKENS_PER_LOCAL_ERROR)
                exact = x_quantized[few] @ w
                errors.output_local.add(exact, (x8[few] * smoothing) @ w - x8[few] @ left)
            errors.output_total.add(want, got)
            yield (want if self.paired else float_rows @ w) + bias, got + bias


def _picked(tokens: int, share: float) -> NDArray[np.intp]:
    """Which tokens of a batch are in the sample: some of all of it, none of an empty one."""
    wanted = max(1, round(share * tokens)) if tokens else 0
    return np.linspace(0, tokens - 1, wanted).astype(int)


def _by_batch(energies: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float32]] | None:
    """What each token counts, batch by batch; None where all count 1."""
    found = token_weights(np.concatenate([*energies, np.zeros(0)]))
    if (found == 1).all():
        return None
    return np.split(found, np.cumsum([len(batch) for batch in energies])[:-1])
