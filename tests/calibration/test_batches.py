"""Converted models write the same tokens in batches, padded, and with a KV cache.

Float sums of another order move float logits by 1e-6 of the largest. Int8 codes hide that, or one
of them flips, a step of 1 in 127 in one channel: 0.7 % of the largest logit was seen.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.any_feeds import HandFed, Logits
from support.command_line import MODEL

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.scheme.config import PAPER

SHARED = Path(os.environ.get("FPTQ_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
SOURCES = {"embedded": MODEL} | {
    path.name: path for path in sorted((SHARED / "onnx").glob("*")) if path.is_dir()
}


def check_same(found: Logits, expected: Logits) -> None:
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.argmax(axis=-1), expected.argmax(axis=-1))
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_tokens_do_not_depend_on_how_they_are_fed(rng, name, tmp_path):
    result = convert(
        SOURCES[name],
        tmp_path / "out",
        samples=Samples("random", max_samples=2, max_seq_len=32),
        config=replace(PAPER, v0=3.3, v1=5.0),  # ranges are small: several schemes
        verify_samples=0,
    )
    assert sum(count > 0 for count in result.plan.counts().values()) >= 2
    model = HandFed(tmp_path / "out")
    ids = rng.integers(3, model.io.vocab_size or 512, (3, 24)).astype(np.int64)
    alone = np.concatenate([model.whole(row[None]) for row in ids])
    check_same(model.whole(ids), alone)
    rows = [ids[0], ids[1][:17], ids[2][:9]]
    # GroupQueryAttention takes lengths from the mask: its rows begin at the first column, in the
    # float model as well.
    side = "right" if "genai" in name or name == "embedded" else "left"
    for found, expected in zip(model.padded(rows, side), alone, strict=True):
        check_same(found, expected[: len(found)])
    if model.io.cache:
        check_same(model.by_steps(ids, prefill=13), alone)
    # Another token earlier in the row is not the same: the comparison can fail.
    ids[:, 5] = 3 + (ids[:, 5] - 2) % 100
    changed = model.whole(ids)
    assert np.abs(changed[:, 6:] - alone[:, 6:]).max() > 0.02 * np.abs(alone).max()
    np.testing.assert_array_equal(changed[:, :5], alone[:, :5])
