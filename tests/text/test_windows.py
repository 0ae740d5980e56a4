import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.hf_config import SpecialIds, read_special_ids
from fptq_onnx.text import windows as text
from fptq_onnx.text.tokenizer import TextTokenizer, check_vocabulary, load_tokenizer
from fptq_onnx.text.windows import cut_windows, first_tokens, first_windows, read_documents

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "models" / "tinystories-7m"
SHARED = Path(os.environ.get("FPTQ_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.open(DEMO, None)


def write(path: Path, content: str) -> Path:
    path.write_text(content, "utf-8")
    return path


def dump(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def test_documents_of_a_txt(tmp_path: Path) -> None:
    content = "one\ntwo\n<|endoftext|>\n\n<|endoftext|>\nin a line <|endoftext|> it stays\n"
    path = write(tmp_path / "a.txt", content)
    documents, more = read_documents(path)
    assert documents == ["one\ntwo", "in a line <|endoftext|> it stays"]
    assert not more
    assert read_documents(path, max_chars=3) == (["one"], True)


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n<|endoftext|>\r\ntwo\r\n")
    assert read_documents(path) == (["one", "two"], False)


def test_documents_of_a_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n\n{"text": "two", "body": "x"}\n')
    assert read_documents(path) == (["one", "two"], False)
    with pytest.raises(FptqError, match=r'line 1 has no field "body".*--text-field'):
        read_documents(path, text_field="body")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', "line 2 is not JSON"),
        ("[1]", "line 2 has no field"),
        ('{"text": 3}', 'line 2: the field "text" is not text'),
    ],
)
def test_bad_jsonl_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "ok"}}\n{line}\n')
    with pytest.raises(FptqError, match=message):
        read_documents(path)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(FptqError, match="is not UTF-8 text"):
        read_documents(path)


def test_what_the_tokenizer_puts_around_a_text_is_around_each_document(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    path = write(tmp_path / "a.txt", "Once upon\n<|endoftext|>\na time")
    plain = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    one = plain.encode("Once upon", add_special_tokens=False).ids
    two = plain.encode("a time", add_special_tokens=False).ids
    assert 1 not in one + two
    assert first_tokens(path, tokenizer, 100).tolist() == [1, *one, 1, *two]
    assert first_tokens(path, tokenizer.alone(), 100).tolist() == one + two
    assert first_tokens(path, tokenizer, None).tolist() == [1, *one, 1, *two]
    several = replace(tokenizer, prefix=(7, 8), suffix=(9,))
    whole = [7, 8, *one, 9, 7, 8, *two, 9]
    assert first_tokens(path, several, None).tolist() == whole
    for count in range(1, len(whole) + 1):
        assert first_tokens(path, several, count).tolist() == whole[:count]


@pytest.mark.parametrize("separator", ["\n<|endoftext|>\n", " "])
def test_reading_less_gives_the_same_tokens(
    tmp_path: Path, tokenizer: TextTokenizer, separator: str
) -> None:
    # With " " the whole is one document, which a bounded read must cut somewhere. Runs of blanks
    # take many characters a token, so that the first guess of how much to read falls short.
    stories = ["Tim had a big red ball." + " " * 60 + f"He threw it {n} times." for n in range(400)]
    path = write(tmp_path / "a.txt", separator.join(stories))
    whole = first_tokens(path, tokenizer, 10**6)
    assert len(whole) > 4000
    for count in (1, 100, 1500, 4000):
        np.testing.assert_array_equal(first_tokens(path, tokenizer, count), whole[:count])


def test_no_token_comes_from_where_a_read_was_cut(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first read is then of 1024 characters. Blanks in front, which are no part of a document,
    # move its end to every place in a word.
    monkeypatch.setattr(text, "_CHARS_PER_TOKEN", 0)
    story = (DEMO / "heldout.txt").read_text("utf-8")
    whole = first_tokens(DEMO / "heldout.txt", tokenizer, 10**4)
    for blanks in range(8):
        path = write(tmp_path / f"{blanks}.txt", " " * blanks + story)
        for count in range(220, 300):
            ids = first_tokens(path, tokenizer, count)
            np.testing.assert_array_equal(ids, whole[:count])


def test_a_large_text_is_not_read_whole(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    # Not UTF-8 after the first 200 kB: reading on would raise.
    path = tmp_path / "a.txt"
    path.write_bytes(b"A dog ran to the park. " * 9000 + b"\xff" * 10)
    assert len(first_tokens(path, tokenizer, 512)) == 512
    with pytest.raises(FptqError, match="UTF-8"):
        first_tokens(path, tokenizer, 10**6)


@pytest.mark.parametrize(
    ("tokens", "length", "want"),
    [
        (0, 64, []),
        (3, 64, [3]),  # short, but the only one
        (64, 64, [64]),
        (64 + 15, 64, [64]),
        (64 + 16, 64, [64, 16]),
        (10, 4, [4, 4]),
    ],
)
def test_cut_windows(tokens: int, length: int, want: list[int]) -> None:
    ids = np.arange(tokens)
    windows = cut_windows(ids, length)
    assert [len(w) for w in windows] == want
    np.testing.assert_array_equal(np.concatenate([*windows, ids[:0]]), ids[: sum(want)])


def test_special_ids_in_order_of_trust(tmp_path: Path) -> None:
    assert read_special_ids(tmp_path) == SpecialIds()
    added = [{"id": 7, "content": "<s>"}, {"id": 8, "content": "</s>"}]
    dump(tmp_path, "tokenizer.json", {"added_tokens": added})
    named = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "model_max_length": int(1e30)}
    dump(tmp_path, "tokenizer_config.json", named)
    assert read_special_ids(tmp_path) == SpecialIds(7, (8,), None, None)
    several = ["</s>", {"content": "<s>"}, "unknown", 5, ["</s>"], {"content": []}]
    dump(tmp_path, "tokenizer_config.json", {**named, "eos_token": several})
    assert read_special_ids(tmp_path) == SpecialIds(7, (8, 7), None, None)
    dump(tmp_path, "tokenizer_config.json", {"bos_token": {}, "eos_token": []})
    assert read_special_ids(tmp_path) == SpecialIds()
    dump(tmp_path, "tokenizer_config.json", named)
    dump(tmp_path, "generation_config.json", {"bos_token_id": 5, "eos_token_id": [6, 9]})
    assert read_special_ids(tmp_path) == SpecialIds(5, (6, 9, 8), None, None)
    config = {"bos_token_id": None, "eos_token_id": 4, "vocab_size": 99, "n_positions": 64}
    dump(tmp_path, "config.json", config)
    assert read_special_ids(tmp_path) == SpecialIds(5, (4, 6, 9, 8), 99, 64)
    model = {"bos_token_id": 0, "eos_token_id": [1, 2], "vocab_size": 50, "context_length": 32}
    dump(tmp_path, "genai_config.json", {"model": model})
    assert read_special_ids(tmp_path) == SpecialIds(0, (1, 2, 4, 6, 9, 8), 50, 32)


def test_a_broken_configuration_is_named(tmp_path: Path) -> None:
    write(tmp_path / "config.json", "{")
    with pytest.raises(FptqError, match=r"cannot read .*config\.json"):
        read_special_ids(tmp_path)


def test_no_tokenizer_a_broken_one_and_a_foreign_one(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    with pytest.raises(FptqError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    write(tmp_path / "tokenizer.json", "{}")
    with pytest.raises(FptqError, match="cannot read"):
        load_tokenizer(tmp_path)
    for known in (None, 2048, 2047, 1900):
        check_vocabulary(tokenizer.tokenizer, known, "the model")
    with pytest.raises(FptqError, match="ids up to 2047 but the model knows only 1000"):
        check_vocabulary(tokenizer.tokenizer, 1000, "the model")


def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", " \n<|endoftext|>\n\n")
    with pytest.raises(FptqError, match="is empty"):
        first_windows(path, DEMO, count=1, length=8)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "text/ts_valid.txt").is_file(), reason="no shared text here")
def test_evaluation_protocol_gives_the_reference_perplexity() -> None:
    from fptq_onnx.evaluation.perplexity import perplexity
    from fptq_onnx.runtime.decoder import open_decoder

    folder = SHARED / "onnx" / "tinystories-7m-outliers-optimum"
    windows = first_windows(SHARED / "text/ts_valid.txt", folder, count=80, length=256)
    assert [len(w) for w in windows] == [256] * 80
    # The reference is given to four decimals; one wrong blank in the text moves the second.
    assert round(perplexity(open_decoder(folder, threads=2), windows), 4) == 13.6956


def test_truncation_and_padding_stored_with_the_tokenizer_are_off(tmp_path: Path) -> None:
    stored = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    sentence = "A cat sat on a mat and looked at the bird."
    expected = stored.encode(sentence, add_special_tokens=False).ids
    stored.enable_truncation(4)
    stored.enable_padding(length=64)
    stored.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(sentence, add_special_tokens=False).ids == expected
