"""Calibration windows begin as texts do, and have no token that the model does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizer_setups import setup_folder

from fptq_onnx.calibration.data import TokenWindows, open_source
from fptq_onnx.errors import FptqError
from fptq_onnx.tensor_spec import TensorSpec


def tokens(spec: str, **settings: Any) -> TokenWindows:
    ids = TensorSpec("input_ids", "int64", ("batch", "sequence"))
    opened = open_source(spec, inputs=[ids], max_samples=4, max_seq_len=32, **settings)
    assert isinstance(opened, TokenWindows)
    return opened


@pytest.mark.parametrize("spec", ["random", "text"])
def test_windows_begin_as_the_tokenizer_says(tmp_path: Path, spec: str) -> None:
    text = tmp_path / "a.txt"
    text.write_text("Once upon a time there was a dog.")
    source = str(text) if spec == "text" else spec
    folder = setup_folder(tmp_path / "two", "glm, two ids before")
    for window in tokens(source, vocab_size=None, model_folder=folder).windows:
        assert window[:2].tolist() == [2077, 2078]
    with pytest.raises(
        FptqError, match=r"'\[gMASK\]' \(id 2077\), which the tokenizer puts around"
    ):
        tokens(source, vocab_size=2048, model_folder=folder)
    plain = setup_folder(tmp_path / "none", "qwen2, bos in config")
    windows = tokens(source, vocab_size=2048, model_folder=plain).windows
    assert any(window[0] != 1 for window in windows)


def test_a_token_beyond_the_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    folder = setup_folder(tmp_path / "m", "qwen2, bos in config")
    text = tmp_path / "a.txt"
    text.write_text("Once upon a <image> time")
    with pytest.raises(FptqError, match=r"token '<image>' \(id 2087\) is beyond the model's 2048"):
        tokens(str(text), vocab_size=2048, model_folder=folder)
