"""For each layer group of a model: where its input's equalization can be folded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.calibration.whole_feeds import Feed
from fptq_onnx.graph.declined import Declined
from fptq_onnx.graph.folding.linear_sites import LinearSite, find_linear_sites
from fptq_onnx.graph.folding.norm_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.graph.linears.shared_weights import decline_fixed, fixed_column_site
from fptq_onnx.passes.choose_schemes import fold_overflow
from fptq_onnx.quantization.subgraphs import LayerGroup
from fptq_onnx.runtime.decoder_io import is_cache_name


@dataclass(frozen=True)
class FoldTarget:
    """What takes the smoothing scales of a layer group's input.

    name: of the norm, or of the linear whose columns take them.
    norm: the norm; None for a linear.
    source: the linear; None for a norm.
    columns: which of its columns; None for a norm.
    no_norm: why it is no norm, for what folds into norms only; "" for a norm.
    """

    name: str
    norm: FoldSite | None
    source: Linear | None = None
    columns: LinearSite | None = None
    no_norm: str = ""

    @property
    def in_attention(self) -> bool:
        """Whether the scales reach the group's input through the values of an attention."""
        return self.columns is not None and self.columns.through_attention

    def overflow(self, smoothing: NDArray[np.float32]) -> str:
        """Why a gain, or a column or bias, divided by s does not fit its type; or ''."""
        if self.norm is not None:
            return fold_overflow(self.norm, smoothing)
        assert self.source is not None and self.columns is not None
        smoothing = self.columns.smoothing_scales(smoothing)
        for constant in (self.source.weight, self.source.bias):
            if constant is None or constant.dtype != ir.DataType.FLOAT16:
                continue  # the others reach as far as float32
            largest = np.abs(constant.load().astype(np.float32)).reshape(-1, len(smoothing)).max(0)
            with np.errstate(over="ignore"):
                divided = (largest / smoothing).astype(np.float16)
            if not np.isfinite(divided).all():
                return f"{constant.name} divided by s overflows {constant.dtype.name}"
        return ""


def fold_targets(
    groups: Sequence[LayerGroup],
    linears: Sequence[Linear],
    fixed: Mapping[str, str] | None = None,
    *,
    across_groups: bool = False,
) -> Mapping[str, FoldTarget | Declined]:
    """By the name of a layer group's activation, what takes its scales or why nothing can.

    Args:
        groups: of the model.
        linears: of its graph.
        fixed: by name of each linear whose weight has to stay, why (shared_weights.py).
        across_groups: also give norms whose readers are several groups (they read casts or
            reshapes of the value), for scales that depend on the norm's own output alone.
    """
    fixed = fixed or {}
    norms = decline_fixed(find_fold_sites(linears), fixed)
    columns = find_linear_sites(linears)
    by_name = {linear.name: linear for linear in linears}
    found: dict[str, FoldTarget | Declined] = {}
    for group in groups:
        name = group.linears[0].name
        norm = norms[name]
        readers = {linear.name for linear in group.linears}
        if isinstance(norm, FoldSite):
            whole = across_groups or set(norm.linears) == readers
            found[group.x] = FoldTarget(norm.name, norm) if whole else Declined(group.x, _SEVERAL)
        elif name in columns:
            whole = set(columns[name].linears) == readers
            source = by_name[columns[name].name]
            reason = fixed_column_site(columns[name], fixed) if whole else _SEVERAL
            found[group.x] = (
                Declined(group.x, reason)
                if reason
                else FoldTarget(source.name, None, source, columns[name], norm)
            )
        else:
            found[group.x] = Declined(group.x, norm)
    return found


def without_cached_values(
    targets: Mapping[str, FoldTarget | Declined], feeds: Iterable[Feed]
) -> Mapping[str, FoldTarget | Declined]:
    """The targets, but none through attention where samples bring a cache of their own.

    Such a cache was made by another model, and holds values without this one's smoothing scales.
    """
    brought = any(
        is_cache_name(name) and len(value.shape()) == 4 and 0 not in value.shape()
        for feed in feeds for name, value in feed.items()
    )  # fmt: skip
    if not brought:
        return targets
    return {
        x: Declined(x, _CACHED)
        if isinstance(target, FoldTarget) and target.in_attention
        else target
        for x, target in targets.items()
    }


_SEVERAL = "other linears read the same value through casts"
_CACHED = "the samples bring cached values, which a fold would have to divide"
