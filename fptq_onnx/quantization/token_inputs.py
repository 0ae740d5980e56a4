"""The inputs of layer groups by the tokens that reach them, in both models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fptq_onnx.calibration.whole_feeds import Feed
from fptq_onnx.graph.linears.shared_weights import fixed_weights
from fptq_onnx.passes.choose_schemes import range_of
from fptq_onnx.quantization.fold_targets import fold_targets, without_cached_values
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.quantization.layer_group import LayerGroupInputs
from fptq_onnx.quantization.moe_notes import RoutingNotes
from fptq_onnx.quantization.paired_activations import PairedActivations
from fptq_onnx.quantization.shared_rounding import SharedHessian, SharedRounding
from fptq_onnx.quantization.subgraphs import LayerGroup
from fptq_onnx.quantization.task import QuantizationTask
from fptq_onnx.quantization.weight_rounding import float_weight


class TokenInputs:
    """The layer groups of a model that runs group by group; see ModelInputs."""

    def __init__(
        self, task: QuantizationTask, feeds: Sequence[Feed], folder: Path, *, threads: int = 0
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            task: what is quantized.
            feeds: complete inputs, one batch each.
            folder: for intermediate values that do not fit into memory.
            threads: intra-op threads, 0 lets ONNX Runtime choose.
        """
        scan = task.scan
        self._activations = PairedActivations(
            task.loaded, scan.linears, feeds, folder, threads=threads
        )
        self.groups = self._activations.groups
        fixed = fixed_weights(scan, quantize=task.config.quantize)
        targets = fold_targets(self.groups, scan.linears, fixed)
        self._targets = without_cached_values(targets, feeds)
        hessian = SharedHessian(task.loaded, self.groups, scan.shared, feeds, threads=threads)
        self.shared = SharedRounding(scan.shared, task.config.weight_method, hessian)
        self._task, self._routing = task, RoutingNotes()
        self._errors: dict[str, LinearErrors] = {}

    def enter(self, group: LayerGroup) -> LayerGroupInputs:
        """Run both models up to a layer group.

        Raises:
            FptqError: a weight or an activation holds NaN or infinity, the model cannot be run, or
                the statistics do not fit it.
        """
        self._activations.enter(group)
        weights = [float_weight(linear) for linear in group.linears]
        ranges = range_of(group.linears[0], self._task.stats)
        inputs = LayerGroupInputs(group, self._activations, weights, ranges, self._targets[group.x])
        self._routing.add(inputs)
        self._errors.update(inputs.errors)
        return inputs

    def errors(self) -> tuple[LinearErrors, ...]:
        """Of every linear, in graph order."""
        return tuple(self._errors[linear.name] for linear in self._task.scan.linears)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of routers and shared weights, one sentence each."""
        return (*self._routing.sentences, *self.shared.sentences)
