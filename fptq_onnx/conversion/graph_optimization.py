"""Op variants of attention and norms that run faster than what exporters wrote; in standard ops.

The rewrites are made after calibration and folding, on what is written: linears are found, folded
and compared in the graph that the exporter wrote. Each was checked by running that graph before and
after (graph_optimization_check.py). Why these, and what is left to ONNX Runtime:
docs/decisions/0005.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import onnx_ir as ir

from fptq_onnx.passes.group_heads import group_heads
from fptq_onnx.passes.hoist_nan_guard import hoist_nan_guard
from fptq_onnx.passes.merge_key_transpose import merge_key_transpose
from fptq_onnx.passes.reciprocal_to_div import reciprocal_to_div


@dataclass(frozen=True)
class Rewrite:
    """One pass of graph optimization.

    name: for reports.
    what: what its count counts, for people.
    apply: rewrites a model in place; how many places, and why not others that looked like one.
    """

    name: str
    what: str
    apply: Callable[[ir.Model], tuple[int, tuple[str, ...]]]


# In this order: a transpose must be plain for the heads behind it to be found.
REWRITES = (
    Rewrite("merge_key_transpose", "plain transposes of keys", merge_key_transpose),
    Rewrite("hoist_nan_guard", "guards after the product", hoist_nan_guard),
    Rewrite("group_heads", "products of grouped heads", group_heads),
    Rewrite("reciprocal_to_div", "norms for the optimizer", reciprocal_to_div),
)
ALL = tuple(rewrite.name for rewrite in REWRITES)


@dataclass(frozen=True)
class GraphOptimization:
    """What was done.

    counts: by name of the rewrite, without those that found nothing.
    declined: of each place that looked like one and was left, why.
    """

    counts: dict[str, int]
    declined: tuple[str, ...]

    @property
    def text(self) -> str:
        """For people: '12 guards after the product, 24 products of grouped heads'."""
        return ", ".join(
            f"{self.counts[rewrite.name]} {rewrite.what}"
            for rewrite in REWRITES
            if rewrite.name in self.counts
        )


def optimize_graph(model: ir.Model, names: Collection[str] = ALL) -> GraphOptimization:
    """Rewrite in place.

    Args:
        model: normalized.
        names: the rewrites to make.
    """
    counts: dict[str, int] = {}
    declined: list[str] = []
    for rewrite in REWRITES:
        if rewrite.name not in names:
            continue
        count, reasons = rewrite.apply(model)
        declined += reasons
        if count:
            counts[rewrite.name] = count
    return GraphOptimization(counts, tuple(declined))
