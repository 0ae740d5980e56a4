"""Rounds a weight that several linears have once, for all of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.graph.linears import Linear
from fptq_onnx.numerics.second_moments import SecondMoments
from fptq_onnx.plan import LinearPlan
from fptq_onnx.shared_moments import SharedMoments
from fptq_onnx.stage_choice import Rounding
from fptq_onnx.weight_store import WeightStore


class SharedRounding:
    """Which weights are rounded already, and what those are fitted to that are not.

    Args:
        shared: see graph/shared_weights.py.
        method: how weights are rounded.
        moments: of the inputs of all uses; None rounds to nearest.
    """

    def __init__(
        self, shared: Mapping[str, str], method: str, moments: SharedMoments | None = None
    ) -> None:
        self._shared, self._method, self._moments = shared, method, moments
        self._done: dict[tuple[object, ...], str] = {}

    def applies(self, linear: Linear, divisor: NDArray[np.float32]) -> bool:
        """Whether others have a linear's weight, and it is not divided for this one alone."""
        return linear.name in self._shared and bool((divisor == 1).all())

    def reuse(self, linear: Linear, entry: LinearPlan, store: WeightStore) -> bool:
        """Give a linear the codes of one before it; False where there are none of its form yet."""
        form = (entry.block_size, entry.symmetric, entry.weight_bits)
        key = (self._shared[linear.name], *form)
        first = self._done.setdefault(key, linear.name)
        if first != linear.name:
            store.share(linear.name, first)
        return first != linear.name

    def moments(
        self, linear: Linear, rounding: Rounding
    ) -> SecondMoments | NDArray[np.float64] | None:
        """What the method looks at of the inputs of all uses; None for rounding to nearest.

        Raises:
            FptqError: the float model cannot be run.
        """
        if self._moments is None or self._method == "rtn":
            return None
        found = self._moments.of(self._shared[linear.name], rounding)
        if found is None or self._method == "gptq":
            return found
        return np.asarray(found.diagonal(), np.float64)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What a user should know: what is stored once, and what that rules out."""
        if not self._shared:
            return ()
        weights = len(set(self._shared.values()))
        which = "a weight" if weights == 1 else f"{weights} weights"
        return (
            f"{len(self._shared)} linears have {which} in common, stored once: no equalization is "
            f"folded there, and the codes are fitted to the inputs of all of them",
        )
