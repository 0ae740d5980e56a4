"""Second moments of everything that meets a weight which several linears have.

Its codes are found once, so for the inputs of all its uses: those of the float model, since the
quantized one has not come to the later uses when the first is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fptq_onnx.calibration.segments import Stage
from fptq_onnx.calibration.whole_feeds import Feed
from fptq_onnx.errors import FptqError
from fptq_onnx.model_load import LoadedModel
from fptq_onnx.numerics.second_moments import SecondMoments
from fptq_onnx.session import first_line, open_session_in_memory
from fptq_onnx.stage_choice import Rounding, fake_int8

import onnx_ir.passes.common as common_passes  # isort: skip

_MOST_BYTES = 1 << 30  # of moments at once; the float model is run anew for the next ones


class SharedMoments:
    """Moments by weight, made when they are asked for.

    Args:
        loaded: the float model, normalized; not changed.
        stages: of the model, in order.
        shared: see shared_weights.
        feeds: complete inputs.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        stages: Sequence[Stage],
        shared: Mapping[str, str],
        feeds: Sequence[Feed],
        *,
        threads: int = 0,
    ) -> None:
        self._loaded, self._feeds, self._threads = loaded, feeds, threads
        uses: dict[str, list[str]] = {}
        self._channels: dict[str, int] = {}
        for stage in stages:
            self._channels[stage.x] = stage.linears[0].k
            for linear in stage.linears:
                if linear.name in shared:
                    uses.setdefault(shared[linear.name], []).append(stage.x)
        # Weights that meet the same activations (q, k and v) have the same moments.
        self._uses = {first: tuple(dict.fromkeys(names)) for first, names in uses.items()}
        self._order = list(dict.fromkeys(self._uses.values()))
        self._known: dict[tuple[tuple[str, ...], bool], SecondMoments] = {}

    def of(self, first: str, rounding: Rounding) -> SecondMoments | None:
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
            self._known[uses, as_float] = SecondMoments.empty(channels)
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
