"""A model folder as a service, and as an ASGI app for other servers than ours."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette

from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.model_configs import find_model_file
from fptq_onnx.samples import folder_of_tokenizer
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
        FptqError: see LanguageModel.open and Service.
    """
    model = LanguageModel.open(
        path, tokenizer_folder=tokenizer and folder_of_tokenizer(tokenizer), threads=threads
    )
    return Service(model, name or find_model_file(path).resolve().parent.name, settings)


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
