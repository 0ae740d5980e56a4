"""Which KV caches become int8, in ONNX Runtime's attention and in ours, and the way back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.tiny_graphs import build, run, weight

from fptq_onnx.conversion.int8_kv_cache import check_cache
from fptq_onnx.errors import FptqError
from fptq_onnx.passes import PassResult
from fptq_onnx.passes.emit_attention import emit_attention
from fptq_onnx.passes.quantize_cache import find_caches, quantize_cache, stock_attention

SIZES = "num_heads = 4, kv_num_heads = 2"


def decoder(
    attributes: str = SIZES,
    *,
    more: str = "",
    rest: str = "",
    outputs: str = "present_k, present_v",
    also: str = "",
) -> ir.Model:
    return build(
        f"""g (float[b, s, 32] q, float[b, s, 16] k, float[b, s, 16] v,
             float[b, 2, p, 8] past_k, float[b, 2, p, 8] past_v, int32[b] lengths, int32 total)
          => (float[b, s, 32] core, float[b, 2, t, 8] present_k, float[b, 2, t, 8] present_v
              {also}) {{
          {more}
          core, {outputs} = com.microsoft.GroupQueryAttention <{attributes}>
            (q, k, v, past_k, past_v, lengths, total)
          {rest}
        }}""",
        microsoft=True,
    )


def feed(rng: np.random.Generator, model: ir.Model) -> dict[str, np.ndarray]:
    return {
        "q": weight(rng, 1, 3, 32), "k": weight(rng, 1, 3, 16), "v": weight(rng, 1, 3, 16),
        "past_k": np.zeros((1, 2, 0, 8), model.graph.inputs[3].dtype.numpy()),
        "past_v": np.zeros((1, 2, 0, 8), model.graph.inputs[4].dtype.numpy()),
        "lengths": np.array([2], np.int32), "total": np.array(3, np.int32),
    }  # fmt: skip


def quantized(model: ir.Model, given: dict[str, np.ndarray]) -> ir.Model:
    nodes, declined = find_caches(model)
    assert len(nodes) == 1 and not declined
    absmax = {
        name: np.abs(given[kind].reshape(3, 2, 8)).max(axis=0)
        for name, kind in (("present_k", "k"), ("present_v", "v"))
    }
    assert quantize_cache(model, absmax) == PassResult(1)
    return model


@pytest.mark.parametrize("ours", [False, True])
def test_close_to_floats(rng: np.random.Generator, ours: bool) -> None:
    plain, model = decoder(), decoder()
    if ours:
        assert emit_attention(model).changed == 1
    given = feed(rng, plain)
    wanted = run(plain, given)
    quantized(model, given)
    got = run(model, feed(np.random.default_rng(0), model) | {k: given[k] for k in "qkv"})
    for name in "kv":
        values, codes = wanted[f"present_{name}"], got[f"present_{name}"]
        assert codes.dtype == np.int8
        scales = model.graph.initializers[f"{model.graph[0].name}.{name}_scale"].const_value.numpy()
        error = np.abs(codes * scales.reshape(1, 2, 1, 8) - values)
        assert error.max() <= scales.max() / 2 * 1.00001
    sqnr = 10 * np.log10(
        (wanted["core"] ** 2).mean() / ((got["core"] - wanted["core"]) ** 2).mean()
    )
    assert 35 < sqnr < 80


def test_the_portable_form_is_the_stock_one(rng: np.random.Generator) -> None:
    model, stock = decoder(), decoder()
    given = feed(rng, stock)
    emit_attention(model)
    quantized(model, given)
    assert len(model.graph[0].inputs) == 11
    stock_attention(model.graph[0])
    quantized(stock, given)
    one, other = model.graph[0], stock.graph[0]
    assert one.domain == "com.microsoft" and len(one.inputs) == len(other.inputs) == 14
    assert [v and v.name for v in one.inputs] == [v and v.name for v in other.inputs]
    for name in ("k_quant_type", "v_quant_type", "kv_cache_bit_width"):
        assert one.attributes[name].value == other.attributes[name].value


@pytest.mark.parametrize(
    "model, reason",
    [
        (lambda: decoder(more="shape = Shape (past_k)", also=", int64[4] shape"), None),
        (lambda: decoder(more="size = Size (past_k)", also=", int64 size"), None),
        (lambda: decoder(outputs="pk, present_v", rest="present_k = Identity (pk)"), "its present"),
    ],
)
def test_caches_that_others_read(model: object, reason: str | None) -> None:
    nodes, declined = find_caches(model())  # type: ignore[operator]
    assert not nodes and len(declined) == 1
    assert (reason or "its past is not an input of the model that only it reads") in declined[
        0
    ].reason


def test_quantized_already(rng: np.random.Generator) -> None:
    model = decoder()
    quantized(model, feed(rng, model))
    assert find_caches(model)[0] == ()
    with pytest.raises(FptqError, match="is quantized already"):
        check_cache(model)


def test_a_cache_that_is_cast() -> None:
    model = build(
        """g (float[b, s, 32] q, float[b, s, 16] k, float[b, s, 16] v,
             float16[b, 2, p, 8] half_k, float16[b, 2, p, 8] half_v, int32[b] lengths, int32 total)
          => (float[b, s, 32] core, float[b, 2, t, 8] present_k, float[b, 2, t, 8] present_v) {
          past_k = Cast <to = 1> (half_k)
          past_v = Cast <to = 1> (half_v)
          core, present_k, present_v = com.microsoft.GroupQueryAttention
            <num_heads = 4, kv_num_heads = 2> (q, k, v, past_k, past_v, lengths, total)
        }""",
        microsoft=True,
    )
    with pytest.raises(FptqError, match="convert the model from before it became float16"):
        check_cache(model)


def test_no_cache_at_all() -> None:
    model = build("g (float[b, 4] x) => (float[b, 4] y) { y = Relu (x) }")
    with pytest.raises(FptqError, match=r"needs a GroupQueryAttention.*--exporter genai"):
        check_cache(model)
