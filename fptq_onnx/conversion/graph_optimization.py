"""Op variants of attention and norms that run faster than what exporters wrote; in standard ops.

The rewrites are made after calibration and folding, on what is written: linears are found, folded
and compared in the graph that the exporter wrote. Each was checked by running that graph before and
after (graph_optimization_check.py). Why these, and what is left to ONNX Runtime:
docs/decisions/0005.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from fptq_onnx.passes import Declined, Pass, apply, pass_name
from fptq_onnx.passes.optimize.group_heads import group_heads
from fptq_onnx.passes.optimize.hoist_nan_guard import hoist_nan_guard
from fptq_onnx.passes.optimize.merge_key_transpose import merge_key_transpose
from fptq_onnx.passes.optimize.reciprocal_to_div import reciprocal_to_div

# In this order: a transpose must be plain for the heads behind it to be found.
GRAPH_OPTIMIZATION: tuple[Pass, ...] = (
    merge_key_transpose,
    hoist_nan_guard,
    group_heads,
    reciprocal_to_div,
)
ALL = tuple(map(pass_name, GRAPH_OPTIMIZATION))
# What the count of each one counts, for people.
WHAT = {
    "merge_key_transpose": "plain transposes of keys",
    "hoist_nan_guard": "guards after the product",
    "group_heads": "products of grouped heads",
    "reciprocal_to_div": "norms for the optimizer",
}


@dataclass(frozen=True)
class GraphOptimization:
    """What was done.

    counts: by name of the pass, without those that found nothing.
    declined: each place that looked like a match and was left, and why.
    """

    counts: dict[str, int]
    declined: tuple[Declined, ...]

    @property
    def text(self) -> str:
        """For people: '12 guards after the product, 24 products of grouped heads'."""
        return ", ".join(f"{count} {WHAT[name]}" for name, count in self.counts.items())


def optimize_graph(model: ir.Model, names: Collection[str] = ALL) -> GraphOptimization:
    """Rewrite in place.

    Args:
        model: normalized.
        names: the passes to run.

    Raises:
        PassError: see apply.
    """
    done = apply(model, [each for each in GRAPH_OPTIMIZATION if pass_name(each) in names])
    counts = {name: result.changed for name, result in done.results if result.changed}
    return GraphOptimization(counts, done.declined)
