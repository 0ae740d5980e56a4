"""Conversions with an int8 KV cache, run where users run them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.any_feeds import HandFed
from support.command_line import MODEL, RANDOM_FEW, command
from support.conversion_cache import ConversionCache
from support.edge_tools import opened, smoke_test

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.evaluation.perplexity import compare
from fptq_onnx.generation.engine import Request
from fptq_onnx.generation.greedy import generate
from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.scheme.config import PAPER

PROMPT = [1, 432, 445, 261, 406]


@pytest.fixture(scope="module")
def folders(conversions: ConversionCache) -> dict[str, Path]:
    """Targets by name with an int8 cache; and custom without, as "float"."""
    targets = ("custom", "matmulnbits")
    samples = Samples("generated", max_samples=4, max_seq_len=64)
    config = replace(PAPER, kv_cache="int8")
    both = conversions.convert("out", MODEL, targets=targets, samples=samples, config=config)
    plain = conversions.convert("float", MODEL, samples=samples, config=PAPER)
    return {**{target: both / target for target in targets}, "float": plain}


@pytest.mark.parametrize("target", ["custom", "matmulnbits"])
def test_it_is_int8_and_close(folders: dict[str, Path], target: str) -> None:
    int8, floats = open_decoder(folders[target]), open_decoder(folders["float"])
    assert {tensor.dtype for tensor in int8.io.cache} == {"int8"}
    assert {tensor.dtype for tensor in floats.io.cache} == {"float32"}
    if target == "custom":
        window = np.array(list(generate(floats, PROMPT, 60, eos=[])), np.int64)
        result = compare(floats, int8, [window])
        assert 0 < result.kl < 0.01 and result.top1 > 0.9


def test_how_tokens_are_fed_does_not_matter(folders: dict[str, Path]) -> None:
    model = HandFed(folders["custom"])
    rng = np.random.default_rng(5)
    ids = rng.integers(3, 1000, (2, 24)).astype(np.int64)
    whole = model.whole(ids)
    steps = model.by_steps(ids, prefill=13)
    np.testing.assert_array_equal(whole.argmax(axis=-1), steps.argmax(axis=-1))
    assert np.abs(whole - steps).max() <= 0.02 * np.abs(whole).max()


def test_rows_of_a_batch_write_what_each_writes_alone(folders: dict[str, Path]) -> None:
    model = LanguageModel.open(folders["custom"], threads=1)
    requests = [Request(tuple(PROMPT[: 2 + i]), 20 + i, ignore_eos=True) for i in range(4)]
    alone = [
        [delta.token for delta in model.engine().stream(request) if delta.token is not None]
        for request in requests
    ]
    engine = model.engine(max_sequences=4)
    together = [engine.add(request).generation for request in requests]
    while engine.active:
        engine.step()
    assert [generation.tokens for generation in together] == alone
    assert [len(tokens) for tokens in alone] == [20, 21, 22, 23]


@pytest.mark.process
def test_an_edge_package_runs_it(folders: dict[str, Path], tmp_path: Path) -> None:
    archive = tmp_path / "story.tar.gz"
    done = command("package", folders["custom"], "--for", "edge", "-o", archive)
    assert done.returncode == 0, done.stderr
    tested = smoke_test(opened(archive, tmp_path / "opened"))
    assert tested.returncode == 0, tested.stderr
    assert "portable     writes 8 tokens" in tested.stdout


def test_what_was_asked_is_said(tmp_path: Path) -> None:
    fast = ("--recipe", "paper", "--calibration", "random", *RANDOM_FEW)
    done = command("convert", MODEL, "-o", tmp_path / "out", "--kv-cache", "int8", *fast)
    assert done.returncode == 0, done.stderr
    assert "KV cache     int8 in 6 attentions, a scale for every channel" in done.stdout
    assert '"kv_cache": "int8"' in (tmp_path / "out" / "plan.json").read_text().splitlines()[0]
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    assert {i.type.tensor_type.elem_type for i in graph.input if "past" in i.name} == {
        onnx.TensorProto.INT8
    }
    done = command("convert", MODEL, "-o", tmp_path / "no", "--kv-cache", "int4", *fast)
    assert done.returncode != 0 and "--kv-cache 'int4' is not one of float, int8" in done.stderr
    done = command(
        "convert", MODEL, "-o", tmp_path / "no", "--kv-cache", "int8", "--equalize-only", *fast
    )
    assert done.returncode != 0 and "--equalize-only keeps all floats" in done.stderr
    assert not (tmp_path / "no").exists()
