"""Text to documents, to tokens, to windows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from fptq_onnx.errors import FptqError
from fptq_onnx.model_configs import read_config, read_special_ids
from fptq_onnx.text import (
    check_vocabulary,
    cut_windows,
    first_tokens,
    first_windows,
    load_tokenizer,
    read_documents,
)

DEMO = Path(__file__).resolve().parents[1] / "models" / "tinystories-7m"
BOS = 1


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    return load_tokenizer(DEMO)


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_txt_documents_end_at_separator_lines(tmp_path: Path) -> None:
    text = "One.\n\n still one \n<|endoftext|>\nTwo <|endoftext|> inside.\n<|endoftext|>\n\n"
    path = written(tmp_path / "a.txt", text)
    assert read_documents(path) == (["One.\n\n still one", "Two <|endoftext|> inside."], False)


def test_txt_without_separator_is_one_document(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "\ufeffOne.\n\nAlso one.\n")
    assert read_documents(path) == (["One.\n\nAlso one."], False)


def test_txt_windows_line_ends(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "One.\r\n<|endoftext|>\r\nTwo.\r\n")
    assert read_documents(path)[0] == ["One.", "Two."]


def test_jsonl_takes_the_field(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "A", "body": "B"}\n\n{"text": "C", "body": "D"}')
    assert read_documents(path) == (["A", "C"], False)
    assert read_documents(path, text_field="body") == (["B", "D"], False)


@pytest.mark.parametrize(
    ("second_line", "message"),
    [
        ("{broken", "line 2 is not JSON"),
        ('{"other": "x"}', 'line 2 has no field "text"'),
        ('"text"', 'line 2 has no field "text"'),
        ('{"text": 3}', "line 2: the field"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path: Path, second_line: str, message: str) -> None:
    path = written(tmp_path / "a.jsonl", f'{{"text": "A"}}\n{second_line}\n')
    with pytest.raises(FptqError, match=message):
        read_documents(path)


def test_unreadable_text(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(FptqError, match="not UTF-8"):
        read_documents(tmp_path / "latin.txt")
    with pytest.raises(FptqError, match="cannot read the text"):
        read_documents(tmp_path / "none.txt")


def test_bos_heads_every_document(tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    path = written(tmp_path / "a.txt", "A cat.\n<|endoftext|>\nA dog.\n")
    cat, dog = (
        tokenizer.encode(text, add_special_tokens=False).ids for text in ("A cat.", "A dog.")
    )
    assert BOS not in (*cat, *dog)
    assert first_tokens(path, tokenizer, 99, bos=BOS).tolist() == [BOS, *cat, BOS, *dog]
    assert first_tokens(path, tokenizer, 99, bos=None).tolist() == [*cat, *dog]
    assert first_tokens(path, tokenizer, 3, bos=BOS).tolist() == [BOS, *cat][:3]


def test_a_bounded_read_gives_the_tokens_of_the_whole(tmp_path: Path) -> None:
    # Words of 40 characters are more than a token is guessed to be: reads must grow, and for some
    # of these counts a read ends inside the last word wanted.
    words = [f"{number:040d}" for number in range(200)]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate([*words, "?"])}, "?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    path = written(tmp_path / "long.txt", " ".join(words))
    for count in range(1, 200):
        assert first_tokens(path, tokenizer, count, bos=None).tolist() == list(range(count))


def test_a_large_text_is_not_read_to_its_end(
    tmp_path: Path, tokenizer: tokenizers.Tokenizer
) -> None:
    path = tmp_path / "large.txt"
    # The invalid byte far behind would raise if it were read (files are read in 8 KB pieces).
    path.write_bytes(b"A cat sat. " * 100_000 + b"\xff")
    assert len(first_tokens(path, tokenizer, 100, bos=BOS)) == 100


def test_windows() -> None:
    lengths = [len(window) for window in cut_windows(np.arange(100), 30)]
    assert lengths == [30, 30, 30]  # the rest, 10, is too short
    assert [len(window) for window in cut_windows(np.arange(106), 30)] == [30, 30, 30, 16]
    assert [len(window) for window in cut_windows(np.arange(5), 30)] == [5]
    assert cut_windows(np.arange(0), 30) == []
    assert np.concatenate(cut_windows(np.arange(106), 30)).tolist() == list(range(106))


def test_first_windows_of_an_empty_text(tmp_path: Path) -> None:
    with pytest.raises(FptqError, match="is empty"):
        first_windows(written(tmp_path / "a.txt", " \n"), DEMO, count=2, length=8)


def test_tokenizer_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(FptqError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FptqError, match="cannot read"):
        load_tokenizer(tmp_path)


def test_stored_truncation_is_switched_off(tmp_path: Path) -> None:
    stored = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    stored.enable_truncation(4)
    stored.enable_padding(length=8)
    stored.save(str(tmp_path / "tokenizer.json"))
    text = "A cat sat on a mat and looked at the bird."
    expected = load_tokenizer(DEMO).encode(text).ids
    assert load_tokenizer(tmp_path).encode(text).ids == expected
    assert len(expected) > 8


def test_vocabulary_larger_than_the_model(tokenizer: tokenizers.Tokenizer) -> None:
    check_vocabulary(tokenizer, 2048, "the model")
    check_vocabulary(tokenizer, None, "the model")
    with pytest.raises(FptqError, match="ids up to 2047 but the model knows only 2047"):
        check_vocabulary(tokenizer, 2047, "the model")


def test_special_ids_in_order_of_trust(tmp_path: Path) -> None:
    def put(name: str, content: object) -> None:
        (tmp_path / name).write_text(json.dumps(content))

    assert read_special_ids(tmp_path).bos is None
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    put(
        "tokenizer_config.json",
        {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "model_max_length": 1e30},
    )
    named = read_special_ids(tmp_path)
    assert (named.bos, named.eos, named.context_length) == (1, (2,), None)
    put("generation_config.json", {"bos_token_id": 11, "eos_token_id": [12, 13]})
    generation = read_special_ids(tmp_path)
    assert (generation.bos, generation.eos) == (11, (12, 13))
    put("config.json", {"bos_token_id": 21, "vocab_size": 500, "max_position_embeddings": 64})
    config = read_special_ids(tmp_path)
    assert (config.bos, config.eos) == (21, (12, 13))
    assert (config.vocab_size, config.context_length) == (500, 64)
    put("genai_config.json", {"model": {"bos_token_id": 31, "context_length": 32}})
    genai = read_special_ids(tmp_path)
    assert (genai.bos, genai.vocab_size, genai.context_length) == (31, 500, 32)


def test_broken_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(FptqError, match="no JSON object"):
        read_config(tmp_path, "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FptqError, match="cannot read"):
        read_config(tmp_path, "config.json")
