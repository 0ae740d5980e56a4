"""A weight that several linears have is rounded once, for the inputs of all of them.

Those inputs are of the float model, since the quantized one has not come to the later uses when the
first is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.calibration.whole_feeds import Feed
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.numerics.hessian import Hessian
from fptq_onnx.quantization.scheme_search import Rounding, fake_int8
from fptq_onnx.quantization.subgraphs import LayerGroup
from fptq_onnx.runtime.session import first_line, open_session_in_memory
from fptq_onnx.scheme.plan import LinearPlan
from fptq_onnx.scheme.weight_store import WeightStore

import onnx_ir.passes.common as common_passes  # isort: skip

# Of Hessians held at once: 4 of 4096 channels. The float model is run anew for the next ones.
_MOST_BYTES = 1 << 30


class SharedHessian:
    """Moments by weight, made when they are asked for.

    Args:
        loaded: the float model, normalized; not changed.
        groups: of the model, in order.
        shared: see shared_weights.
        feeds: complete inputs.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        groups: Sequence[LayerGroup],
        shared: Mapping[str, str],
        feeds: Sequence[Feed],
        *,
        threads: int = 0,
    ) -> None:
        self._loaded, self._feeds, self._threads = loaded, feeds, threads
        uses: dict[str, list[str]] = {}
        self._channels: dict[str, int] = {}
        for group in groups:
            self._channels[group.x] = group.linears[0].k
            for linear in group.linears:
                if linear.name in shared:
                    uses.setdefault(shared[linear.name], []).append(group.x)
        # Weights that meet the same activations (q, k and v) have the same moments.
        self._uses = {first: tuple(dict.fromkeys(names)) for first, names in uses.items()}
        self._order = list(dict.fromkeys(self._uses.values()))
        self._known: dict[tuple[tuple[str, ...], bool], Hessian] = {}

    def of(self, first: str, rounding: Rounding) -> Hessian | None:
        """The moments of a weight's inputs; None where no token meets it.

        Args:
            first: name of the first linear that has it.
            rounding: NOT_ROUNDED, or anything else for inputs in int8, a scale for each token.

        Raises:
            FptqError: ONNX Runtime cannot run the model.
        """
        key = (self._uses[first], isinstance(rounding, str))
        if key not in self._known:
            self._known.clear()
            self._measure(*key, rounding if isinstance(rounding, str) else None)
        found = self._known[key]
        return found if found.tokens else None

    def _measure(self, wanted: tuple[str, ...], as_float: bool, rounding: Rounding) -> None:
        some: list[tuple[str, ...]] = []
        size = 0
        for uses in self._order[self._order.index(wanted) :]:
            size += 16 * self._channels[uses[0]] ** 2
            if some and size > _MOST_BYTES:
                break
            some.append(uses)
            channels = self._channels[uses[0]]
            self._known[uses, as_float] = Hessian.empty(channels)
        names = list(dict.fromkeys(name for uses in some for name in uses))
        model = self._loaded.model.clone()
        values = {value.name: value for node in model.graph for value in node.outputs}
        values |= {value.name: value for value in model.graph.inputs}
        outputs = [name for name in names if not values[name].is_graph_input()]
        model.graph.outputs.clear()
        model.graph.outputs.extend(values[name] for name in outputs)
        common_passes.RemoveUnusedNodesPass()(model)
        session = open_session_in_memory(model, self._loaded.folder, threads=self._threads)
        read = {value.name for value in session.get_inputs()}
        for feed in self._feeds:
            given = {name: value for name, value in feed.items() if name in read}
            try:
                made = session.run_with_ort_values(outputs, given) if outputs else []
            except Exception as error:  # ORT raises its own types
                raise FptqError(f"the model cannot run: {first_line(error)}") from error
            arrays = dict(zip(outputs, made, strict=True)) | {
                name: feed[name] for name in names if name not in outputs
            }
            for uses in some:
                channels = self._channels[uses[0]]
                ones = np.ones(channels, np.float32)
                for name in uses:
                    x = np.ascontiguousarray(arrays[name].numpy(), np.float32)
                    x = x.reshape(-1, channels)
                    self._known[uses, as_float].add(fake_int8(x, ones, rounding), x)


class SharedRounding:
    """Which weights are rounded already, and what those are fitted to that are not.

    Args:
        shared: see graph/linears/shared_weights.py.
        method: how weights are rounded.
        moments: of the inputs of all uses; None rounds to nearest.
    """

    def __init__(
        self, shared: Mapping[str, str], method: str, moments: SharedHessian | None = None
    ) -> None:
        self._shared, self._method, self._moments = shared, method, moments
        self._done: dict[tuple[object, ...], str] = {}

    def applies(self, linear: Linear, smoothing: NDArray[np.float32]) -> bool:
        """Whether others have a linear's weight, and it is not divided for this one alone."""
        return linear.name in self._shared and bool((smoothing == 1).all())

    def reuse(self, linear: Linear, entry: LinearPlan, store: WeightStore) -> bool:
        """Give a linear the codes of one before it; False where there are none of its form yet."""
        precision = (entry.block_size, entry.symmetric, entry.weight_bits)
        key = (self._shared[linear.name], *precision)
        first = self._done.setdefault(key, linear.name)
        if first != linear.name:
            store.share(linear.name, first)
        return first != linear.name

    def moments(self, linear: Linear, rounding: Rounding) -> Hessian | NDArray[np.float64] | None:
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
