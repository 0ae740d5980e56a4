"""For each stage of a model: where its input's equalization can be folded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.calibration.segments import Stage
from fptq_onnx.calibration.whole_feeds import Feed
from fptq_onnx.decoder_io import is_cache_name
from fptq_onnx.graph.column_sites import ColumnSite, find_column_sites
from fptq_onnx.graph.fold_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears import Linear
from fptq_onnx.graph.shared_weights import decline_fixed, fixed_column_site
from fptq_onnx.passes.choose_schemes import fold_overflow


@dataclass(frozen=True)
class StageSite:
    """What takes the divisors of a stage's input.

    name: of the norm, or of the linear whose columns take them.
    norm: the norm; None for a linear.
    source: the linear; None for a norm.
    columns: which of its columns; None for a norm.
    """

    name: str
    norm: FoldSite | None
    source: Linear | None = None
    columns: ColumnSite | None = None

    def overflow(self, divisor: NDArray[np.float32]) -> str:
        """Why a gain, or a column or bias, divided by s does not fit its type; or ''."""
        if self.norm is not None:
            return fold_overflow(self.norm, divisor)
        assert self.source is not None and self.columns is not None
        divisor = self.columns.divisors(divisor)
        for constant in (self.source.weight, self.source.bias):
            if constant is None or constant.dtype != ir.DataType.FLOAT16:
                continue  # the others reach as far as float32
            largest = np.abs(constant.load().astype(np.float32)).reshape(-1, len(divisor)).max(0)
            with np.errstate(over="ignore"):
                divided = (largest / divisor).astype(np.float16)
            if not np.isfinite(divided).all():
                return f"{constant.name} divided by s overflows {constant.dtype.name}"
        return ""


def stage_sites(
    stages: Sequence[Stage], linears: Sequence[Linear], fixed: Mapping[str, str] | None = None
) -> Mapping[str, StageSite | str]:
    """By the name of a stage's activation, its site or the reason there is none.

    A site all of whose readers are not one stage (they read casts of the value) is left alone, and
    one that would change a weight in `fixed` (shared_weights.py).
    """
    fixed = fixed or {}
    norms = decline_fixed(find_fold_sites(linears), fixed)
    columns = find_column_sites(linears)
    by_name = {linear.name: linear for linear in linears}
    found: dict[str, StageSite | str] = {}
    for stage in stages:
        name = stage.linears[0].name
        norm = norms[name]
        readers = {linear.name for linear in stage.linears}
        if isinstance(norm, FoldSite):
            whole = set(norm.linears) == readers
            found[stage.x] = StageSite(norm.name, norm) if whole else _SEVERAL
        elif name in columns:
            whole = set(columns[name].linears) == readers
            source = by_name[columns[name].name]
            site = StageSite(source.name, None, source, columns[name])
            stays = fixed_column_site(columns[name], fixed)
            found[stage.x] = (stays or site) if whole else _SEVERAL
        else:
            found[stage.x] = norm
    return found


def without_cached_values(
    sites: Mapping[str, StageSite | str], feeds: Iterable[Feed]
) -> Mapping[str, StageSite | str]:
    """The sites, but none through attention where samples bring a cache of their own.

    Such a cache was made by another model, and holds values without this one's divisors.
    """
    brought = any(
        is_cache_name(name) and len(value.shape()) == 4 and 0 not in value.shape()
        for feed in feeds for name, value in feed.items()
    )  # fmt: skip
    if not brought:
        return sites
    return {
        x: _CACHED
        if isinstance(site, StageSite) and site.columns is not None
        and site.columns.through_attention
        else site
        for x, site in sites.items()
    }  # fmt: skip


_SEVERAL = "other linears read the same value through casts"
_CACHED = "the samples bring cached values, which a fold would have to divide"
