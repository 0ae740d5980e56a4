import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.tensor_spec import TensorSpec
from fptq_onnx.runtime.decoder import Decoder, open_decoder
from fptq_onnx.runtime.decoder_io import DecoderIO

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "models" / "tinystories-7m"
SHARED = Path(os.environ.get("FPTQ_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
EXPORTS = sorted(p.parent for p in (SHARED / "onnx").glob("*/model.onnx"))

IDS = TensorSpec("input_ids", "int64", ("batch", "seq"))
LOGITS = TensorSpec("logits", "float32", ("batch", "seq", 50))


def past(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape or ("batch", 4, "past_len", 32))


def pairs(io: DecoderIO) -> list[tuple[str, str]]:
    return [(tensor.past, tensor.present) for tensor in io.cache]


# A model small enough to check by hand. Its cache holds every id seen (as a float); its logits are
# [ids' running sum, length of the mask, position] so each feed shows up in a number of its own.
TINY = """
<ir_version: 8, opset_import: ["" : 18]>
tiny (IDTYPE[B, S] input_ids, int64[B, T] attention_mask, int64[B, S] position_ids,
      CTYPE[B, 1, past_len, 1] past_key_values_0_key)
  => (float[B, S, 3] logits, CTYPE[B, 1, total, 1] present_0_key)
<int64[2] to4 = {1, 3}, int64[1] two = {2},
 int64[1] one = {1}>
{
  new = Cast<to = CNUM>(input_ids)
  new4 = Unsqueeze(new, to4)
  present_0_key = Concat<axis = 2>(past_key_values_0_key, new4)
  present_f = Cast<to = 1>(present_0_key)
  sums = ReduceSum<keepdims = 0>(present_f, to4)
  mask_f = Cast<to = 1>(attention_mask)
  mask_n = ReduceSum<keepdims = 1>(mask_f, one)
  mask_3 = Unsqueeze(mask_n, one)
  pos_f = Cast<to = 1>(position_ids)
  pos_3 = Unsqueeze(pos_f, two)
  total_s = ReduceSum<keepdims = 1>(sums, one)
  total_3 = Unsqueeze(total_s, one)
  zero = Sub(pos_3, pos_3)
  a = Add(total_3, zero)
  b = Add(mask_3, zero)
  logits = Concat<axis = 2>(a, b, pos_3)
}
"""


def tiny(ids: str = "int64", cache: str = "float", number: int = 1) -> Decoder:
    text = TINY.replace("IDTYPE", ids).replace("CTYPE", cache).replace("CNUM", str(number))
    model = onnx.parser.parse_model(text)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    return Decoder(session)


@pytest.mark.parametrize(
    ("ids", "cache", "number", "bits"),
    [("int64", "float", 1, "float32"), ("int32", "float16", 10, "float16")],
)
def test_every_feed_reaches_the_model(ids: str, cache: str, number: int, bits: str) -> None:
    decoder = tiny(ids, cache, number)
    assert decoder.io.cache[0].dtype == bits
    first = decoder.forward(np.array([[5, 7], [1, 2]]))
    # Small integers are exact in float16 and float32: nothing is rounded.
    np.testing.assert_array_equal(first.logits, [[[12, 2, 0], [12, 2, 1]], [[3, 2, 0], [3, 2, 1]]])
    second = decoder.forward(np.array([[10], [20]]), first.cache)
    np.testing.assert_array_equal(second.logits, [[[22, 3, 2]], [[23, 3, 2]]])
    assert second.cache.length == 3
    # The first cache is still good: a caller may branch from it.
    again = decoder.forward(np.array([[10], [20]]), first.cache)
    np.testing.assert_array_equal(again.logits, second.logits)


def test_named_outputs_come_back_and_logits_may_be_left_out() -> None:
    step = tiny().forward(np.array([[5, 7]]), None, ["present_0_key"], logits=False)
    assert step.logits is None
    np.testing.assert_array_equal(step.outputs["present_0_key"].ravel(), [5, 7])


def test_bfloat16_logits_and_cache_are_read_exactly() -> None:
    cached = TINY.replace("IDTYPE", "int64").replace("CTYPE", "bfloat16").replace("CNUM", "16")
    text = cached.replace("float[B, S, 3] logits", "bfloat16[B, S, 3] logits")
    text = text.replace("logits = Concat<axis = 2>", "wide = Concat<axis = 2>")
    text = text.replace("(a, b, pos_3)", "(a, b, pos_3)\n  logits = Cast<to = 16>(wide)")
    decoder = Decoder(ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString()))
    assert decoder.io.cache[0].dtype == "bfloat16"
    first = decoder.forward(np.array([[5, 7]]), None, ["present_0_key"])
    second = decoder.forward(np.array([[10]]), first.cache)
    # Integers below 256 are exact in bfloat16.
    np.testing.assert_array_equal(first.logits, [[[12, 2, 0], [12, 2, 1]]])
    np.testing.assert_array_equal(second.logits, [[[22, 3, 2]]])
    np.testing.assert_array_equal(first.outputs["present_0_key"].ravel(), [5, 7])


def test_demo_prefill_then_decode_is_the_whole_window() -> None:
    decoder = open_decoder(DEMO, threads=1)
    _check_decode(decoder)


@pytest.mark.skipif(not EXPORTS, reason="no shared exports here")
@pytest.mark.parametrize("folder", EXPORTS, ids=lambda p: p.name)
def test_real_export(folder: Path) -> None:
    decoder = open_decoder(folder, threads=1)
    if folder.name == "qwen3-dynamo":
        assert not decoder.io.has_cache
        assert decoder.forward(np.array([[1, 2, 3]])).logits.shape == (1, 3, 512)
        return
    assert decoder.io.has_cache
    _check_decode(decoder)


def _check_decode(decoder: Decoder) -> None:
    ids = np.random.default_rng(0).integers(3, decoder.io.vocab_size, (2, 12))
    whole = decoder.forward(ids).logits
    step = decoder.forward(ids[:, :8])
    parts = [step.logits]
    for t in range(8, 12):
        step = decoder.forward(ids[:, t : t + 1], step.cache)
        parts.append(step.logits)
    # The same sums in another order: float32 rounding, 2^-24 each, over a few hundred terms in
    # some dozen layers; 1e-5 of the largest logit leaves room, a misplaced token costs 1e-1.
    limit = 1e-5 * np.abs(whole).max()
    assert np.abs(np.concatenate(parts, 1) - whole).max() <= limit


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["past_key_values.{}.key", "past.{}.value"], ["present.{}.key", "present.{}.value"]),
        (["past_key_values_{}_key", "past_{}_value"], ["present_{}_key", "present_{}_value"]),
        (["past_key_{}", "past_value_{}"], ["present_key_{}", "present_value_{}"]),
        (["k_cache_{}", "v_cache_{}"], ["k_cache_out_{}", "v_cache_out_{}"]),
    ],
)
def test_pairs_by_name_whatever_the_order(inputs: list[str], outputs: list[str]) -> None:
    layers = range(11)  # two digits: "1" must not be taken for "10"
    ins = [past(name.format(n)) for n in layers for name in inputs]
    # Keys first and reversed: order alone would pair wrongly.
    outs = [past(name.format(n)) for name in outputs for n in reversed(layers)]
    io = DecoderIO.from_specs([IDS, *ins], [*outs, LOGITS])
    want = {i.format(n): o.format(n) for n in layers for i, o in zip(inputs, outputs, strict=True)}
    assert dict(pairs(io)) == want


def test_pairs_by_order_where_names_say_nothing() -> None:
    io = DecoderIO.from_specs([IDS, past("a"), past("b")], [LOGITS, past("x"), past("y")])
    assert pairs(io) == [("a", "x"), ("b", "y")]


def test_pairs_as_genai_config_says() -> None:
    config = {
        "model": {
            "decoder": {
                "inputs": {"input_ids": "ids", "past_key_names": "in_%d"},
                "outputs": {"logits": "scores", "present_key_names": "out_%d"},
            }
        }
    }
    ids, scores = TensorSpec("ids", "int64", ("b", "s")), TensorSpec("scores", "float32", None)
    outs = [past("out_1"), past("out_0"), scores]
    io = DecoderIO.from_specs([ids, past("in_0"), past("in_1")], outs, genai_config=config)
    assert pairs(io) == [("in_0", "out_0"), ("in_1", "out_1")]
    assert (io.input_ids.name, io.logits.name) == ("ids", "scores")


def test_outputs_that_are_no_cache_are_passed_over() -> None:
    taps = [TensorSpec("tap.absmax", "float32", (32,)), past("tap.full")]
    io = DecoderIO.from_specs([IDS, past("past.0.key")], [*taps, LOGITS, past("present.0.key")])
    assert pairs(io) == [("past.0.key", "present.0.key")]


@pytest.mark.parametrize(
    ("shape", "grown", "empty", "axis"),
    [
        (("batch", 4, "past_len", 32), ("batch", 4, "x", 32), (1, 4, 0, 32), 2),
        (("batch", 4, 32, "past_len"), ("batch", 4, 32, "x"), (1, 4, 32, 0), 3),
        (("batch", 4, "s62", 32), ("batch", 4, "s62 + s70", 32), (1, 4, 0, 32), 2),
        (("batch", "s62", 4, 32), ("batch", "s62 + s70", 4, 32), (1, 0, 4, 32), 1),
        ((2, "batch", 4, "past_len", 32), (2, "batch", 4, "x", 32), (2, 1, 4, 0, 32), 3),
        (("batch", "past_len", 64), ("batch", "x", 64), (1, 0, 64), 1),
        # Two open axes besides the batch: the name tells, or else the change does.
        (("batch", "past_len", 4, "d"), ("batch", "total", 4, "d"), (1, 0, 4, 32), 1),
        (("batch", "s62", 4, "d"), ("batch", "s62 + s70", 4, "d"), (1, 0, 4, 32), 1),
    ],
)
def test_cache_layouts(
    shape: tuple[int | str, ...],
    grown: tuple[int | str, ...],
    empty: tuple[int, ...],
    axis: int,
) -> None:
    ins, outs = [IDS, past("past.0", *shape)], [LOGITS, past("present.0", *grown)]
    io = DecoderIO.from_specs(ins, outs, head_size=32)
    assert (io.cache[0].shape, io.cache[0].sequence_axis) == (empty, axis)


def test_head_size_left_symbolic() -> None:
    ins = [IDS, past("past.0", "batch", 4, "past_len", "kv_cache_dim")]
    outs = [LOGITS, past("present.0", "batch", 4, "total", "kv_cache_dim")]
    genai = {"model": {"decoder": {"head_size": 48}}}
    assert DecoderIO.from_specs(ins, outs, genai_config=genai).cache[0].shape[3] == 48
    config = {"hidden_size": 256, "num_attention_heads": 8}
    assert DecoderIO.from_specs(ins, outs, config=config).cache[0].shape[3] == 32
    assert DecoderIO.from_specs(ins, outs, config=config, head_size=64).cache[0].shape[3] == 64
    with pytest.raises(FptqError, match=r"leaves axis 3 open.*genai_config\.json"):
        DecoderIO.from_specs(ins, outs)


def test_head_size_from_the_graph_without_any_configuration(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).write_bytes((DEMO / name).read_bytes())
    decoder = open_decoder(tmp_path, threads=1)
    assert decoder.io.cache[0].shape == (1, 4, 0, 32)
    _check_decode(decoder)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([past("pixels")], [LOGITS], "not a causal language model: it has no input"),
        ([IDS], [TensorSpec("y", "float32", (1,))], "language model: it has no logits"),
        (
            [IDS],
            [TensorSpec("last_hidden_state", "float32", ("b", "s", 8))],
            "language model: it has no logits",
        ),
        ([TensorSpec("input_ids", "float32", ("b", "s"))], [LOGITS], "not an integer"),
        ([IDS, TensorSpec("flag", "bool", (1,))], [LOGITS], "cannot feed the input flag bool"),
        ([IDS, TensorSpec("attention_mask", "int64", ("b", 1, 1, "t"))], [LOGITS], "mask must be"),
        ([IDS, past("past.0")], [LOGITS], "cannot tell which output is the next step's past.0"),
        ([IDS, past("past.0", "batch", 4, 256, 32)], [LOGITS, past("present.0")], "fixed length"),
    ],
)
def test_refused(inputs: list[TensorSpec], outputs: list[TensorSpec], message: str) -> None:
    with pytest.raises(FptqError, match=message):
        DecoderIO.from_specs(inputs, outputs)


def test_fixed_dimensions_and_a_missing_cache_are_refused() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    fixed (int64[1, 4] input_ids) => (float[1, 4, 2] logits) <float[9, 2] table = {
      0,0, 1,1, 2,2, 3,3, 4,4, 5,5, 6,6, 7,7, 8,8}> { logits = Gather(table, input_ids) }
    """
    decoder = Decoder(ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString()))
    assert (decoder.io.fixed_batch, decoder.io.fixed_sequence) == (1, 4)
    step = decoder.forward(np.array([[1, 2, 3, 4]]))
    np.testing.assert_array_equal(step.logits[0, :, 0], [1, 2, 3, 4])
    with pytest.raises(FptqError, match="exactly 4 tokens at a time, not 3"):
        decoder.forward(np.array([[1, 2, 3]]))
    with pytest.raises(FptqError, match="exactly 1 sequences at a time, not 2"):
        decoder.forward(np.ones((2, 4), np.int64))
    with pytest.raises(FptqError, match="no KV cache"):
        decoder.forward(np.array([[1, 2, 3, 4]]), step.cache)
    with pytest.raises(FptqError, match="could not run the model on 4 tokens after 0"):
        decoder.forward(np.array([[1, 2, 3, 99]]))
