"""Values whose rows the model itself picks: the tokens that a router sends to an expert.

    Gather(hidden, NonZero(OneHot(TopK(router(hidden)))))      one expert's tokens
    ScatterND(zeros, tokens, expert(..))                       back to all of them

Once linears before the router are quantized other tokens may be picked, so that row 3 of the
float model and row 3 of the quantized one need not be the same token.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.graph.node_reads import node_reads
from fptq_onnx.graph.op_domains import domain_of

# Operand 1 says which rows of operand 0.
_PICKS = ("Gather", "GatherND", "GatherElements", "Compress", "ArrayFeatureExtractor")
# The rows are those of operand 0, whatever is written into some of them.
_PUTS_BACK = ("ScatterND", "ScatterElements", "Scatter", "TensorScatter")
_GIVE_SIZES = ("Shape", "Size")


def routed_values(graph: ir.Graph, linears: Sequence[Linear]) -> set[int]:
    """The ids of all values with rows picked by what linears computed.

    Args:
        graph: the main graph, topologically sorted.
        linears: of that graph.
    """
    ends = {id(linear.output) for linear in linears} | {
        id(linear.nodes[0].outputs[0]) for linear in linears
    }
    computed: set[int] = set()  # by a linear, or from what one computed; not how large that is
    routed: set[int] = set()
    for node in graph:
        reads = [id(value) for value in node_reads(node)]
        operands = [id(value) for value in node.inputs]
        kind = node.op_type if domain_of(node) == "" else ""
        if kind in _GIVE_SIZES:
            is_computed = is_routed = operands[0] in routed
        else:
            is_computed = any(read in computed for read in reads)
            is_routed = any(read in routed for read in reads)
            if kind in _PICKS:
                is_routed = operands[1] in computed or operands[0] in routed
            elif kind in _PUTS_BACK:
                is_routed = operands[0] in routed
        for value in node.outputs:
            if is_computed or id(value) in ends:
                computed.add(id(value))
            if is_routed:
                routed.add(id(value))
    return routed
