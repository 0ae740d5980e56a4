"""Export with torch.onnx (dynamo): any decoder of transformers that torch.export can follow."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from fptq_onnx.model_io.save import DATA_FILE, MODEL_FILE

_OPSET = 20
_BATCH, _NEW, _PAST = 2, 4, 3  # sizes of the example; any that are no 0 or 1, and all different


def export_with_dynamo(model: Any, folder: Path, *, opset: int = _OPSET) -> None:
    """Write model.onnx and model.onnx.data.

    Inputs are named as optimum-onnx does: input_ids, attention_mask, position_ids where the model
    takes them, past_key_values.N.key and .value; outputs logits, present.N.key and .value.

    Args:
        model: a causal language model of transformers, in float32.
        folder: exists.
        opset: 18 or newer; from 23 on, torch writes attention, rotary and RMS norms as single ops.
    """
    import torch
    from transformers import DynamicCache

    class WithCache(torch.nn.Module):  # type: ignore[misc]  # torch is not looked at
        """The model with its cache as plain tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: dict[str, Any], past: list[tuple[Any, Any]]) -> Any:
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(past):
                cache.update(keys, values, layer)
            done = self.model(**tokens, past_key_values=cache, use_cache=True)
            return done.logits, [(layer.keys, layer.values) for layer in cache.layers]

    with torch.no_grad():
        first = model(torch.ones(_BATCH, _PAST, dtype=torch.int64), use_cache=True)
    past = [(layer.keys.clone(), layer.values.clone()) for layer in first.past_key_values.layers]
    tokens = {
        "input_ids": torch.ones(_BATCH, _NEW, dtype=torch.int64),
        "attention_mask": torch.ones(_BATCH, _PAST + _NEW, dtype=torch.int64),
    }
    sizes = {
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "total_sequence"},
    }
    if "position_ids" in inspect.signature(model.forward).parameters:
        tokens["position_ids"] = torch.arange(_PAST, _PAST + _NEW).repeat(_BATCH, 1)
        sizes["position_ids"] = {0: "batch", 1: "sequence"}
    parts = [f"{layer}.{part}" for layer in range(len(past)) for part in ("key", "value")]
    program = torch.onnx.export(
        WithCache().eval(),
        (tokens, past),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=(sizes, [({0: "batch", 2: "past_sequence"},) * 2 for _ in past]),
        input_names=[*tokens, *(f"past_key_values.{part}" for part in parts)],
        output_names=["logits", *(f"present.{part}" for part in parts)],
        verbose=False,
    )
    assert program is not None  # only the old exporter returns nothing
    program.save(str(folder / MODEL_FILE), external_data=True)
    assert (folder / DATA_FILE).is_file()
