"""Texts as Windows and its editors write them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.command_line import MODEL, RANDOM_FEW, command

from fptq_onnx.calibration.data import open_source
from fptq_onnx.errors import FptqError
from fptq_onnx.generation.chat_template import load_chat_template
from fptq_onnx.model_io.hf_config import read_config, read_special_ids
from fptq_onnx.model_io.tensor_spec import TensorSpec
from fptq_onnx.model_io.text_encoding import read_text
from fptq_onnx.scheme.plan import Plan
from fptq_onnx.text.windows import load_tokenizer, read_documents

TEXT = "Erste Zeile: für Ärger\n<|endoftext|>\nZweite: 模型\n"
MARKED = {
    "plain": lambda text: text.encode(),
    "mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "crlf": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "utf-16-le": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "utf-16-be": lambda text: b"\xfe\xff" + text.replace("\n", "\r\n").encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
}


@pytest.fixture(params=MARKED)
def encode(request):
    return MARKED[request.param]


def test_texts(tmp_path: Path, encode) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(encode(TEXT))
    assert read_text(file) == TEXT
    assert read_documents(file) == (["Erste Zeile: für Ärger", "Zweite: 模型"], False)
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(encode('{"text": "eins ä"}\n\n{"text": "zwei"}\n'))
    assert read_documents(lines)[0] == ["eins ä", "zwei"]


def test_utf_16_without_a_mark_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(TEXT.encode("utf-16-le"))
    with pytest.raises(FptqError, match=r"holds zero bytes, as UTF-16 text .* save it as UTF-8"):
        read_documents(file)


def test_latin_1_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(TEXT[:20].encode("latin-1"))
    with pytest.raises(FptqError, match=r"is not UTF-8 text .* save it as UTF-8"):
        read_documents(file)
    (tmp_path / "config.json").write_bytes('{"a": "ä"}'.encode("latin-1"))
    with pytest.raises(FptqError, match="save it as UTF-8"):
        read_config(tmp_path, "config.json")


def test_the_files_beside_a_model(tmp_path: Path, encode) -> None:
    folder = Path(shutil.copytree(MODEL, tmp_path / "m"))
    ids = load_tokenizer(MODEL).encode("Once upon a time").ids
    special = read_special_ids(MODEL)
    for name in ("tokenizer.json", "tokenizer_config.json", "genai_config.json"):
        (folder / name).write_bytes(encode((folder / name).read_text()))
    (folder / "chat_template.jinja").write_bytes(
        encode("{% for m in messages %}\n{{ m.content }}\n{% endfor %}")
    )
    assert load_tokenizer(folder).encode("Once upon a time").ids == ids
    assert read_special_ids(folder) == special
    assert load_chat_template(folder).render([{"role": "user", "content": "x"}]) == "x\n"


def test_a_conversion_of_marked_files_gives_plain_ones(tmp_path: Path) -> None:
    """Other programs read the output too: transformers, onnxruntime-genai."""
    folder = Path(shutil.copytree(MODEL, tmp_path / "m"))
    for name in ("tokenizer.json", "tokenizer_config.json", "genai_config.json"):
        (folder / name).write_bytes(MARKED["mark"]((folder / name).read_text()))
    text = tmp_path / "t.txt"
    text.write_bytes(MARKED["utf-16-le"]("Once upon a time there was a dog. " * 30))
    plan = tmp_path / "plan.json"
    few = ("--recipe", "paper", *RANDOM_FEW, "--calibration", text, "--verify-samples", "0", "-q")
    done = command("convert", folder, "-o", tmp_path / "o", *few)
    assert done.returncode == 0, done.stderr
    for name in ("tokenizer.json", "tokenizer_config.json", "genai_config.json"):
        json.loads((tmp_path / "o" / name).read_bytes().decode())  # refuses a mark
    plan.write_bytes(MARKED["crlf"]((tmp_path / "o" / "plan.json").read_text()))
    assert Plan.load(plan) == Plan.load(tmp_path / "o" / "plan.json")


@pytest.mark.process
def test_a_piped_prompt_with_a_mark() -> None:
    """PowerShell puts one before what it pipes."""
    words = [sys.executable, "-m", "fptq_onnx", "run", str(MODEL), "--max-tokens", "3"]
    given = [b"Once upon a time", b"\xef\xbb\xbfOnce upon a time\r\n"]
    told = [subprocess.run(words, input=one, capture_output=True, check=True).stdout
            for one in given]  # fmt: skip
    assert told[0] == told[1]


IDS = [TensorSpec("ids", "int64", ("b", "s")), TensorSpec("mask", "int64", ("b", "s"))]


def source(feeds, inputs):
    return open_source(feeds, model_folder=Path(), inputs=inputs, vocab_size=None, max_samples=4,
                       max_seq_len=8)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64, np.uint64, np.int16])
def test_integers_of_another_width(tmp_path: Path, dtype) -> None:
    """NumPy 1 on Windows makes int32 of [1, 2, 3]; the values are the same."""
    ids = np.array([[1, 2, 100]], dtype)
    np.savez(tmp_path / "a.npz", ids=ids, mask=np.ones((1, 3), bool))
    (found,) = source(tmp_path / "a.npz", IDS).samples
    assert {name: array.dtype for name, array in found.items()} == {"ids": "int64", "mask": "int64"}
    np.testing.assert_array_equal(found["ids"], [[1, 2, 100]])
    np.testing.assert_array_equal(found["mask"], [[1, 1, 1]])


def test_integers_that_would_change_are_refused() -> None:
    narrow = [TensorSpec("ids", "int32", (None, None))]
    (found,) = source([{"ids": np.array([[7]])}], narrow).samples
    assert found["ids"].dtype == np.int32
    for value in (1 << 40, -(1 << 40)):
        with pytest.raises(FptqError, match="the dtype differs"):
            source([{"ids": np.array([[value]])}], narrow)
    with pytest.raises(FptqError, match="the dtype differs"):
        source([{"ids": np.array([[1.0]])}], narrow)
    with pytest.raises(FptqError, match="the dtype differs"):  # an integer is no float
        source([{"x": np.array([[1]])}], [TensorSpec("x", "float32", (None, None))])
