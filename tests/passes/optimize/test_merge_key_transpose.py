"""Keys transposed by three nodes are transposed by one: the same elements."""

from __future__ import annotations

import numpy as np
import pytest
from support.exported_attention import ATTENTION, KEYS_TURNED, KEYS_TURNED_FLAT, attention, feeds
from support.tiny_graphs import op_counts, run

from fptq_onnx.passes import PassResult
from fptq_onnx.passes.optimize.group_heads import group_heads
from fptq_onnx.passes.optimize.merge_key_transpose import merge_key_transpose

FLAT = ATTENTION.replace(KEYS_TURNED, KEYS_TURNED_FLAT)


@pytest.mark.parametrize("past", [0, 5])
def test_the_same_elements(rng: np.random.Generator, past: int) -> None:
    model, inputs = attention(FLAT, outputs="float y, float kt"), feeds(rng, past=past)
    before = run(model, inputs)
    assert merge_key_transpose(model) == PassResult(1)
    after = run(model, inputs)
    for name in ("kt", "y"):
        np.testing.assert_array_equal(after[name], before[name])
    assert "Slice" not in op_counts(model)


def test_heads_are_found_behind_it(rng: np.random.Generator) -> None:
    model, inputs = attention(FLAT), feeds(rng)
    before = run(model, inputs)["y"]
    assert group_heads(attention(FLAT)).changed == 1
    merge_key_transpose(model)
    assert group_heads(model) == PassResult(2)
    np.testing.assert_allclose(run(model, inputs)["y"], before, rtol=0, atol=2e-6)


def test_what_mixes_heads_is_left_with_a_reason() -> None:
    """[b h, d, t] taken for [b, t, h, d]: no transpose of each head."""
    text = FLAT.replace("ko = Concat<axis = 0>(kb, kd, kl)", "ko = Concat<axis = 0>(kb, kl, kd)")
    text = text.replace("kt = Reshape(kg, ko)", "kx = Reshape(kg, ko) kt = Transpose<perm ="
                        " [0, 1, 3, 2]>(kx)")  # fmt: skip
    result = merge_key_transpose(attention(text))
    assert result.changed == 0
    (said,) = result.declined
    assert str(said).startswith("kx: keys are transposed by three nodes")
