"""For onnxruntime-genai: one folder that it runs as it is.

    genai_config.json            names model.onnx and the library, which lies in the folder
    genai_config.portable.json   names portable.onnx; to be put in place of the other one

onnxruntime-genai loads libraries from inside the model's folder only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fptq_onnx.generation.kv.shared_buffer import can_share
from fptq_onnx.model_io.genai_config import GENAI_CONFIG, pointed_config
from fptq_onnx.model_io.hf_config import SpecialIds, read_config
from fptq_onnx.model_io.save import MODEL_FILE
from fptq_onnx.packaging.converted_model import ConvertedModel
from fptq_onnx.packaging.genai_layout import known_ends, make_genai_config
from fptq_onnx.packaging.library_file import copy_library
from fptq_onnx.packaging.manifest import write_manifest
from fptq_onnx.packaging.package_parts import (
    copy_tokenizer_and_report,
    describe,
    load_graphs,
    write_licence,
    write_readme,
)
from fptq_onnx.packaging.write_graphs import PORTABLE_FILE, write_graphs
from fptq_onnx.text.tokenizer import TOKENIZER_FILE, TextTokenizer

PORTABLE_CONFIG = "genai_config.portable.json"


def write_genai_package(
    converted: ConvertedModel, folder: Path, *, target: str, library: Path | None, fallback: bool
) -> None:
    """Write the folder.

    Args:
        converted: a causal language model.
        folder: empty.
        target: one of library_file.TARGETS.
        library: built for it; None for this installation's.
        fallback: whether a portable form is wanted.

    Raises:
        FptqError: onnxruntime-genai cannot run the model, no library, or no portable form.
        OSError: the disk is full or not writable.
    """
    config = _config(converted)
    copied = copy_library(target, library, folder) if converted.needs_library else None
    has_portable = write_graphs(converted, folder, fallback=fallback)
    load_graphs(folder, portable=has_portable)
    copy_tokenizer_and_report(converted, folder)
    if has_portable:
        _write_config(folder / PORTABLE_CONFIG, config, PORTABLE_FILE, None)
    _write_config(folder / GENAI_CONFIG, config, MODEL_FILE, copied)
    values = {"name": converted.name, "target": target}
    if (converted.main.folder / TOKENIZER_FILE).is_file():
        prefix = TextTokenizer.open(converted.main.folder, None).prefix
        if prefix:
            values["prefix"] = json.dumps(prefix)
    if has_portable:
        values["portable"] = PORTABLE_CONFIG
    write_readme(folder, "genai", values)
    write_licence(folder)
    portable = PORTABLE_FILE if has_portable else None
    about = describe(converted, "genai", target, portable=portable, library=copied)
    write_manifest(folder, about)


def _config(converted: ConvertedModel) -> dict[str, Any]:
    """The model's own genai_config.json, or one made from its inputs and outputs."""
    given = read_config(converted.main.folder, GENAI_CONFIG)
    special = converted.main.special_ids
    if pointed_config(given, MODEL_FILE, None) is not None:
        return _with_ends(given, special)
    io = converted.decoder_io()
    config = read_config(converted.main.folder, "config.json")
    return make_genai_config(io, special, config, shared_cache=can_share(converted.graph(), io))


def _with_ends(given: dict[str, Any], special: SpecialIds) -> dict[str, Any]:
    """The same configuration with every token that ends a text, not only its own."""
    model = given["model"]
    ends = known_ends(special, special.vocab_size)
    if not ends:
        return given
    return {**given, "model": {**model, "eos_token_id": ends if len(ends) > 1 else ends[0]}}


def _write_config(
    path: Path, config: dict[str, Any], model_file: str, library: Path | None
) -> None:
    known = pointed_config(config, model_file, library.name if library is not None else None)
    path.write_text(json.dumps(known, indent=4) + "\n", encoding="utf-8")
