"""Models in files, made ready to be quantized: loaded, fed, and both models run to their end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from fptq_onnx.calibration.whole_feeds import Feed
from fptq_onnx.graph.linears.linears import Linear, find_linears
from fptq_onnx.model_io.load import LoadedModel, load_model
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.quantization.paired_activations import FLOAT, QUANTIZED, PairedActivations
from fptq_onnx.quantization.subgraphs import LayerGroup
from support.saved_models import saved

Rows = NDArray[np.float32]


def loaded(folder: Path, model: ir.Model) -> LoadedModel:
    """The model written with outside weights, read back and normalized."""
    found = load_model(saved(folder, model))
    normalize(found.model)
    return found


def feeds_of(*batches: Mapping[str, NDArray[np.generic]]) -> list[Feed]:
    """Arrays as ONNX Runtime's values."""
    return [
        {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in batch.items()}
        for batch in batches
    ]


def tapped(
    model: ir.Model, names: Sequence[str], dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Model:
    """A clone that gives out inner values."""
    clone = model.clone()
    values = {value.name: value for node in clone.graph for value in node.outputs}
    for name in names:
        if name in values and not values[name].is_graph_output():
            values[name].dtype = dtype
            clone.graph.outputs.append(values[name])
    return clone


def float_output(linear: Linear, x: Rows) -> Rows:
    """What the linear computes."""
    bias = 0 if linear.bias is None else linear.bias.load().astype(np.float32)
    return x @ linear.weight.load().astype(np.float32) + bias


def pairs(
    activations: PairedActivations, group: LayerGroup, linear: Linear, noise: float
) -> Iterator[tuple[Rows, Rows]]:
    """Outputs in both models; the quantized one off by a constant."""
    for x, x8 in zip(
        activations.rows(group, FLOAT), activations.rows(group, QUANTIZED), strict=True
    ):
        yield float_output(linear, x), float_output(linear, x8) + np.float32(noise)


def propagated(
    model: LoadedModel, feeds: list[Feed], folder: Path, *, noise: float = 0.0
) -> dict[str, list[list[Rows]]]:
    """By activation: per model, per batch what the group saw; linears err by `noise`."""
    activations = PairedActivations(
        model, find_linears(model.model).linears, feeds, folder, threads=1
    )
    seen = {}
    for group in activations.groups:
        activations.enter(group)
        seen[group.x] = [
            [rows.copy() for rows in activations.rows(group, name)] for name in (FLOAT, QUANTIZED)
        ]
        activations.leave(
            group,
            {linear.name: pairs(activations, group, linear, noise) for linear in group.linears},
        )
    return seen
