from __future__ import annotations

import json
from pathlib import Path

import pytest

from fptq_onnx.model_io.tokenizer_files import SIDE_FILES, copy_side_files


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    return tmp_path / "in", tmp_path / "out"


def test_what_is_known_is_copied_and_nothing_else(folders: tuple[Path, Path]) -> None:
    source, target = folders
    for name in SIDE_FILES:
        (source / name).write_bytes(name.encode())
    for name in ("model.onnx", "secrets.txt", "notes.json"):
        (source / name).write_text("no")
    (source / "assets").mkdir()
    assert sorted(copy_side_files(source, target, "model.onnx")) == sorted(SIDE_FILES)
    assert sorted(path.name for path in target.iterdir()) == sorted(SIDE_FILES)
    assert (target / "merges.txt").read_bytes() == b"merges.txt"


def test_a_folder_without_any(folders: tuple[Path, Path]) -> None:
    assert copy_side_files(*folders, "model.onnx") == ()


def genai(name: str) -> dict[str, object]:
    return {"model": {"type": "llama", "decoder": {"filename": name, "head_size": 32}}, "search": 1}


def test_genai_config_points_to_the_written_model(folders: tuple[Path, Path]) -> None:
    source, target = folders
    before = json.dumps(genai("decoder_fp32.onnx"))
    (source / "genai_config.json").write_text(before)
    copy_side_files(source, target, "model.onnx")
    assert json.loads((target / "genai_config.json").read_text()) == genai("model.onnx")
    assert (source / "genai_config.json").read_text() == before


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(genai("model.onnx"), indent=1),  # right already: kept to the byte
        "not json",
        '{"model": 3}',
        '{"model": {"encoder": {}}}',
        "[1]",
    ],
)
def test_a_genai_config_that_needs_no_or_allows_no_change(
    folders: tuple[Path, Path], text: str
) -> None:
    source, target = folders
    (source / "genai_config.json").write_text(text)
    assert copy_side_files(source, target, "model.onnx") == ("genai_config.json",)
    assert (target / "genai_config.json").read_text() == text


def test_linked_files_are_copied_as_files(folders: tuple[Path, Path]) -> None:
    """A hub's cache keeps them as links; the output must not depend on it."""
    source, target = folders
    (source.parent / "blob").write_text("{}")
    (source / "config.json").symlink_to(source.parent / "blob")
    assert copy_side_files(source, target, "model.onnx") == ("config.json",)
    assert not (target / "config.json").is_symlink()


def test_the_library_goes_where_genai_looks_for_it(folders: tuple[Path, Path]) -> None:
    source, target = folders
    before = genai("decoder.onnx")
    before["model"]["decoder"]["session_options"] = {"log_id": "x", "provider_options": []}  # type: ignore[index]
    (source / "genai_config.json").write_text(json.dumps(before))
    library = source.parent / "libops.so"
    library.write_bytes(b"elf")
    assert copy_side_files(source, target, "model.onnx", library) == ("genai_config.json",)
    decoder = json.loads((target / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["session_options"] == {
        "log_id": "x",
        "provider_options": [],
        "custom_ops_library": "libops.so",
    }
    assert decoder["filename"] == "model.onnx" and decoder["head_size"] == 32
    assert (target / "libops.so").read_bytes() == b"elf"


def test_no_library_without_genai(folders: tuple[Path, Path]) -> None:
    source, target = folders
    (source / "config.json").write_text("{}")
    library = source.parent / "libops.so"
    library.write_bytes(b"elf")
    copy_side_files(source, target, "model.onnx", library)
    assert [path.name for path in target.iterdir()] == ["config.json"]
