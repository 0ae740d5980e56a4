"""`fptq-onnx run` as a user calls it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import MODEL, command, refused

from fptq_onnx.generation.interactive import interact
from fptq_onnx.generation.language_model import LanguageModel

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return folder


def test_prompt_as_argument_option_and_pipe() -> None:
    text = "Once upon a time"
    given = command("run", MODEL, text, "--max-tokens", 12)
    assert given.returncode == 0, given.stderr
    assert given.stdout.startswith(text + ",")
    assert re.search(
        r"^prefill 5 tokens, [\d.]+ tokens/s; decode 12 tokens, [\d.]+ tokens/s$",
        given.stderr, re.MULTILINE,
    )  # fmt: skip
    assert command("run", MODEL, "--prompt", text, "--max-tokens", 12).stdout == given.stdout
    for arguments in ((), ("-",)):
        piped = command("run", MODEL, *arguments, "--max-tokens", 12, input=text + "\n")
        assert piped.stdout == given.stdout


def test_ids_instead_of_text() -> None:
    import tokenizers

    text = "Once upon a time"
    done = command("run", MODEL, text, "--ids", "--max-tokens", 12)
    ids = [int(word) for word in done.stdout.split()]
    assert len(ids) == 12
    assert "decode 12 tokens" in done.stderr
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    before = tokenizer.encode(text, add_special_tokens=False).ids
    whole = command("run", MODEL, text, "--max-tokens", 12).stdout
    assert tokenizer.decode(before + ids).strip() == whole.strip()


def test_sampling_and_stop() -> None:
    def said(*options: object) -> str:
        done = command("run", MODEL, "Once", "--max-tokens", 20, *options)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    drawn = ("--temperature", 1.5, "--top-k", 50, "--top-p", 0.95)
    assert said(*drawn, "--seed", 1) == said(*drawn, "--seed", 1)
    assert said(*drawn, "--seed", 1) != said(*drawn, "--seed", 2)
    assert said(*drawn, "--seed", -1) == said(*drawn, "--seed", -1)
    greedy = said()
    assert said("--repetition-penalty", 3) != greedy
    word = greedy.split()[4]
    assert said("--stop", word) == greedy[: greedy.index(word)] + "\n"


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        (("x", "--prompt", "y"), "given twice"), (("x", "--temperature", "-1"), "temperature"),
        (("x", "--top-p", "2"), "top-p"), (("x", "--max-tokens", "0"), "--max-tokens"),
        (("x", "--system", "y"), "chat template"), (("x " * 400,), "shorten it"),
        (("x", "--threads", "-1"), "--threads"), (("x", "--stop", ""), "a stop string is empty"),
        (("x", "--stop", "y", "--stop", ""), "a stop string is empty"),
        (("x", "--seed", str(2**63)), "from -9223372036854775808 to 9223372036854775807"),
    ],
)  # fmt: skip
def test_refusals(options: tuple[str, ...], saying: str) -> None:
    assert refused("run", MODEL, *options, saying=saying).stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        (MODEL, "--max-tokens", 5, "Once"), ("--max-tokens", 5, MODEL, "Once"),
        (MODEL, "Once", "--max-tokens", 5), (MODEL, "--max-tokens", 5, "--", "Once"),
    ],
)  # fmt: skip
def test_a_prompt_before_or_after_options(arguments: tuple[object, ...]) -> None:
    done = command("run", *arguments)
    assert (done.returncode, done.stdout) == (0, "Once upon a time, there\n"), done.stderr


def test_a_prompt_that_begins_with_a_dash() -> None:
    done = command("run", MODEL, "--max-tokens", 3, "--raw", "--", "-5")
    assert done.returncode == 0 and done.stdout.startswith("-5"), done.stderr
    done = command("run", MODEL, "--max-tokens", 3, "--", "--foo")
    assert done.returncode == 0 and done.stdout.startswith("--foo"), done.stderr
    saying = "unrecognized arguments: --max-tokens 3"
    assert refused("run", MODEL, "--", "-5", "--max-tokens", 3, saying=saying).stdout == ""
    refused(
        "run", MODEL, "Once", "--foo", saying="unrecognized arguments: --foo; see fptq-onnx run"
    )
    refused("run", MODEL, "Once", "--max-tokns=3", saying="did you mean --max-tokens?")
    refused("run", MODEL, "Once", "--ids", "upon", saying="unrecognized arguments: upon")
    refused("run", saying="required: model")


@pytest.mark.process
@pytest.mark.parametrize("redirection", [">&-", "> /dev/full"])
def test_output_that_cannot_be_written(redirection: str) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    script = f'"$0" -m fptq_onnx run "$1" Once --max-tokens 3 {redirection}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, MODEL],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fptq-onnx: error")]
    assert "standard output" in line
    assert "Traceback" not in done.stderr


def test_bytes_that_are_no_text() -> None:
    done = command("run", MODEL, "Once \udcff")  # how Python hands on a byte ff
    assert done.returncode == 2 and "the prompt is not valid UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


LOCALES = [{}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
           {"PYTHONIOENCODING": "latin-1"}]  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_piped_bytes_in_any_locale(locale: dict[str, str], chat_model: Path) -> None:
    def piped(data: bytes, *arguments: object) -> subprocess.CompletedProcess[bytes]:
        words = [sys.executable, "-m", "fptq_onnx", "run", *map(str, arguments)]
        return subprocess.run(
            [*words, "--max-tokens", "3"], input=data, env={**os.environ, **locale},
            capture_output=True, check=False, timeout=120,
        )  # fmt: skip

    for model in (MODEL, chat_model):
        done = piped(b"Once \xff\xfe\n", model)
        assert done.returncode == 2 and done.stdout == b"", done.stderr
        assert b"not UTF-8 text" in done.stderr and b"Traceback" not in done.stderr
    done = piped("naïve 日本\n".encode(), MODEL)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode("latin-1" if "PYTHONIOENCODING" in locale else "utf-8")
    assert shown.startswith(("naïve 日本", "naïve ??", "na?ve ??")), shown
    whole = piped("naïve 日本\n".encode(), MODEL, "--ids")
    assert (
        whole.stdout
        == command("run", MODEL, "naïve 日本", "--ids", "--max-tokens", 3).stdout.encode()
    )


def test_a_line_that_is_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = lines("Once")

    def read(prompt: str, broken: list[int] = [0]) -> str:  # noqa: B006
        broken[0] += 1
        if broken[0] == 1:
            return b"\xff".decode()  # as input() fails
        return "Once \udcff" if broken[0] == 2 else waiting(prompt)

    out = io.StringIO()
    interact(LanguageModel.open(MODEL), chat=False, max_tokens=5, read_line=read, stream=out)
    assert out.getvalue() == "Once upon a time, there\n"
    said = capsys.readouterr().err
    assert "the line is no text" in said and "not valid UTF-8" in said


def test_a_tokenizer_that_does_not_fit(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        shutil.copy(MODEL / name, tmp_path)
    refused("run", tmp_path, "a", saying="no tokenizer.json")
    larger = json.loads((MODEL / "tokenizer.json").read_text())
    vocabulary = larger["model"]["vocab"]
    vocabulary.update({f"zz{n}": 2048 + n for n in range(300)})
    (tmp_path / "tokenizer.json").write_text(json.dumps(larger))
    refused("run", tmp_path, "a", saying="ids up to 2347 but the model knows only 2048")


def test_a_few_tokens_more_than_the_model_has(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        shutil.copy(MODEL / name, tmp_path)
    larger = json.loads((MODEL / "tokenizer.json").read_text())
    larger["added_tokens"].append({**larger["added_tokens"][0], "id": 2048, "content": "<image>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(larger))
    ids = [
        command("run", folder, "Once", "--ids", "--max-tokens", 3) for folder in (tmp_path, MODEL)
    ]
    assert ids[0].stdout == ids[1].stdout and ids[0].returncode == 0
    refused(
        "run", tmp_path, "a <image>",
        saying="the token '<image>' (id 2048) is beyond the model's 2048 tokens, though the "
        "tokenizer has it: take it out of the text",
    )  # fmt: skip


def test_chat_template_is_used_unless_raw(chat_model: Path) -> None:
    options = ("--max-tokens", 8)
    chat = command("run", chat_model, "Hi", "--system", "Be kind", *options)
    raw = command("run", chat_model, "system:Be kind\nuser:Hi\nassistant:", "--raw", *options)
    assert chat.returncode == raw.returncode == 0, chat.stderr + raw.stderr
    assert raw.stdout == "system:Be kind\nuser:Hi\nassistant:" + chat.stdout


def lines(*texts: str) -> Callable[[str], str]:
    waiting = iter(texts)

    def read(prompt: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    return read


def test_a_conversation_goes_on_and_feeds_only_what_is_new(
    chat_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = LanguageModel.open(chat_model, threads=1)
    out = io.StringIO()
    said = lines("Hi", "", "And you?", "x " * 400, "/clear", "Hi", "/exit", "never")
    interact(model, chat=True, max_tokens=8, read_line=said, stream=out)
    first, second, again = out.getvalue().removesuffix("\n").split("\n")
    assert first == again
    errors = capsys.readouterr().err
    assert "shorten it" in errors
    fed = [int(n) for n in re.findall(r"prefill (\d+) tokens", errors)]
    whole = model.encode_chat(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": first},
         {"role": "user", "content": "And you?"}]
    )  # fmt: skip
    assert fed[1] < len(whole) - fed[0]
    prompt = model.tokenizer.decode(list(whole))
    done = command("run", chat_model, prompt, "--raw", "--max-tokens", 8)
    assert done.stdout == f"{prompt}{second}\n"


def test_lines_without_a_template_are_prompts() -> None:
    out = io.StringIO()
    interact(
        LanguageModel.open(MODEL), chat=False, max_tokens=5, read_line=lines("Once"), stream=out
    )
    assert out.getvalue() == command("run", MODEL, "Once", "--max-tokens", 5).stdout


@pytest.mark.process
def test_interrupt_keeps_the_text(chat_model: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fptq_onnx", "run", str(MODEL), "Once", "--temperature", "5",
         "--max-tokens", "250"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    begun = process.stdout.read(8)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    rest, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert begun.startswith("Once")
    assert process.returncode in (0, 130), errors  # 0: it was done before the signal came
    assert "Traceback" not in errors
    assert "prefill" in errors
    assert (begun + rest).endswith("\n")
