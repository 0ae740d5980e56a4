"""fptq::GroupQueryAttention in ONNX Runtime against its definition in NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from support.attention_node import INTEGERS, NAMES, attention_model

from fptq_onnx.numerics.attention import causal_attention, rotate

# Float32 with scores of a few units over up to 300 keys: see native/tests/test_attention.cc for the
# bound of one problem. Here it is about which number meets which.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Case:
    heads: int = 4
    kv_heads: int = 2
    size: int = 16
    rotary: int = 16
    interleaved: bool = False
    packed: bool = False
    scale: float | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    def model(self, domain: str = "fptq") -> ir.Model:
        inputs: list[str | None] = list(NAMES if self.rotary else NAMES[:7])
        if self.packed:
            inputs[1] = inputs[2] = None
        attributes: dict[str, Any] = {
            "num_heads": self.heads,
            "kv_num_heads": self.kv_heads,
            "do_rotary": int(bool(self.rotary)),
            "rotary_interleaved": int(self.interleaved),
            "scale": self.scale,
            **self.attributes,
        }
        return attention_model(inputs, attributes, domain=domain)

    def feed(
        self, batch: int, tokens: int, past: int, lengths: list[int] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Random inputs; lengths are those of the sequences after this step."""
        rng = np.random.default_rng(batch + tokens + past)

        def normal(*shape: int) -> NDArray[np.float32]:
            return rng.normal(size=shape).astype(np.float32)

        width = self.kv_heads * self.size
        feed: dict[str, NDArray[Any]] = {
            "query": normal(batch, tokens, self.heads * self.size + 2 * width * self.packed),
            "past_key": normal(batch, self.kv_heads, past, self.size),
            "past_value": normal(batch, self.kv_heads, past, self.size),
            "seqlens_k": np.array(lengths or [past + tokens] * batch, np.int32) - 1,
            "total_sequence_length": np.array(past + tokens, np.int32),
        }
        if not self.packed:
            feed |= {"key": normal(batch, tokens, width), "value": normal(batch, tokens, width)}
        if self.rotary:
            angles = normal(past + tokens + 3, self.rotary // 2)
            feed |= {"cos_cache": np.cos(angles), "sin_cache": np.sin(angles)}
        return feed

    def expected(self, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """What the definition gives; NaN where it gives nothing."""
        query, past = feed["query"], [feed["past_key"], feed["past_value"]]
        batch, tokens = query.shape[:2]
        heads = query.reshape(batch, tokens, -1, self.size)
        q = heads[:, :, : self.heads]
        if self.packed:
            k, v = np.split(heads[:, :, self.heads :], 2, axis=2)
        else:
            k, v = (feed[name].reshape(batch, tokens, -1, self.size) for name in ("key", "value"))
        total = int(feed["total_sequence_length"])
        shape = (batch, self.kv_heads, max(past[0].shape[2], total), self.size)
        present = [np.full(shape, np.nan), np.full(shape, np.nan)]
        output = np.full((batch, tokens, self.heads, self.size), np.nan)
        for b in range(batch):
            length = int(feed["seqlens_k"][b]) + 1
            before = 0 if tokens == total else length - tokens
            q_b, k_b = q[b], k[b]
            if self.rotary:
                where = slice(before, before + tokens)
                cos, sin = (feed[name][where, None] for name in ("cos_cache", "sin_cache"))
                q_b, k_b = (rotate(x, cos, sin, interleaved=self.interleaved) for x in (q_b, k_b))
            for to, old, new in zip(present, past, (k_b, v[b]), strict=True):
                to[b, :, :before] = old[b, :, :before]
                to[b, :, before : before + tokens] = np.swapaxes(new, 0, 1)
            seen = [np.swapaxes(x[b, :, : before + tokens], 0, 1) for x in present]
            scale = self.scale or self.size**-0.5
            output[b] = causal_attention(q_b, *seen, scale=scale, seen=before + 1)
        return [output.reshape(batch, tokens, -1), *present]


def close(got: list[NDArray[Any]], wanted: list[NDArray[Any]]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        known = ~np.isnan(other)
        np.testing.assert_allclose(one[known], other[known], rtol=0, atol=TOLERANCE)


CASES = {
    "grouped": Case(),
    "not grouped": Case(heads=3, kv_heads=3),
    "one key head": Case(heads=8, kv_heads=1, size=64, rotary=64),
    "odd size": Case(size=20, rotary=20),
    "small size": Case(heads=2, kv_heads=1, size=6, rotary=2),
    "partly rotated": Case(size=32, rotary=8),
    "not rotated": Case(rotary=0),
    "neighbours rotated": Case(interleaved=True),
    "packed": Case(packed=True),
    "scaled": Case(scale=0.3),
    "large": Case(heads=2, kv_heads=1, size=256, rotary=128),
}
# batch, new tokens, past, length of each sequence after them
STEPS = [
    (1, 1, 0, None),
    (1, 9, 0, None),
    (1, 130, 0, None),
    (1, 1, 70, None),
    (1, 5, 64, None),
    (3, 1, 20, [21, 4, 1]),
    (2, 7, 0, [7, 4]),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_definition(op: Any, each_kernel: str, case: str, step: Any) -> None:
    feed = CASES[case].feed(*step)
    close(op.open_session(CASES[case].model()).run(None, feed), CASES[case].expected(feed))


@pytest.mark.parametrize("step", [s for s in STEPS if s[0] == 1], ids=str)
def test_same_as_onnxruntime(op: Any, step: Any) -> None:
    case = Case()
    feed = case.feed(*step)
    stock = op.open_session(case.model("com.microsoft")).run(None, feed)
    close(op.open_session(case.model()).run(None, feed), stock)


def test_two_threads(op: Any) -> None:
    case = Case(heads=8, kv_heads=2, size=64, rotary=64)
    feed = case.feed(2, 300, 0)
    one, two = (op.open_session(case.model(), threads).run(None, feed) for threads in (1, 2))
    for left, right in zip(one, two, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_cache_that_grows_in_place(op: Any, each_kernel: str) -> None:
    # Sequences of 3, 9 and 6 tokens in rows of 12, which no step touches beyond its own token.
    case = Case()
    feed = case.feed(3, 1, 12, [4, 10, 7])
    feed["total_sequence_length"] = np.array(10, np.int32)
    wanted = case.expected(feed)
    session = op.open_session(case.model())
    binding = session.io_binding()
    caches = [ort.OrtValue.ortvalue_from_numpy(feed[name]) for name in NAMES[3:5]]
    for name, array in feed.items():
        if not name.startswith("past"):
            binding.bind_cpu_input(name, array)
    binding.bind_output("output", "cpu")
    for kind, cache in zip(("key", "value"), caches, strict=True):
        binding.bind_ortvalue_input(f"past_{kind}", cache)
        binding.bind_ortvalue_output(f"present_{kind}", cache)
    session.run_with_iobinding(binding)
    close([binding.get_outputs()[0].numpy(), *(cache.numpy() for cache in caches)], wanted)
    for name, cache in zip(NAMES[3:5], caches, strict=True):
        for row, length in enumerate((4, 10, 7)):
            after = cache.numpy()[row, :, length:]
            np.testing.assert_array_equal(after, feed[name][row, :, length:])


def test_how_a_prompt_is_cut_does_not_matter(op: Any, each_kernel: str) -> None:
    case = Case(heads=8, kv_heads=2)
    feed = case.feed(1, 200, 0)
    session = op.open_session(case.model())
    whole = session.run(None, feed)
    past = [np.zeros((1, 2, 0, 16), np.float32)] * 2
    outputs = []
    for begin, end in ((0, 70), (70, 71), (71, 200)):
        piece = {name: feed[name][:, begin:end] for name in ("query", "key", "value")}
        lengths = {"seqlens_k": [end - 1], "total_sequence_length": end}
        output, *past = session.run(
            None,
            piece
            | {name: np.array(value, np.int32) for name, value in lengths.items()}
            | dict(zip(NAMES[3:5], past, strict=True))
            | {name: feed[name] for name in ("cos_cache", "sin_cache")},
        )
        outputs.append(output)
    for one, other in zip((np.concatenate(outputs, axis=1), *past), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nan_stays_in_its_sequence(op: Any, each_kernel: str) -> None:
    case = Case()
    feed = case.feed(2, 1, 40)
    feed["past_key"][0, 0, 3, 5] = np.nan
    output = op.open_session(case.model()).run(None, feed)[0].reshape(2, 4, 16)
    assert np.isnan(output[0, :2]).all()  # the heads that read this key head
    assert np.isfinite(output[0, 2:]).all() and np.isfinite(output[1]).all()


def test_no_tokens(op: Any) -> None:
    case = Case()
    feed = case.feed(0, 3, 0)
    output, *present = op.open_session(case.model()).run(None, feed)
    assert output.shape == (0, 3, 64) and present[0].shape == (0, 2, 3, 16)


@pytest.mark.parametrize(
    "case, message",
    [
        (Case(heads=4, kv_heads=3), "num_heads 4 must be a multiple of kv_num_heads 3"),
        (Case(kv_heads=0), "must be a multiple"),
        (Case(attributes={"num_heads": None}), "attribute num_heads is missing"),
        (Case(attributes={"num_heads": 2**62, "kv_num_heads": 1}), "must be a multiple"),
        (Case(attributes={"scale": float("nan")}), "scale must be finite"),
        (Case(rotary=0, attributes={"do_rotary": 1}), "do_rotary needs cos_cache"),
    ],
    ids=str,
)
def test_refused_when_the_session_is_made(op: Any, case: Case, message: str) -> None:
    with pytest.raises(Exception, match=message):
        op.open_session(case.model())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"query": (1, 2, 63)}, "query must be"),
        ({"query": (1, 2, 0)}, "query must be"),
        ({"query": (2, 64)}, "query must be"),
        ({"key": (1, 3, 32)}, "key and value must have the shape"),
        ({"past_key": (1, 2, 5, 15)}, "past_key and past_value must be"),
        ({"past_value": (1, 2, 6, 16)}, "past_key and past_value must be"),
        ({"cos_cache": (9, 9), "sin_cache": (9, 9)}, "cos_cache and sin_cache must be"),
        ({"cos_cache": (4, 8), "sin_cache": (4, 8)}, "position 6 is not in cos_cache"),
        ({"seqlens_k": [0, 0]}, "must have one number for each"),
        ({"seqlens_k": [7]}, "which does not fit"),
        ({"seqlens_k": [-1]}, "which does not fit"),
        ({"seqlens_k": [2**31 - 1]}, "which does not fit"),
        ({"total_sequence_length": [-5]}, "which does not fit"),
        ({"total_sequence_length": [1, 2]}, "total_sequence_length one"),
    ],
    ids=str,
)
def test_refused_when_run(op: Any, change: dict[str, Any], message: str) -> None:
    case = Case()
    feed = case.feed(1, 2, 5)
    session = op.open_session(case.model())
    for name, value in change.items():
        if name in INTEGERS:
            feed[name] = np.array(value, np.int32)
        else:
            feed[name] = np.zeros(value, np.float32)
    with pytest.raises(Exception, match=message):
        session.run(None, feed)
    good = case.feed(1, 2, 5)
    close(session.run(None, good), case.expected(good))  # the session is still good
