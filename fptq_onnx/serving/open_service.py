"""A model folder as a service, and as an ASGI app for other servers than ours."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.model_io.hf_config import find_model_file
from fptq_onnx.model_io.model_folder import model_name
from fptq_onnx.model_io.tokenizer_files import folder_of_tokenizer
from fptq_onnx.serving.app import create_app
from fptq_onnx.serving.service import Service
from fptq_onnx.serving.settings import ServerSettings


def open_service(
    path: Path,
    settings: ServerSettings,
    *,
    name: str | None = None,
    tokenizer: Path | None = None,
    threads: int | None = None,
) -> Service:
    """Open a model to be served.

    Args:
        path: its folder, or the .onnx file in it.
        settings: limits and access.
        name: what clients call it; the folder's name by default.
        tokenizer: tokenizer.json or its folder, where it is not beside the model.
        threads: intra-op threads, None for onnxruntime's choice.

    Raises:
        FptqError: an empty name, more tokens than the model's context, or see LanguageModel.open
            and Service.
    """
    if name is not None and not name.strip():
        raise FptqError("--model-name is empty: give a name, or leave it out for the folder's")
    model = LanguageModel.open(
        path, tokenizer_folder=tokenizer and folder_of_tokenizer(tokenizer), threads=threads
    )
    context, limit = model.special.context_length, settings.max_length
    if context is not None and limit is not None and limit > context:
        raise FptqError(
            f"--max-length {limit} is more than the model's context of {context} tokens: "
            "lower it, or leave it out for all of that"
        )
    return Service(model, name or model_name(find_model_file(path)), settings)


def open_app(
    path: str,
    *,
    settings: ServerSettings | None = None,
    name: str | None = None,
    threads: int | None = None,
) -> Starlette:
    """The ASGI app for a model folder: what Ray Serve or another ASGI server runs.

    Args:
        path: the folder.
        settings: limits and access; the defaults, without a key, if None.
        name: what clients call it; the folder's name by default.
        threads: intra-op threads, None for onnxruntime's choice.

    Raises:
        FptqError: see `open_service`.
    """
    found = open_service(Path(path), settings or ServerSettings(), name=name, threads=threads)
    return create_app(found)
