"""Files that only stand for the ones meant are named as what they are."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
from support.command_line import MODEL, RANDOM_FEW, refused
from support.saved_models import DATA_NAME, saved

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.downloaded_file import check_downloaded, check_model_downloaded
from fptq_onnx.model_io.load import load_model
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.text.windows import load_tokenizer, read_documents

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)
PAGES = (
    b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>",
    b"\n\n  <html lang='en'><body>404</body></html>",
    b"\xef\xbb\xbf<!doctype HTML><p>",
    b'<?xml version="1.0" encoding="UTF-8"?>\n<html xmlns="x">',
    b"<!-- 404\n page -->\n<!DOCTYPE html>\n<p>",
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json",
                                  "tokenizer_config.json", "genai_config.json"])  # fmt: skip
@pytest.mark.parametrize(
    ("content", "saying"), [(POINTER, "run `git lfs pull`"), (PAGES[0], "is a web page (HTML)")]
)
def test_convert(copy: Path, tmp_path: Path, name: str, content: bytes, saying: str) -> None:
    (copy / name).write_bytes(content)
    done = refused("convert", copy, "-o", tmp_path / "o", *RANDOM_FEW, saying=saying)
    assert str(copy / name) in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_run(copy: Path, name: str) -> None:
    (copy / name).write_bytes(POINTER)
    refused("run", copy, "x", saying="is a Git LFS pointer")
    if name != "tokenizer.json":
        with pytest.raises(FptqError, match="is a Git LFS pointer, not the file itself"):
            open_decoder(copy, threads=1)


@pytest.mark.parametrize("page", PAGES)
def test_web_pages(tmp_path: Path, page: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(page)
    with pytest.raises(FptqError, match="perhaps a login or an error page was saved under"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("content", "saying"),
    [
        (b"", "an empty file"),
        (b"Entry not found", "a text that begins with 'Entry not found'"),
        (b'{"error": "Repository not found"}\r\n', 'a text that begins with \'{"error"'),
        ("Zugriff verweigert: ä".encode() * 200, "a text that begins with 'Zugriff"),
        (b"PK\x03\x04" + bytes(50), "a zip archive: unpack it"),
        (gzip.compress(b"model", mtime=0), "compressed by gzip"),
        (b"GGUF" + bytes(50), "a GGUF model"),
    ],
)
def test_what_else_is_no_model(tmp_path: Path, content: bytes, saying: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(FptqError) as caught:
        check_model_downloaded(tmp_path / "model.onnx")
    assert f"is not an ONNX model but {saying}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_pointers(tmp_path: Path) -> None:
    for content, saying in (
        (b"/annex/objects/SHA256E-s5--abc.onnx\n", "git annex get"),
        (b"# xet version 0\n", "is a pointer"),
    ):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(FptqError, match=saying):
            check_downloaded(tmp_path / "model.onnx")


def test_good_files_pass(tmp_path: Path) -> None:
    file = saved(tmp_path)
    for path in (file, tmp_path / DATA_NAME, tmp_path / "nowhere", MODEL / "tokenizer.json"):
        check_downloaded(path)
    check_model_downloaded(file)
    load_tokenizer(MODEL)


def test_texts(tmp_path: Path) -> None:
    """A text about web pages is a text; a pointer is none, and a page is no list of objects."""
    text = tmp_path / "a.txt"
    text.write_bytes(PAGES[0])
    assert read_documents(text)[0]
    text.write_bytes(POINTER)
    with pytest.raises(FptqError, match="git lfs pull"):
        read_documents(text)


@pytest.mark.parametrize("page", PAGES)
def test_a_web_page_is_no_list_of_objects(tmp_path: Path, page: bytes) -> None:
    data = tmp_path / "a.jsonl"
    data.write_bytes(page)
    with pytest.raises(FptqError, match=r"a\.jsonl is a web page \(HTML\)"):
        read_documents(data)
    data.write_bytes(b'{"text": "<!DOCTYPE html>"}\n')
    assert read_documents(data) == (["<!DOCTYPE html>"], False)


def test_commands_name_a_web_page_given_as_data(tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_bytes(PAGES[0])
    said = "is a web page (HTML)"
    refused("convert", MODEL, "-o", tmp_path / "o", "--calibration", data, saying=said)
    refused("eval", MODEL, "--data", data, saying=said)
    assert not (tmp_path / "o").exists()
