"""Whole models: fused or not, whatever the kernel and the number of threads, the same text."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.conversion_cache import ConversionCache

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.generation.greedy import generate
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.scheme.config import PAPER
from fptq_onnx.text.windows import load_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
EMBEDDED = REPOSITORY / "models" / "tinystories-7m"
SHARED = Path(os.environ.get("FPTQ_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "onnx"
MODELS = [
    EMBEDDED,
    SHARED / "tinystories-7m-genai",
    SHARED / "tinystories-7m-outliers-genai",
    SHARED / "tinystories-7m-outliers-optimum",
]


@pytest.fixture(scope="module", params=MODELS, ids=lambda path: path.name)
def both(request: pytest.FixtureRequest, conversions: ConversionCache) -> list[Path]:
    """The model converted with and without fusion; the paper's recipe, which needs no solving."""
    source: Path = request.param
    if not source.is_dir():
        pytest.skip(f"no model at {source}")
    samples = Samples("random", max_samples=4, max_seq_len=64)
    return [
        conversions.convert(
            name, source, samples=samples, config=replace(PAPER, fuse=fuse), verify_samples=0
        )
        for name, fuse in (("fused", True), ("plain", False))
    ]


def continuation(folder: Path, threads: int) -> list[int]:
    ids = load_tokenizer(EMBEDDED).encode("Once upon a time", add_special_tokens=False).ids
    return list(generate(open_decoder(folder, threads=threads), [1, *ids], 24))


# The op's results do not depend on kernel, fusion or threads to the last bit, except that the
# fused gate rounds differently from ONNX Runtime's Sigmoid (docs/numerics.md): the text must be
# equal because greedy choices of these models are far further apart than that.
def test_same_text(both: list[Path], each_kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        f"{folder.name}, {threads} threads, {each_kernel}": continuation(folder, threads)
        for folder in both
        for threads in (1, 2)
    }
    monkeypatch.setenv("FPTQ_FORCE_KERNEL", "scalar")
    want = continuation(both[1], 1)
    assert len(want) == 24
    assert {name: text for name, text in texts.items() if text != want} == {}
