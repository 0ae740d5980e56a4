"""Activations of the float model and of the one quantized so far, propagated side by side.

At each group both have their activation, and whoever quantizes the group's linears sees what they
really will be fed, and what the float model has there. Every node runs once per sample and stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.calibration.whole_feeds import Feed
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.quantization.activation_cache import Held, ValueStore
from fptq_onnx.quantization.subgraphs import (
    LayerGroup,
    find_layer_groups,
    needed_later,
    segment_model,
)
from fptq_onnx.quantization.value_types import ValueType, is_array
from fptq_onnx.runtime.session import first_line, open_session_in_memory

FLOAT, QUANTIZED = "float", "quantized"
_BOTH = "both"  # values before any linear are the same in both

Rows = NDArray[np.float32]


class PairedActivations:
    """Goes through the layer groups of a model."""

    def __init__(
        self,
        loaded: LoadedModel,
        linears: Sequence[Linear],
        feeds: Sequence[Feed],
        folder: Path,
        *,
        threads: int = 0,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            loaded: the float model, normalized.
            linears: of its graph.
            feeds: complete inputs, one batch each.
            folder: for values that do not fit into memory.
            threads: intra-op threads, 0 lets ONNX Runtime choose.
        """
        self.groups: tuple[LayerGroup, ...] = find_layer_groups(loaded.model.graph, linears)
        self._loaded = loaded
        self._feeds = feeds
        self._store = ValueStore(folder)
        self._threads = threads
        self._needed = needed_later(self.groups) | {group.x for group in self.groups}
        self._types: dict[str, ValueType] = {}

    def enter(self, group: LayerGroup) -> None:
        """Run what lies before a layer group, for both models.

        Raises:
            FptqError: ONNX Runtime cannot run a part of the model.
        """
        segment = group.segment
        if not segment.outputs:
            return
        model = segment_model(self._loaded.model, segment)
        for value in model.graph.inputs:
            name = (value.name or "").removesuffix("__cut")
            if value.name != name and name in self._types:
                self._types[name].tell(value)
        wanted = {value.name for value in model.graph.inputs}
        session = open_session_in_memory(model, self._loaded.data_folder, threads=self._threads)
        for batch, feed in enumerate(self._feeds):
            given = {name: value for name, value in feed.items() if name in wanted}
            for side in (_BOTH,) if segment.common else (FLOAT, QUANTIZED):
                values = dict(given)
                for name in segment.inputs:
                    if f"{name}__cut" in wanted:
                        held = self._get(side, name, batch)
                        if isinstance(held, np.ndarray):
                            held = ort.OrtValue.ortvalue_from_numpy(held)
                        values[f"{name}__cut"] = held
                for name, made in zip(
                    segment.outputs, _run(session, segment.outputs, values), strict=True
                ):
                    self._put(side, name, batch, made)

    def rows(self, group: LayerGroup, side: str) -> Iterator[Rows]:
        """The activation of a layer group, batch by batch, float32 [tokens, K]."""
        k = group.linears[0].k
        for batch in range(len(self._feeds)):
            array = self._array(side, group.x, batch)
            yield np.ascontiguousarray(array, np.float32).reshape(-1, k)

    def leave(self, group: LayerGroup, outputs: Mapping[str, Iterator[tuple[Rows, Rows]]]) -> None:
        """Take the outputs of a layer group's linears and forget what nothing needs any more.

        Args:
            group: the layer group entered last.
            outputs: by name of the linear, per batch its output in the float and in the quantized
                model, float32 [tokens, N].
        """
        for linear in group.linears:
            name = linear.output.name or ""
            dtype = linear.weight.dtype.numpy()
            for batch, pair in enumerate(outputs[linear.name]):
                if name not in self._needed:
                    continue  # still taken: whoever makes them measures errors on the way
                for side, rows in zip((FLOAT, QUANTIZED), pair, strict=True):
                    x = self._array(side, group.x, batch)
                    shaped = rows.reshape(*x.shape[:-1], linear.n).astype(dtype)
                    self._put(side, name, batch, shaped)
        for name in group.segment.last_uses:
            for side in (_BOTH, FLOAT, QUANTIZED):
                self._store.drop(side, name)

    def _put(self, side: str, name: str, batch: int, held: Held) -> None:
        seen = ValueType.of(held)
        self._types[name] = self._types[name].common(seen) if name in self._types else seen
        self._store.put(side, name, batch, held)

    def _array(self, side: str, name: str, batch: int) -> NDArray[np.generic]:
        held = self._get(side, name, batch)
        if not isinstance(held, np.ndarray):
            raise FptqError(f"{name}, the input of a linear, is no tensor of numbers")
        return held

    def _get(self, side: str, name: str, batch: int) -> Held:
        if name in self._feeds[batch]:  # a linear may read an input of the model
            given: NDArray[np.generic] = self._feeds[batch][name].numpy()
            return given
        if (_BOTH, name) in self._store:
            side = _BOTH
        return self._store.get(side, name, batch)


def _run(
    session: ort.InferenceSession, names: Sequence[str], values: Mapping[str, ort.OrtValue]
) -> list[Held]:
    try:
        fetched = session.run_with_ort_values(list(names), dict(values))
        return [value.numpy() if is_array(value) else value for value in fetched]
    except Exception as error:  # onnxruntime raises its own types and bare RuntimeError
        raise FptqError(
            f"ONNX Runtime cannot run a part of the model: {first_line(error)}"
        ) from error
