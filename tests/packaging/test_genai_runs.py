"""Packages in onnxruntime-genai itself write our tokens. Needs the extra: make test-export."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from support.command_line import MODEL, RANDOM_FEW, command

from fptq_onnx.generation.greedy import generate
from fptq_onnx.runtime.decoder import open_decoder

genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai: make test-export")

pytestmark = pytest.mark.process

PROMPT = [1, 432, 445, 261, 406]
NEW = 40
PROMPT_LENGTH = 5  # of "Once upon a time", with the token that begins a text


def ours(folder: Path) -> list[int]:
    return [*PROMPT, *generate(open_decoder(folder, threads=1), PROMPT, NEW, eos=[2])]


def theirs(folder: Path) -> list[int]:
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(PROMPT) + NEW, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    tokens = [int(token) for token in generator.get_sequence(0)]
    return tokens[:-1] if tokens[-1] == 2 else tokens


def packaged(converted: Path, place: Path) -> Path:
    done = command("package", converted, "--for", "genai", "-o", place)
    assert done.returncode == 0, done.stderr
    assert command("package", "--check", place).returncode == 0
    return place


@pytest.fixture(scope="module", params=["as exported", "without a configuration"])
def converted(
    request: pytest.FixtureRequest, both: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The embedded model; also as if its exporter had written no genai_config.json."""
    place = tmp_path_factory.mktemp("source") / "story"
    shutil.copytree(both, place)
    if request.param == "without a configuration":
        for folder in place.iterdir():
            (folder / "genai_config.json").unlink()
            (folder / "config.json").write_text(
                json.dumps({"max_position_embeddings": 256, "num_attention_heads": 8,
                            "num_key_value_heads": 4, "hidden_size": 256,
                            "bos_token_id": 1, "eos_token_id": 2})
            )  # fmt: skip
    return place


def test_it_writes_our_tokens(converted: Path, both: Path, tmp_path: Path) -> None:
    package = packaged(converted / "custom", tmp_path / "package")
    expected = ours(both / "custom")
    assert theirs(package) == expected
    assert len(expected) > 25


def test_the_portable_form_is_a_file_away(converted: Path, both: Path, tmp_path: Path) -> None:
    package = packaged(converted / "custom", tmp_path / "package")
    shutil.copy(package / "genai_config.portable.json", package / "genai_config.json")
    (package / "libfptq_ort_ops.so").unlink()
    assert theirs(package) == ours(both / "matmulnbits")


def test_an_int8_cache(tmp_path: Path) -> None:
    fast = ("--recipe", "paper", "--calibration", "random", *RANDOM_FEW)
    done = command("convert", MODEL, "-o", tmp_path / "story", "--kv-cache", "int8", *fast)
    assert done.returncode == 0, done.stderr
    package = packaged(tmp_path / "story", tmp_path / "package")
    expected = ours(tmp_path / "story")
    assert {item.dtype for item in open_decoder(package).io.cache} == {"int8"}
    assert theirs(package) == expected
    shutil.copy(package / "genai_config.portable.json", package / "genai_config.json")
    (package / "libfptq_ort_ops.so").unlink()
    assert len(theirs(package)) > 25


def test_the_readme_reads_text(both: Path, tmp_path: Path) -> None:
    """The program of the README as it stands, in a folder of another name."""
    package = packaged(both / "custom", tmp_path / "elsewhere")
    text = (package / "README.md").read_text()
    program = text.split("```python\n")[1].split("```")[0]
    here = Path.cwd()
    os.chdir(package)
    try:
        namespace: dict[str, object] = {}
        exec(compile(program, "README.md", "exec"), namespace)
    finally:
        os.chdir(here)
    tokens = [int(one) for one in namespace["generator"].get_sequence(0)]  # type: ignore[attr-defined]
    written = command(
        "run", package, "Once upon a time", "--ids", "--max-tokens", 64 - PROMPT_LENGTH
    )
    expected = [int(word) for word in written.stdout.split()]
    assert tokens[PROMPT_LENGTH:][: len(expected)] == expected
    assert len(expected) > 20


def test_without_the_library_it_says_so(both: Path, tmp_path: Path) -> None:
    package = packaged(both / "custom", tmp_path / "package")
    (package / "libfptq_ort_ops.so").unlink()
    with pytest.raises(Exception, match="libfptq_ort_ops"):
        genai.Model(str(package))


@pytest.mark.skipif(
    importlib.util.find_spec("optimum") is None, reason="needs the extra export: make test-export"
)
@pytest.mark.parametrize("exporter", ["optimum", "dynamo"])
def test_exports_that_bring_no_configuration(tmp_path: Path, exporter: str) -> None:
    from support.hf_models import small_llama

    source = small_llama(tmp_path / "hf" / "llama")
    for arguments in (
        ("export", source, "-o", tmp_path / "onnx", "--exporter", exporter),
        ("convert", tmp_path / "onnx", "-o", tmp_path / "w4a8", "--recipe", "paper",
         "--calibration", "random", *RANDOM_FEW),
    ):  # fmt: skip
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "w4a8" / "genai_config.json").exists()
    package = packaged(tmp_path / "w4a8", tmp_path / "package")
    assert theirs(package) == ours(tmp_path / "w4a8")
