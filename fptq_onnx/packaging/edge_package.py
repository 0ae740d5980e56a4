"""For the edge: one archive with model, library, a C++ runner and a smoke test; no Python.

manifest.json  SHA256SUMS  README.md  LICENSE  smoke_test.sh  CMakeLists.txt
model/         model.onnx, portable.onnx, their data, decoder.txt, smoke_tokens.txt, tokenizer
lib/           libfptq_ort_ops.so for the target
runner/        the sources of fptq_run
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fptq_onnx.generation.kv.shared_buffer import can_share
from fptq_onnx.model_io.save import MODEL_FILE
from fptq_onnx.packaging.converted_model import ConvertedModel
from fptq_onnx.packaging.decoder_text import DECODER_FILE, decoder_text
from fptq_onnx.packaging.library_file import copy_library
from fptq_onnx.packaging.manifest import write_manifest
from fptq_onnx.packaging.oldest_runtime import oldest_runtime
from fptq_onnx.packaging.package_parts import (
    copy_tokenizer_and_report,
    describe,
    resource,
    write_licence,
    write_readme,
)
from fptq_onnx.packaging.smoke_tokens import smoke_prompt, smoke_tokens
from fptq_onnx.packaging.write_graphs import PORTABLE_FILE, write_graphs
from fptq_onnx.text.tokenizer import TOKENIZER_FILE, TextTokenizer

SMOKE_FILE = "smoke_tokens.txt"


def write_edge_package(
    converted: ConvertedModel, folder: Path, *, target: str, library: Path | None, fallback: bool
) -> None:
    """Write the files of the archive.

    Args:
        converted: a causal language model.
        folder: empty.
        target: one of library_file.TARGETS.
        library: built for it; None for this installation's.
        fallback: whether a portable form is wanted.

    Raises:
        FptqError: no language model, no library, or no portable form can be made.
        OSError: the disk is full or not writable.
    """
    model, libraries = folder / "model", folder / "lib"
    model.mkdir()
    copied = None
    if converted.needs_library:
        libraries.mkdir()
        copied = copy_library(target, library, libraries)
    io = converted.decoder_io()
    special = converted.main.special_ids
    has_portable = write_graphs(converted, model, fallback=fallback)
    vocabulary, texts = io.vocab_size or special.vocab_size, None
    if (converted.main.folder / TOKENIZER_FILE).is_file():
        texts = TextTokenizer.open(converted.main.folder, vocabulary)
    text = decoder_text(
        io,
        graph=MODEL_FILE,
        portable=PORTABLE_FILE if has_portable else None,
        library=f"../lib/{copied.name}" if copied is not None else None,
        shared_cache=can_share(converted.graph(), io),
        context_length=special.context_length,
        vocabulary=vocabulary,
        end=special.eos,
        beyond=texts.beyond() if texts is not None else None,
    )
    (model / DECODER_FILE).write_text(text, encoding="utf-8")
    copy_tokenizer_and_report(converted, model)
    prompt = smoke_prompt(converted.main.folder, vocabulary)
    tokens = smoke_tokens(model / MODEL_FILE, prompt)
    if has_portable:
        smoke_tokens(model / PORTABLE_FILE, prompt)  # that it runs; its rounding is another
    lines = [" ".join(map(str, ids)) + "\n" for ids in (prompt, tokens)]
    (model / SMOKE_FILE).write_text("".join(lines), encoding="utf-8")
    shutil.copytree(resource("edge_files"), folder, dirs_exist_ok=True)
    for path in folder.rglob("*"):  # an installer may have lost the one mode that matters
        if path.is_file():
            path.chmod(0o755 if path.suffix in (".sh", ".so") else 0o644)
    values = {"name": converted.name, "target": target, "prompt": lines[0].strip()}
    values["runtime"] = oldest_runtime(converted.main.model, portable=has_portable)
    if has_portable:
        values["portable"] = PORTABLE_FILE
    if texts is not None and texts.prefix:
        values["prefix"] = " ".join(map(str, texts.prefix))
    if target != "linux-x86_64":
        values["cross"] = target
    write_readme(folder, "edge", values)
    write_licence(folder)
    portable = f"model/{PORTABLE_FILE}" if has_portable else None
    about = describe(converted, "edge", target, portable=portable, library=copied)
    write_manifest(folder, about)
