"""A gated MLP behind a norm, with samples, ready to be quantized sequentially."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fptq_onnx.calibration.collect import collect
from fptq_onnx.calibration.feeds import Feeds
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.quantization.sequential import SequentialResult, quantize_sequentially
from fptq_onnx.quantization.task import QuantizationTask
from fptq_onnx.quantization.token_inputs import TokenInputs
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import Plan
from fptq_onnx.scheme.weight_store import WeightStore
from support.gated import FOLDABLE, gated_model
from support.layer_groups import feeds_of, loaded

TEXT = FOLDABLE["biases"].replace("n = Tanh(x)", "n = SimplifiedLayerNormalization(x, c)")


class Setting:
    """A gated MLP behind a norm, with samples."""

    def __init__(self, rng: np.random.Generator, folder: Path, text: str = TEXT) -> None:
        model = gated_model(rng, text)
        gain = ir.Value(name="gain")
        gain.const_value = ir.tensor(np.linspace(0.5, 40, 6, dtype=np.float32), name="gain")
        model.graph.register_initializer(gain)
        next(node for node in model.graph if node.name == "n").replace_input_with(1, gain)
        self.model = model
        self.loaded: LoadedModel = loaded(folder / "model", model)
        self.batches = [
            {"x": rng.standard_normal((tokens, 6)).astype(np.float32)} for tokens in (40, 25)
        ]
        self.scan = find_linears(self.loaded.model)
        self.stats: ActivationStats = collect(self.loaded, Feeds(self.batches), description="x")
        self.folder = folder
        self.runs = 0

    def plan(self, config: Config) -> Plan:
        return choose_schemes(self.scan, self.stats, config)

    def task(self, config: Config, plan: Plan | None = None) -> QuantizationTask:
        """To be decided, or as a given plan says."""
        start = plan or self.plan(config)
        return QuantizationTask(self.loaded, self.scan, start, self.stats, config)

    def solve(
        self,
        config: Config,
        plan: Plan | None = None,
        *,
        as_planned: bool = False,
        try_wider: bool = False,
    ) -> tuple[SequentialResult, WeightStore]:
        self.runs += 1
        store = WeightStore(self.folder / f"weights{self.runs}")
        task = replace(self.task(config, plan), as_planned=as_planned)
        inputs = TokenInputs(task, feeds_of(*self.batches), self.folder / "values", threads=1)
        result = quantize_sequentially(task, inputs, store, try_wider=try_wider)
        assert not list((self.folder / "values").iterdir())
        return result, store
