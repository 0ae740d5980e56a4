"""Attention that holds the weights of q, k and v: no linear before it is one of them."""

from __future__ import annotations

import pytest
from support.blocks import HEAD, add, blocks_model, norm, plain

from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.graph.linears.roles import Block, find_blocks


@pytest.mark.parametrize("normed", ["before", "after"])
def test_attention_that_holds_its_weights(rng, normed):
    """An op with q, k and v inside reads the residual stream: what it reads is none of the three.

    Rotating inside keeps it closed.
    """
    text, x = "", "x"
    for at in ("l0", "l1"):
        read = f"{at}r" if normed == "before" else x
        text += norm(x, read) if normed == "before" else ""
        text += f" {at}_a = com.microsoft.Attention<num_heads = 1, do_rotary = 1>"
        text += f"({read}, {at}_W3, {at}_b3) {at}_o = MatMul({at}_a, {at}_Wo)"
        text += add(x, f"{at}_o", f"{at}s") + norm(f"{at}s", f"{at}n") + plain(f"{at}n", at)
        stream = f"{at}s" if normed == "before" else f"{at}n"
        text += add(stream, f"{at}_fc2", f"{at}t") + norm(f"{at}t", f"{at}y")
        x = f"{at}t" if normed == "before" else f"{at}y"
    linears = find_linears(blocks_model(rng, text + f" y = Identity({x})" + HEAD)).linears
    found = {linear.output.name: find_blocks(linears)[linear.name] for linear in linears}
    layers = {f"l{i}_{role}": Block(role, i) for i in (0, 1) for role in ("o", "fc1", "fc2")}
    assert found == layers | {"head": Block("head", None)}
