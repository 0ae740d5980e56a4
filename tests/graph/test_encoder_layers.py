"""An encoder's layers are numbered before those of its decoder."""

from __future__ import annotations

import pytest
from support.blocks import add, blocks_model, norm, plain
from support.blocks import attention as attend

from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.graph.linears.roles import find_blocks


@pytest.mark.parametrize("encoders", [1, 2, 3])
def test_an_encoder_and_its_decoder_share_no_layer(rng, encoders):
    """As in BART: the decoder's first layer does not depend on the encoder, nor the other way."""
    text, z = "", "z"
    for i in range(encoders):
        at = f"l{i}"
        text += attend(z, at) + add(z, f"{at}_o", f"{at}x1")
        text += plain(f"{at}x1", at) + add(f"{at}x1", f"{at}_fc2", f"{at}x2")
        z = f"{at}x2"
    x = "x"
    for i in range(encoders, encoders + 2):
        at = f"l{i}"
        text += attend(x, at) + add(x, f"{at}_o", f"{at}x1")
        text += attend(f"{at}x1", f"{at}c", z) + add(f"{at}x1", f"{at}c_o", f"{at}x2")
        text += plain(f"{at}x2", at) + add(f"{at}x2", f"{at}_fc2", f"{at}x3")
        x = f"{at}x3"
    found = find_blocks(find_linears(blocks_model(rng, text + norm(x, "y"), "y")).linears)
    assert {name: block.layer for name, block in found.items()} == {
        name: int(name[1]) for name in found
    }
    assert len(found) == 6 * encoders + 10 * 2
