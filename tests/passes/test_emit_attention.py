"""Which attention operators become ours, and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.quantized import quantized
from support.tiny_graphs import build, run, weight

from fptq_onnx.passes import PassResult
from fptq_onnx.passes.emit_attention import emit_attention
from fptq_onnx.passes.emit_custom import emit_custom
from fptq_onnx.passes.make_portable import make_portable

SIZES = "num_heads = 4, kv_num_heads = 2"


def decoder(
    attributes: str = SIZES,
    *,
    more_inputs: str = "",
    kind: str = "float",
    outputs: str = "core, present_k, present_v",
    past: str = "past_k, past_v",
) -> ir.Model:
    return build(
        f"""g ({kind}[b, s, 32] q, {kind}[b, s, 16] k, {kind}[b, s, 16] v,
             {kind}[b, 2, p, 8] past_k, {kind}[b, 2, p, 8] past_v, int32[b] lengths, int32 total,
             float[2, 4, s, t] bias)
          => ({kind}[b, s, 32] core, {kind}[b, 2, t, 8] present_k, {kind}[b, 2, t, 8] present_v) {{
          {outputs} = com.microsoft.GroupQueryAttention <{attributes}>
            (q, k, v, {past}, lengths, total{more_inputs})
        }}""",
        microsoft=True,
    )


def feed(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "q": weight(rng, 1, 3, 32), "k": weight(rng, 1, 3, 16), "v": weight(rng, 1, 3, 16),
        "past_k": weight(rng, 1, 2, 5, 8), "past_v": weight(rng, 1, 2, 5, 8),
        "lengths": np.array([7], np.int32), "total": np.array(8, np.int32),
    }  # fmt: skip


@pytest.mark.parametrize(
    "attributes",
    [
        SIZES,
        f"{SIZES}, scale = 0.25",
        f"{SIZES}, local_window_size = -1, softcap = 0.0, smooth_softmax = 0, do_rotary = 0",
    ],
)
def test_taken(attributes: str) -> None:
    model = decoder(attributes)
    assert emit_attention(model) == PassResult(1)
    (node,) = model.graph
    assert node.domain == "fptq" and model.opset_imports["fptq"] == 1
    assert set(node.attributes) - {"scale"} == {
        "num_heads", "kv_num_heads", "do_rotary", "rotary_interleaved",
    }  # fmt: skip


@pytest.mark.parametrize(
    "model, reason",
    [
        (lambda: decoder(f"{SIZES}, local_window_size = 4"), "no local_window_size 4"),
        (lambda: decoder(f"{SIZES}, softcap = 30.0"), "no softcap 30.0"),
        (lambda: decoder(f"{SIZES}, smooth_softmax = 1"), "no smooth_softmax 1"),
        (lambda: decoder(f"{SIZES}, next_year = 1"), "no next_year 1"),
        (lambda: decoder(more_inputs=", , , , bias"), "inputs the library does not know"),
        (lambda: decoder(f"{SIZES}, do_rotary = 1"), "rotary tables are missing"),
        (lambda: decoder(kind="float16"), "float32"),
        (lambda: decoder(outputs="core"), "1 outputs"),
    ],
)
def test_left_to_onnxruntime(model, reason: str) -> None:
    left = model()
    before = ir.to_proto(left).SerializeToString()
    result = emit_attention(left)
    (why,) = result.declined
    assert result.changed == 0 and reason in why.reason and why.what == "core"
    assert ir.to_proto(left).SerializeToString() == before


def test_same_numbers(rng: np.random.Generator) -> None:
    # ONNX Runtime wants head sizes of a multiple of 8; ours has no such wish.
    model = decoder(f"{SIZES}, scale = 0.25")
    from fptq_onnx.numerics.attention import causal_attention

    emit_attention(model)
    x = feed(rng)
    got = run(model, {name: x[name] for name in x} | {"bias": np.zeros((2, 4, 1, 1), np.float32)})
    keys, values = (
        np.concatenate([x[f"past_{n}"][0], np.swapaxes(x[n].reshape(3, 2, 8), 0, 1)], axis=1)
        for n in ("k", "v")
    )
    wanted = causal_attention(
        x["q"].reshape(3, 4, 8), *(np.swapaxes(a, 0, 1) for a in (keys, values)),
        scale=0.25, seen=6,
    )  # fmt: skip
    np.testing.assert_allclose(got["core"][0], wanted.reshape(3, 32), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(got["present_k"][0], keys)
    np.testing.assert_array_equal(got["present_v"][0], values)


def test_back_to_the_stock_operator(rng: np.random.Generator, tmp_path: Path) -> None:
    body = """g (float[b, s, 32] x, float[b, 2, p, 16] past_k, float[b, 2, p, 16] past_v,
             int32[b] lengths, int32 total)
          => (float[b, s, 64] core, float[b, 2, t, 16] present_k, float[b, 2, t, 16] present_v) {
          q = MatMul(x, Wq)
          k = MatMul(x, Wk)
          v = MatMul(x, Wv)
          core, present_k, present_v = com.microsoft.GroupQueryAttention
            <num_heads = 4, kv_num_heads = 2> (q, k, v, past_k, past_v, lengths, total)
        }"""
    weights = {
        "Wq": weight(rng, 32, 64), "Wk": weight(rng, 32, 32), "Wv": weight(rng, 32, 32),
    }  # fmt: skip
    model = quantized(build(body, weights, microsoft=True), tmp_path).emitted(emit_custom)
    assert emit_attention(model) == PassResult(1)
    make_portable(model)
    assert "fptq" not in model.opset_imports
    domains = {node.op_type: node.domain for node in model.graph}
    assert domains == {"MatMulNBits": "com.microsoft", "GroupQueryAttention": "com.microsoft"}
    x = {
        "x": weight(rng, 1, 3, 32), "past_k": weight(rng, 1, 2, 5, 16),
        "past_v": weight(rng, 1, 2, 5, 16), "lengths": np.array([7], np.int32),
        "total": np.array(8, np.int32),
    }  # fmt: skip
    assert run(model, x)["core"].shape == (1, 3, 64)  # ONNX Runtime loads and runs it


def test_ranks_go_on_through_ours(rng: np.random.Generator) -> None:
    """The stock operator tells its output's; a Scan behind ours does not run without."""
    body = "body (hi, ci) => (ho, yo) { hd = Mul(hi, ci) ho = Tanh(hd) yo = Identity(ho) }"
    model = build(
        f"""g (float[b, s, 32] q, float[b, s, 16] k, float[b, s, 16] v, float[b, 2, p, 8] past_k,
             float[b, 2, p, 8] past_v, int32[b] lengths, int32 total) => (float[b, s, 32] y) {{
          core, present_k, present_v = com.microsoft.GroupQueryAttention <{SIZES}>
            (q, k, v, past_k, past_v, lengths, total)
          first = Gather<axis = 1>(core, zero)
          h, y = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            body = {body}>(first, core) }}""",
        {"zero": np.array(0, np.int64)},
        microsoft=True,
    )
    feeds = feed(rng)
    before = run(model, feeds)["y"]
    assert emit_attention(model) == PassResult(1)
    np.testing.assert_allclose(run(model, feeds)["y"], before, rtol=1e-4, atol=1e-5)
