"""An export is compared with its reference, with cache and without; a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.command_line import MODEL
from support.tiny_graphs import build

from fptq_onnx.errors import FptqError
from fptq_onnx.exporting.check_export import TOLERANCE, check_export
from fptq_onnx.runtime.decoder import open_decoder

FILE = MODEL / "model.onnx"


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    """What the embedded model computes in one go."""
    ids = np.random.default_rng(3).integers(3, 2048, (2, 9))
    logits = open_decoder(FILE, threads=1).forward(ids).logits
    assert logits is not None
    return {"input_ids": ids, "logits": logits}


def test_the_same_model(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", **reference)
    # Steps with the cache sum in another order than one forward: float32 rounding, 1e-5 at most.
    assert check_export(FILE, tmp_path / "r.npz", causal=True, threads=1) < 1e-5


@pytest.mark.parametrize("position", [0, 4, 5, 8])
def test_one_wrong_position(
    reference: dict[str, np.ndarray], tmp_path: Path, position: int
) -> None:
    logits = reference["logits"].copy()
    logits[1, position, 7] += 2 * TOLERANCE * np.abs(logits).max()
    np.savez(tmp_path / "r.npz", input_ids=reference["input_ids"], logits=logits)
    with pytest.raises(FptqError, match="the export is wrong: it differs from the torch model by"):
        check_export(FILE, tmp_path / "r.npz", causal=True, threads=1)


def test_another_vocabulary_and_nan(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    ids, logits = reference["input_ids"], reference["logits"]
    np.savez(tmp_path / "r.npz", input_ids=ids, logits=logits[..., :-1])
    with pytest.raises(FptqError, match=r"gives \[2, 9, 2048\] where torch gives \[2, 9, 2047\]"):
        check_export(FILE, tmp_path / "r.npz", causal=True, threads=1)
    np.savez(tmp_path / "r.npz", input_ids=ids, logits=np.full_like(logits, np.nan))
    with pytest.raises(FptqError, match="the export is wrong"):
        check_export(FILE, tmp_path / "r.npz", causal=True, threads=1)


def test_an_encoder(tmp_path: Path) -> None:
    import onnx_ir as ir

    text = (
        "g (int64[B, S] input_ids, int64[B, S] attention_mask, int64[B, S] token_type_ids)"
        " => (float[B, S, 4] last_hidden_state)"
        " { s = Sub(input_ids, token_type_ids) h = Gather(table, s) m = Cast<to = 1>"
        "(attention_mask) u = Unsqueeze(m, last) last_hidden_state = Mul(h, u) }"
    )
    table = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    ir.save(build(text, {"table": table, "last": np.array([-1])}), tmp_path / "model.onnx")
    ids = np.arange(16).reshape(2, 8)
    np.savez(tmp_path / "r.npz", input_ids=ids, last_hidden_state=table[ids])
    assert (
        check_export(
            tmp_path / "model.onnx", tmp_path / "r.npz", causal=False, output="last_hidden_state"
        )
        == 0
    )
    np.savez(tmp_path / "r.npz", input_ids=ids, last_hidden_state=table[ids[::-1]])
    with pytest.raises(FptqError, match="the export is wrong"):
        check_export(
            tmp_path / "model.onnx", tmp_path / "r.npz", causal=False, output="last_hidden_state"
        )
