"""Converted models where users run them: onnxruntime-genai and optimum write the tokens we write.

Needs the extra export: make test-export.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnxruntime as ort
import pytest
from support.command_line import RANDOM_FEW, command
from support.hf_models import small_llama

import fptq_onnx
from fptq_onnx.generation.greedy import generate
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.text.windows import load_tokenizer

genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai: make test-export")
pytest.importorskip("optimum.onnxruntime", reason="needs optimum-onnx: make test-export")

pytestmark = pytest.mark.process

SHARED = Path(os.environ.get("FPTQ_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
SOURCES = ["random", *(["trained"] if (SHARED / "hf").is_dir() else [])]
NEW = 30


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "trained":
        return SHARED / "hf" / "tinystories-7m-outliers"
    return small_llama(tmp_path_factory.mktemp("hf") / "llama")


@pytest.fixture(scope="module", params=["genai", "optimum", "dynamo"])
def converted(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`export`, then `convert`, as a user does."""
    work = tmp_path_factory.mktemp("work")
    for arguments in (
        ("export", source, "-o", work / "onnx", "--exporter", request.param),
        ("convert", work / "onnx", "-o", work / "w4a8", "--recipe", "paper", "--calibration",
         "random", *RANDOM_FEW),
    ):  # fmt: skip
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
    return work / "w4a8"


def prompt(folder: Path) -> list[int]:
    return [1, *load_tokenizer(folder).encode("Once upon a time", add_special_tokens=False).ids]


def ours(folder: Path) -> list[int]:
    ids = prompt(folder)
    return [*ids, *generate(open_decoder(folder, threads=1), ids, NEW, eos=[2])]


def with_genai(folder: Path) -> list[int]:
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    ids = prompt(folder)
    settings.set_search_options(max_length=len(ids) + NEW, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    tokens = [int(token) for token in generator.get_sequence(0)]
    return tokens[:-1] if tokens[-1] == 2 else tokens


def test_optimum_writes_our_tokens(converted: Path) -> None:
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    options = ort.SessionOptions()
    fptq_onnx.register(options)
    model = ORTModelForCausalLM.from_pretrained(converted, session_options=options)
    ids = torch.tensor([prompt(converted)])
    done = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW
    )
    tokens = done[0].tolist()
    expected = ours(converted)
    assert (tokens[:-1] if tokens[-1] == 2 else tokens) == expected
    assert len(expected) > 10


def test_genai_writes_our_tokens(converted: Path) -> None:
    config_file = converted / "genai_config.json"
    if not config_file.is_file():
        pytest.skip("optimum-onnx and dynamo write no genai_config.json")
    decoder = json.loads(config_file.read_text())["model"]["decoder"]
    assert decoder["session_options"]["custom_ops_library"] == "libfptq_ort_ops.so"
    assert with_genai(converted) == ours(converted)


def test_genai_needs_the_library_we_put_there(converted: Path, tmp_path: Path) -> None:
    if not (converted / "genai_config.json").is_file():
        pytest.skip("optimum-onnx and dynamo write no genai_config.json")
    for file in converted.iterdir():
        if file.name != "libfptq_ort_ops.so":
            os.link(file, tmp_path / file.name)
    with pytest.raises(Exception, match="libfptq_ort_ops"):
        genai.Model(str(tmp_path))
