"""Encoders for masked tokens, whose logits look like a decoder's."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from support.tiny_graphs import build

from fptq_onnx import Samples, convert
from fptq_onnx.calibration.feeds import Feeds
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import load_model
from fptq_onnx.runtime.decoder import open_decoder

BOTH_SIDES = "m = ReduceMean(x, axis)"
# The mean of a row of zeros and of the tokens up to it: what causal attention computes.
CAUSAL = "m = CumSum(x, axis)"


def save(folder, rng, mix, config=None, width="S"):
    text = f"""g (int64[B, {width}] input_ids, int64[B, {width}] attention_mask) =>
      (float[B, {width}, 50] logits) {{
        x = Gather(table, input_ids) {mix} y = Add(x, m) n = LayerNormalization(y, gain)
        h = MatMul(n, up) r = Relu(h) d = MatMul(r, down) z = Add(d, y)
        logits = MatMul(z, head) }}"""
    weights = {
        "table": rng.standard_normal((50, 32)), "gain": np.ones(32),
        "up": rng.standard_normal((32, 64)), "down": rng.standard_normal((64, 32)),
        "head": rng.standard_normal((32, 50)),
    }  # fmt: skip
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    axis = np.array(1) if "CumSum" in mix else np.array([1])
    ir.save(build(text, arrays | {"axis": axis}), folder / "model.onnx")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("mix", "architecture", "encoder"),
    [
        (BOTH_SIDES, None, True),
        (CAUSAL, None, False),
        (BOTH_SIDES, "RobertaForMaskedLM", True),
        (CAUSAL, "GPT2LMHeadModel", False),
        (BOTH_SIDES, "BertLMHeadModel", True),  # without is_decoder it reads both sides
        (CAUSAL, "RobertaForCausalLM", False),
        (BOTH_SIDES, "RobertaForCausalLM", True),
    ],
)
@pytest.mark.parametrize("width", ["S", "6"])
def test_it_is_calibrated_and_judged_as_what_it_is(
    tmp_path, rng, mix, architecture, encoder, width
):
    config = None if architecture is None else {"architectures": [architecture]}
    (tmp_path / "in").mkdir()
    save(tmp_path / "in", rng, mix, config, width)
    samples = Samples(max_samples=4, max_seq_len=6)
    said = []
    result = convert(
        tmp_path / "in",
        tmp_path / "out",
        samples=samples,
        quiet=True,
        verify_samples=2,
        say=said.append,
    )
    assert isinstance(samples.open(load_model(tmp_path / "in")), Feeds) == encoder
    verification = result.reports["custom"].verification
    assert ("outputs" in verification) == encoder and ("kl" in verification) == (not encoder)
    (line,) = (line for line in said if line.startswith("check"))
    assert ("SQNR" in line) == encoder and ("top-1" in line) == (not encoder)


def test_text_is_not_written_by_an_encoder_for_masked_tokens(tmp_path, rng):
    save(tmp_path, rng, BOTH_SIDES, {"architectures": ["RobertaForMaskedLM"]})
    with pytest.raises(FptqError, match=r"config\.json says RobertaForMaskedLM, which reads both"):
        open_decoder(tmp_path)


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"architectures": [7]}])
def test_a_config_that_names_no_class(tmp_path, rng, config):
    save(tmp_path, rng, BOTH_SIDES, config)
    samples = Samples(max_samples=2, max_seq_len=6)
    convert(tmp_path, dry_run=True, samples=samples, quiet=True)
    assert isinstance(samples.open(load_model(tmp_path)), Feeds)
