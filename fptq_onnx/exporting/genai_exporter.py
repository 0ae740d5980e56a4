"""Export with onnxruntime-genai's model builder: attention and norms as single ops."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.genai_config import GENAI_CONFIG


def export_with_genai(source: Path, folder: Path) -> None:
    """Write model.onnx with its data and genai_config.json.

    Args:
        source: the Hugging Face folder.
        folder: exists.

    Raises:
        FptqError: the builder does not know the architecture.
    """
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    cache = folder / ".cache"  # for downloads; nothing is kept in it
    job = (None, str(source), str(folder), "fp32", "cpu", str(cache))
    try:
        create_model(*job, **parse_extra_options(*job, []))
    except NotImplementedError as error:
        raise FptqError(
            "onnxruntime-genai's builder does not support this architecture: "
            "try --exporter optimum or dynamo"
        ) from error
    except Exception:
        # The last step is to save the tokenizer anew. It fails where there is none, or one of a
        # newer transformers; the model is complete then, and its own tokenizer gets copied.
        if not (folder / GENAI_CONFIG).is_file():
            raise
        traceback.print_exc()
    finally:
        shutil.rmtree(cache, ignore_errors=True)
