"""Steps back through attention: from the channels it gives to the heads of values it reads.

Reshape <- Transpose <- Reshape? <- MatMul(probabilities, .) <- repeated heads? <- Concat(past, .)
Reshape <- Transpose <- Attention <- repeated heads? <- Concat(past, .)
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from fptq_onnx.graph.constants import scalar_ints
from fptq_onnx.graph.op_domains import MSFT_DOMAIN, domain_of
from fptq_onnx.graph.walk_back import WalkBack, dimension, input_of, int_of

VALUE, PRESENT = 2, 2  # among the inputs and outputs of the ops
_SWAP_HEADS = [0, 2, 1, 3]


@dataclass(frozen=True)
class AttentionOp:
    """An op that computes attention.

    past: the position of the cached values among its inputs.
    heads: the attribute with the number of query heads.
    unsupported: inputs that would have to be divided, or hold scales of the cache.
    """

    past: int
    heads: str
    unsupported: tuple[int, ...] = ()


ATTENTION_OPS = {
    (MSFT_DOMAIN, "GroupQueryAttention"): AttentionOp(4, "num_heads", (12, 13)),
    (MSFT_DOMAIN, "MultiHeadAttention"): AttentionOp(7, "num_heads", (3,)),
    ("", "Attention"): AttentionOp(5, "q_num_heads"),
}


@dataclass(frozen=True)
class Core:
    """What was stepped over between merged channels and heads of values.

    heads: of queries, where something tells.
    repeats: query heads of each head of values where nodes repeat those; 0 where an op does.
    cache: the cached values, where a node joins them.
    """

    heads: int | None
    repeats: int
    cache: ir.Value | None

    def suits(self, groups: int, heads: int) -> bool:
        """Whether so many heads of values serve so many of queries, in order."""
        if groups == 0 or heads % groups:
            return False
        # A reshape may have merged other than all heads of a token; one head serves any number.
        one = groups == 1 and self.repeats == 1
        return not self.repeats or groups * self.repeats == heads or one


def core_of(walk: WalkBack) -> Core | None:
    """Step from [batch, tokens, heads, size] to the values [batch, heads, tokens, size]."""
    if not swap_heads(walk):
        return None
    heads = None
    node = walk.value.producer()
    if node is not None and (domain_of(node), node.op_type) == ("", "Attention"):
        if not owns_cache(node, ATTENTION_OPS["", "Attention"]) or "q_num_heads" in node.attributes:
            return None
        walk.take("Attention", VALUE)
        repeats = _repeat(walk, merged=False)
        if repeats == 1:
            repeats = 0  # the op itself repeats heads where queries have more
    else:
        split = walk.take("Reshape")  # after a product in three dimensions: batch and heads as one
        if split is not None:
            heads = dimension(split.inputs[1], 1)
        if not walk.take("MatMul", 1):
            return None
        repeats = _repeat(walk, merged=split is not None)
    if repeats is None:
        return None
    joined = walk.value.producer()
    past = joined.inputs[0] if joined is not None and joined.op_type == "Concat" else None
    if past is None or joined is None:
        return Core(heads, repeats, None)
    if int_of(joined, "axis") not in (-2, 2) or not is_cache_input(past):
        return None
    if len(joined.inputs) != 2 or not walk.take("Concat", 1):
        return None
    return Core(heads, repeats, joined.outputs[0])


def merge_channels(walk: WalkBack) -> None:
    """Step over reshapes: heads merge into channels; the order of elements stays."""
    while walk.take("Reshape"):
        pass


def owns_cache(node: ir.Node, op: AttentionOp) -> bool:
    """Whether the op's cache of values is an input and an output of the model, or it has none."""
    if any(input_of(node, index) is not None for index in op.unsupported):
        return False
    past = input_of(node, op.past)
    present = node.outputs[PRESENT] if len(node.outputs) > PRESENT else None
    used = present is not None and (present.uses() or present.is_graph_output())
    if past is None:
        return not used
    return is_cache_input(past) and not (present is not None and present.uses())


def is_cache_input(value: ir.Value) -> bool:
    """Whether a value is an input of the model that one node reads."""
    readers = [use.node for use in value.uses() if use.node.op_type not in ("Shape", "Size")]
    return value.is_graph_input() and len(readers) == 1


def swap_heads(walk: WalkBack) -> bool:
    """Step over the transpose between tokens and heads."""
    node = walk.value.producer()
    perm = node.attributes.get("perm") if node is not None else None
    return (
        perm is not None
        and list(perm.as_ints()) == _SWAP_HEADS
        and walk.take("Transpose") is not None
    )


def _repeat(walk: WalkBack, *, merged: bool) -> int | None:
    """How often heads are repeated; None where the nodes do something else."""
    if not walk.take("Reshape"):
        return None if merged else 1
    expand = walk.take("Expand")
    if expand is None:
        # Only batch and heads become one, undone by the reshape after the product.
        return 1 if merged else None
    node = walk.take("Unsqueeze")
    if node is None or scalar_ints(input_of(node, 1)) != [2]:
        return None
    sizes = input_of(expand, 1)
    maker = None if sizes is None else sizes.producer()
    while maker is not None and maker.op_type in ("Where", "Reshape"):
        # TorchScript asks whether any of the sizes is -1, and takes 1 for those.
        sizes = input_of(maker, 2 if maker.op_type == "Where" else 0)
        maker = None if sizes is None else sizes.producer()
    count = dimension(sizes, 2)
    return count if count is not None and count > 0 else None
