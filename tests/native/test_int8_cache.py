"""fptq::GroupQueryAttention with a cache of int8 codes: its definition, and ONNX Runtime's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from support.attention_node import NAMES, attention_model

from fptq_onnx.numerics.attention import causal_attention, rotate
from fptq_onnx.numerics.kv_cache_int8 import cache_scales, encode_cache

SCALES = ("k_scale", "v_scale")
# As in test_group_query_attention.py.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Case:
    heads: int = 8
    kv_heads: int = 2
    size: int = 16
    scales: int = 0  # numbers in each: 0 is one for every channel

    def model(self, domain: str = "fptq", scales: tuple[str, ...] = SCALES) -> ir.Model:
        attributes: dict[str, Any] = {
            "num_heads": self.heads, "kv_num_heads": self.kv_heads, "do_rotary": 1,
            "rotary_interleaved": 0,
        }  # fmt: skip
        between: tuple[None, ...] = ()
        if domain == "com.microsoft":
            between = (None, None, None)  # positions, bias, sinks
            kind = "PER_TENSOR" if self.scales == 1 else "PER_CHANNEL"
            attributes |= {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": 8}
        inputs = [*NAMES, *between, *scales]
        return attention_model(inputs, attributes, domain=domain, cache=ir.DataType.INT8)

    def feed(self, batch: int, tokens: int, past: int) -> dict[str, NDArray[Any]]:
        """Random inputs; every sequence has `past` tokens."""
        rng = np.random.default_rng(batch + tokens + past)

        def normal(*shape: int) -> NDArray[np.float32]:
            return rng.normal(size=shape).astype(np.float32)

        width, shape = self.kv_heads * self.size, (batch, self.kv_heads, past, self.size)
        angles = normal(past + tokens + 3, self.size // 2)
        # Some new keys and values are larger than the scales allow for.
        scales = cache_scales(1 + np.abs(normal(2, self.scales or width)))
        return {
            "query": normal(batch, tokens, self.heads * self.size),
            "key": normal(batch, tokens, width),
            "value": normal(batch, tokens, width),
            "past_key": rng.integers(-128, 128, shape, np.int8),
            "past_value": rng.integers(-128, 128, shape, np.int8),
            "seqlens_k": np.full(batch, past + tokens - 1, np.int32),
            "total_sequence_length": np.array(past + tokens, np.int32),
            "cos_cache": np.cos(angles),
            "sin_cache": np.sin(angles),
            "k_scale": scales[0],
            "v_scale": scales[1],
        }

    def expected(self, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Output, and the rotated float keys and values whose codes the caches get."""
        batch, tokens = feed["query"].shape[:2]
        past = feed["past_key"].shape[2]
        where = slice(past, past + tokens)
        cos, sin = (feed[name][where, None] for name in ("cos_cache", "sin_cache"))
        k_scale, v_scale = (
            np.broadcast_to(feed[name], self.kv_heads * self.size).reshape(self.kv_heads, self.size)
            for name in ("k_scale", "v_scale")
        )
        outputs, presents = [], []
        for b in range(batch):
            q, k, v = (
                feed[name][b].reshape(tokens, -1, self.size) for name in ("query", "key", "value")
            )
            q, k = (rotate(x, cos, sin) for x in (q, k))
            new = [
                encode_cache(x.astype(np.float32), scale)
                for x, scale in ((k, k_scale), (v, v_scale))
            ]
            present = [
                np.concatenate([old, np.swapaxes(codes, 0, 1)], axis=1)
                for old, codes in zip(
                    (feed["past_key"][b], feed["past_value"][b]), new, strict=True
                )
            ]
            seen = [
                np.swapaxes(codes, 0, 1).astype(np.float64) * scale
                for codes, scale in zip(present, (k_scale, v_scale), strict=True)
            ]
            outputs.append(causal_attention(q, *seen, scale=self.size**-0.5, seen=past + 1))
            presents.append(present)
        output = np.stack(outputs).reshape(batch, tokens, -1)
        return [output, *(np.stack([p[i] for p in presents]) for i in range(2))]


def close(got: list[NDArray[Any]], wanted: list[NDArray[Any]]) -> None:
    np.testing.assert_allclose(got[0], wanted[0], rtol=0, atol=TOLERANCE * 4)
    # Keys turn in float32 and in float64: between two codes, either may come.
    assert got[1].dtype == got[2].dtype == np.int8
    difference = np.abs(got[1].astype(int) - wanted[1])
    assert difference.max(initial=0) <= 1 and difference.sum() <= 0.001 * difference.size
    np.testing.assert_array_equal(got[2], wanted[2])


CASES = {
    "channels": Case(),
    "one scale": Case(scales=1),
    "not grouped": Case(heads=3, kv_heads=3),
    "odd size": Case(size=20),
    "large": Case(heads=2, kv_heads=1, size=256),
    "many rows": Case(heads=32, kv_heads=4, size=64),
}
STEPS = [(1, 1, 0), (1, 9, 0), (1, 130, 0), (1, 1, 70), (1, 5, 64), (3, 1, 20), (2, 7, 0)]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_definition(op: Any, each_kernel: str, case: str, step: Any) -> None:
    feed = CASES[case].feed(*step)
    close(op.open_session(CASES[case].model()).run(None, feed), CASES[case].expected(feed))


@pytest.mark.parametrize("step", [s for s in STEPS if s[0] == 1], ids=str)
@pytest.mark.parametrize("case", ["channels", "one scale"])
def test_same_as_onnxruntime(op: Any, case: str, step: Any) -> None:
    feed = CASES[case].feed(*step)
    stock = op.open_session(CASES[case].model("com.microsoft")).run(None, feed)
    close(op.open_session(CASES[case].model()).run(None, feed), stock)


def test_a_cache_that_grows_in_place(op: Any, each_kernel: str) -> None:
    case = Case()
    feed = case.feed(2, 1, 9)
    wanted = case.expected(feed)
    session = op.open_session(case.model())
    binding = session.io_binding()
    room = np.full((2, 2, 5, 16), 99, np.int8)  # after the 9 tokens: one is written
    caches = [
        ort.OrtValue.ortvalue_from_numpy(np.concatenate([feed[name], room], axis=2))
        for name in NAMES[3:5]
    ]
    for name, array in feed.items():
        if not name.startswith("past"):
            binding.bind_cpu_input(name, array)
    binding.bind_output("output", "cpu")
    for kind, cache in zip(("key", "value"), caches, strict=True):
        binding.bind_ortvalue_input(f"past_{kind}", cache)
        binding.bind_ortvalue_output(f"present_{kind}", cache)
    session.run_with_iobinding(binding)
    output = binding.get_outputs()[0].numpy()
    close([output, *(cache.numpy()[:, :, :10] for cache in caches)], wanted)
    for cache in caches:
        assert (cache.numpy()[:, :, 10:] == 99).all()


def test_how_a_prompt_is_cut_does_not_matter(op: Any, each_kernel: str) -> None:
    case = Case()
    feed = case.feed(1, 200, 0)
    session = op.open_session(case.model())
    whole = session.run(None, feed)
    past = [np.zeros((1, 2, 0, 16), np.int8)] * 2
    outputs = []
    for begin, end in ((0, 70), (70, 71), (71, 200)):
        lengths = {"seqlens_k": [end - 1], "total_sequence_length": end}
        output, *past = session.run(
            None,
            feed
            | {name: feed[name][:, begin:end] for name in ("query", "key", "value")}
            | {name: np.array(value, np.int32) for name, value in lengths.items()}
            | dict(zip(NAMES[3:5], past, strict=True)),
        )
        outputs.append(output)
    for one, other in zip((np.concatenate(outputs, axis=1), *past), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_scales_belong_to_codes(op: Any) -> None:
    with pytest.raises(Exception, match="k_scale must be given where the cache is int8"):
        op.open_session(Case().model(scales=()))


@pytest.mark.parametrize(
    "scales, message",
    [
        (np.ones(31, np.float32), "k_scale must have 1 or 32 numbers, but has the shape"),
        (np.zeros(32, np.float32), "k_scale must be positive"),
        (np.full(32, -1, np.float32), "k_scale must be positive"),
        (np.full(1, np.nan, np.float32), "k_scale must be positive"),
        (np.full(1, 1e-45, np.float32), "k_scale must be positive"),
    ],
    ids=str,
)
def test_refused_when_run(op: Any, scales: NDArray[Any], message: str) -> None:
    feed = Case().feed(1, 2, 5)
    session = op.open_session(Case().model())
    with pytest.raises(Exception, match=message):
        session.run(None, feed | {"k_scale": scales})
    close(session.run(None, feed), Case().expected(feed))  # the session is still good
