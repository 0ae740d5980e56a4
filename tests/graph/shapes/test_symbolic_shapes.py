"""Sizes that are said to be known are those of the running model, and equal texts are equal."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from support.tiny_graphs import build, run

from fptq_onnx.graph.shapes.dim_arithmetic import Sizes, broadcast, reshaped, summed
from fptq_onnx.graph.shapes.symbolic_shapes import known_sizes
from fptq_onnx.model_io.load import load_model
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.runtime.decoder import empty_cache, token_feeds
from fptq_onnx.runtime.decoder_io import decoder_io_of
from fptq_onnx.runtime.session import open_session_in_memory

SHARED = Path(os.environ.get("FPTQ_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
EXPORTS = sorted(path.name for path in (SHARED / "onnx").glob("*") if path.is_dir())


def test_sums_have_one_form() -> None:
    assert summed(["b", "a"]) == summed(["a + b"]) == summed(["b+a"]) == "a + b"
    assert summed([1, "a", 2]) == "a + 3"
    assert summed([1, 2]) == 3


def test_broadcasting() -> None:
    assert broadcast(("b", 1, "s"), (4, "s"), "y") == ("b", 4, "s")
    assert broadcast(("b", "h"), (4,), "y") == ("b", 4)
    assert broadcast((4,), ("h",), "y") == (4,)
    assert broadcast(("a",), ("b",), "y") == ("y[0]",)


@pytest.mark.parametrize(
    ("shape", "wanted", "expected"),
    [
        (("b", "s", 128), ("b", "s", -1, 32), ("b", "s", 4, 32)),
        (("b", "s", 128), (0, -1, 4, 32), ("b", "s", 4, 32)),
        (("b", 2, 3, "t", 8), ("b", -1, "t", 8), ("b", 6, "t", 8)),
        (("b", "s", 128), (-1, 128), ("?0", 128)),  # b s is neither one name nor an integer
        (("b", "s", 128), (-1, 256), ("?0", 256)),
        (None, (0, 4), ("?0", 4)),
    ],
)
def test_reshaping(shape: Sizes | None, wanted: Sizes, expected: Sizes) -> None:
    unknown = [f"?{axis}" for axis in range(len(wanted))]
    assert reshaped(shape, wanted, zero_copies=True, unknown=unknown) == expected


def sizes_of(body: str, inputs: str = "float[b, s, 8] x", **arrays: object) -> Sizes | None:
    weights = {name: np.array(array) for name, array in arrays.items()}
    model = build(f"g_ ({inputs}) => (float y) {{ {body} }}", weights)
    return known_sizes(model.graph).shape(model.graph.outputs[0])


def test_shapes_computed_in_the_graph_are_followed() -> None:
    body = (
        "d = Shape(x) b0 = Gather(d, i0) b1 = Unsqueeze(b0, at0) s1 = Shape<start = 1, end = 2>(x)"
        " n = Concat<axis = 0>(b1, s1, rest) y = Reshape(x, n)"
    )
    assert sizes_of(body, i0=0, at0=[0], rest=[2, -1]) == ("b", "s", 2, 4)


def test_what_torch_writes_for_expand_is_followed() -> None:
    """-1 keeps a size: the graph replaces it by 1."""
    body = (
        "d = Shape(x) b = Gather(d, i0) n = Concat<axis = 0>(b, rest) l = Shape(n)"
        " ones = ConstantOfShape<value = int64[1] {1}>(l) m = Mul(ones, minus)"
        " e = Equal(n, m) w = Where(e, ones, n) u = Unsqueeze(x, at2) y = Expand(u, w)"
    )
    found = sizes_of(body, i0=[0], rest=[-1, 3, 8], minus=-1, at2=[2])
    assert found == ("b", "s", 3, 8)


@pytest.mark.parametrize(
    "body",
    [
        # 7 / 2 * 2 is 7 in floats, 6 in integers.
        "k = Cast<to = 1>(seven) l = Cast<to = 1>(two) h = Div(k, l) m = Mul(h, l)"
        " n = Cast<to = 7>(m) o = Unsqueeze(n, at0) y = Expand(one, o)",
        # the first row of a matrix of integers
        "n = Gather(table, i0) y = Expand(one, n)",
        # s - 1 may be anything
        "d = Shape<start = 1, end = 2>(x) m = Add(d, minus) e = Equal(m, minus)"
        " n = Where(e, twos, threes) y = Expand(one, n)",
    ],
)
def test_what_is_not_certain_is_not_said(body: str) -> None:
    arrays = {
        "seven": 7, "two": 2, "at0": [0], "one": np.ones(1, np.float32), "i0": 0,
        "table": [[5, 1], [1, 1]], "minus": [-1], "twos": [2], "threes": [3],
    }  # fmt: skip
    tokens = set(re.findall(r"\w+", body))
    used = {name: value for name, value in arrays.items() if name in tokens}
    model = build(
        f"g_ (float[b, s, 8] x) => (float y) {{ {body} }}",
        {name: np.array(value) for name, value in used.items()},
    )
    found = known_sizes(model.graph).shape(model.graph.outputs[0])
    real = run(model, {"x": np.zeros((2, 0 if "minus" in used else 1, 8), np.float32)})["y"].shape
    for size, truth in zip(found or (), real, strict=bool(found)):
        assert isinstance(size, str) or size == truth


@pytest.mark.skipif(not EXPORTS, reason="no shared exports here")
@pytest.mark.parametrize("name", EXPORTS)
def test_sizes_are_those_of_the_running_model(name: str, rng: np.random.Generator) -> None:
    """Every value of the graph, in a run whose sizes are different primes."""
    loaded = load_model(SHARED / "onnx" / name)
    normalize(loaded.model)
    graph = loaded.model.graph
    io = decoder_io_of(loaded)
    known = known_sizes(graph)
    shapes = {
        value.name: shape
        for node in graph
        for value in node.outputs
        if value.name and (shape := known.shape(value)) is not None
    }
    ids = rng.integers(0, io.vocab_size or 100, (1 if "genai" in name else 3, 7)).astype(
        np.int64
    )  # GroupQueryAttention: 1
    past = 11 if io.has_cache else 0
    feed = token_feeds(io, ids, past, past + 7)
    for tensor in io.cache:
        sizes = list(empty_cache(tensor, len(ids)).shape())
        sizes[sizes.index(0)] = past
        zeros = np.zeros(sizes, tensor.dtype)
        feed[tensor.past] = ort.OrtValue.ortvalue_from_numpy(zeros)
    model = loaded.model.clone()
    for node in model.graph:
        for value in node.outputs:
            if value.name in shapes and not value.is_graph_output():
                value.type, value.shape = None, None
                model.graph.outputs.append(value)
    session = open_session_in_memory(model, loaded.folder, threads=1)
    names = [output.name for output in session.get_outputs()]
    meant: dict[str, int] = {}
    for value_name, value in zip(names, session.run_with_ort_values(names, feed), strict=True):
        real, said = value.shape(), shapes.get(value_name)
        if said is None:
            continue
        assert len(said) == len(real), value_name
        for size, truth in zip(said, real, strict=True):
            expected = size if isinstance(size, int) else meant.setdefault(size, truth)
            assert expected == truth, (value_name, said, real)
    assert len(shapes) > 0.5 * len(list(graph))
