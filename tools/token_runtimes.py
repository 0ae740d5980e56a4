"""The runtimes in which a converted model writes greedy tokens; same_tokens.py compares them.

Each takes texts, their token ids and how many tokens to write, and gives the new ids of each text,
without the one that ends it. AbsentError says what a way lacks on this machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
from qemu_sysroot import make_sysroot

from fptq_onnx.generation.engine import Engine, Request
from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.generation.sequence import Generation

Tokens = list[list[int]]
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


class AbsentError(Exception):
    """A way cannot be gone here; the text says why."""


@dataclass(frozen=True)
class Work:
    """What is to be written: texts, their ids as the tokenizer gives them, new tokens of each."""

    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    new: int


def command(*arguments: object) -> str:
    """Standard output of one of our commands.

    Raises:
        RuntimeError: it failed.
    """
    return _run(sys.executable, "-m", "fptq_onnx", *arguments)


def _run(*arguments: object) -> str:
    done = subprocess.run(
        [str(argument) for argument in arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{arguments} failed:\n{done.stderr}")
    return done.stdout


def by_run(model: Path, work: Work, threads: int = 1) -> Tokens:
    """`fptq-onnx run --ids`, a process for each text."""
    options = ("--ids", "--raw", "--max-tokens", work.new, "--threads", threads)
    return [_ids(command("run", model, "--prompt", text, *options)) for text in work.texts]


def _ids(line: str) -> list[int]:
    return [int(word) for word in line.split()]


def by_server(model: Path, work: Work, at_once: int) -> Tokens:
    """`fptq-onnx serve`, asked by OpenAI's client, so many requests at a time."""
    try:
        import openai
    except ImportError as error:
        raise AbsentError("no openai: pip install 'openai>=2,<4'") from error

    with _serving(model) as (url, name), openai.OpenAI(base_url=url, api_key="any") as client:

        def ask(text: str) -> list[int]:
            done = client.completions.create(
                model=name, prompt=text, max_tokens=work.new, temperature=0,
                extra_body={"return_token_ids": True},
            )  # fmt: skip
            return [int(token) for token in done.choices[0].token_ids]  # type: ignore[attr-defined]

        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(ask, work.texts))


@contextmanager
def _serving(model: Path) -> Iterator[tuple[str, str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "fptq_onnx", "serve", str(model), "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        found = re.match(r"serving (\S+) on (http://\S+)", process.stdout.readline())
        if not found:
            raise RuntimeError("the server did not start")
        yield found[2] + "/v1", found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


def by_engine(model: Path, work: Work, rows: int) -> Tokens:
    """The engine in this process, so many sequences in a batch, each of its own length.

    A sequence joins as soon as another has left, so rows are of all ages.
    """
    engine: Engine = LanguageModel.open(model, threads=1).engine(max_sequences=rows)
    waiting = [Request(tuple(ids), work.new) for ids in work.ids]
    started: list[Generation] = []
    while len(started) < len(waiting) or engine.active:
        while engine.room and len(started) < len(waiting):
            started.append(engine.add(waiting[len(started)]).generation)
        if engine.active:
            engine.step()
    return [generation.tokens for generation in started]


def by_genai(model: Path, work: Work) -> Tokens:
    """onnxruntime-genai, on a folder with genai_config.json."""
    try:
        import onnxruntime_genai as og
    except ImportError as error:
        raise AbsentError("no onnxruntime-genai: make test-same-tokens") from error
    config = json.loads((model / "genai_config.json").read_text())["model"]
    ends = config["eos_token_id"]
    loaded = og.Model(str(model))
    found = []
    for ids in work.ids:
        settings = og.GeneratorParams(loaded)
        settings.set_search_options(max_length=len(ids) + work.new, do_sample=False)
        generator = og.Generator(loaded, settings)
        generator.append_tokens(list(ids))
        while not generator.is_done():
            generator.generate_next_token()
        tokens = [int(token) for token in generator.get_sequence(0)][len(ids) :]
        ended = tokens[-1:] and tokens[-1] in (ends if isinstance(ends, list) else [ends])
        found.append(tokens[:-1] if ended else tokens)
    return found


def by_runner(package: Path, work: Work, *options: object, cpu: str | None = None) -> Tokens:
    """The C++ runner of an edge package that was unpacked; on an emulated Arm CPU, or on this one.

    The package's own sources are compiled, and ONNX Runtime is the wheel's library: for Arm that
    of FPTQ_AARCH64_RUNTIME.
    """
    with tempfile.TemporaryDirectory() as place:
        runner = Path(place) / "fptq_run"
        compiler = os.environ.get("CXX", "c++") if cpu is None else CROSS
        for program in (compiler, *([EMULATOR] if cpu else [])):
            if shutil.which(program) is None:
                raise AbsentError(f"no {program}")
        sources = sorted((package / "runner").glob("*.cc"))
        _run(compiler, "-std=c++17", "-O1", "-o", runner, *sources, "-ldl")
        before: tuple[object, ...] = ()
        runtime = _runtime()
        if cpu is not None:
            before = (EMULATOR, "-cpu", cpu, "-L", make_sysroot(Path(place) / "sysroot", cpu))
            runtime = Path(os.environ["FPTQ_AARCH64_RUNTIME"])
        common = (*before, runner, "--onnxruntime", runtime, "--model", package / "model")
        more = ("--threads", 1, "--tokens", work.new, *options)
        return [_ids(_run(*common, *more, *ids)) for ids in work.ids]


def _runtime() -> Path:
    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not found:
        raise AbsentError("this onnxruntime has no shared library of its own")
    return found[0]


def edge_package(model: Path, place: Path, library: str | None = None) -> Path:
    """Package a model for the edge, and unpack it as its documentation says."""
    target = () if library is None else ("--target", "linux-aarch64", "--library", library)
    place.mkdir()
    archive = place / "package.tar.gz"
    command("package", model, "--for", "edge", "-o", archive, *target)
    _run("tar", "-xzf", archive, "-C", place)
    archive.unlink()
    (folder,) = place.iterdir()
    return folder


def arm_library() -> str:
    """Our library for Arm, where all that its way needs is there."""
    library, runtime = (os.environ.get(f"FPTQ_AARCH64_{x}", "") for x in ("LIBRARY", "RUNTIME"))
    if not (Path(library).is_file() and Path(runtime).is_file()):
        raise AbsentError("no library and ONNX Runtime for Arm: make test-same-tokens")
    return library
