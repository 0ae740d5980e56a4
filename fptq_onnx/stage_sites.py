"""For each stage of a model: where its input's equalization can be folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fptq_onnx.calibration.segments import Stage
from fptq_onnx.graph.column_sites import find_column_sites
from fptq_onnx.graph.fold_sites import FoldSite, find_fold_sites
from fptq_onnx.graph.linears import Linear


@dataclass(frozen=True)
class StageSite:
    """What takes the divisors of a stage's input.

    name: of the norm, or of the linear whose columns take them.
    norm: the norm; None for a linear.
    """

    name: str
    norm: FoldSite | None


def stage_sites(
    stages: Sequence[Stage], linears: Sequence[Linear]
) -> Mapping[str, StageSite | str]:
    """By the name of a stage's activation, its site or the reason there is none.

    A site all of whose readers are not one stage (they read casts of the value) is left alone.
    """
    norms = find_fold_sites(linears)
    columns = find_column_sites(linears)
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
            found[stage.x] = StageSite(columns[name].name, None) if whole else _SEVERAL
        else:
            found[stage.x] = norm
    return found


_SEVERAL = "other linears read the same value through casts"
