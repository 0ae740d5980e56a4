"""Models fed with activations, not tokens, by the default recipe: samples are dicts of arrays."""

from __future__ import annotations

import numpy as np
import pytest
from support.blocks import HEAD, H, blocks_model, fused_attention, fused_gated, plain, sequential
from support.saved_models import saved

from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.scheme.config import Config


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(
    "text", [sequential(2, fused_attention, fused_gated), sequential(2, mlp=plain, last="fc2")]
)
def test_dicts_serve_statistics_the_walk_and_the_check(rng, tmp_path, once, text):
    saved(tmp_path / "model", blocks_model(rng, text + HEAD))
    samples = [{"x": rng.standard_normal((2, 3, H)).astype(np.float32)} for _ in range(120)]
    result = convert(
        tmp_path / "model",
        tmp_path / "out",
        targets=("custom", "matmulnbits", "qdq"),
        samples=iter(samples) if once else samples,
    )
    for report in result.reports.values():
        (output,) = report.verification["outputs"]
        assert output["sqnr_db"] > 8  # 4-bit codes of 8 to 12 channels give 10 and more, noise 0


def test_a_linear_that_no_output_depends_on_is_left_out(rng, tmp_path):
    """An encoder whose second output, a pooler's, was cut off."""
    text = (
        sequential(1, fused_attention, plain, last="fc2") + " pooler = MatMul(l0n2, l0_Wu)" + HEAD
    )
    saved(tmp_path / "model", blocks_model(rng, text))
    samples = [{"x": rng.standard_normal((2, 3, H)).astype(np.float32)} for _ in range(20)]
    result = convert(
        tmp_path / "model",
        tmp_path / "out",
        targets=("custom", "matmulnbits", "qdq"),
        config=Config(equalization="lae", activation_scheme="thresholds", v0=0.0, v1=1e30),
        samples=samples,
    )
    assert result.reports["custom"].folded
    assert "pooler" not in {linear.name for linear in result.scan.linears}
