"""The process that exports: python -m fptq_onnx.exporting.worker JOB.json RESULT.json.

It alone imports torch. What the exporters print goes where this process's output goes; how it ended
is written to the result file: what `export` returned, or {"error": sentence}.
"""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.exporting.tasks import CAUSAL, task_of
from fptq_onnx.runtime.session import first_line

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")
_COLOUR = re.compile("\x1b\\[[0-9;]*m")  # torch writes for terminals
_MEMORY_WORDS = ("can't allocate memory", "not enough memory")


def export(source: str, exporter: str, folder: Path, reference: Path) -> dict[str, Any]:
    """Export a model and record what torch computes.

    Args:
        source: a Hugging Face folder, or a name on the hub, which is downloaded into its cache.
        exporter: genai, optimum or dynamo.
        folder: gets the ONNX model; exists.
        reference: the .npz of `save_torch_reference`.

    Returns:
        The folder of the Hugging Face model, its architecture, whether it is a decoder, and the
        output that the reference holds.

    Raises:
        FptqError: an architecture that the exporter cannot export.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from fptq_onnx.exporting.torch_reference import load_torch_model, save_torch_reference

    local = Path(source) if Path(source).is_dir() else _download(source)
    try:
        config = transformers.AutoConfig.from_pretrained(local, local_files_only=True)
    except (ValueError, KeyError) as error:
        raise FptqError(
            f"transformers does not know this model ({first_line(error)}): code that comes with a "
            "model is not run"
        ) from error
    (architecture, *_) = config.architectures or [type(config).__name__]
    causal = architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    task = CAUSAL if causal else task_of(architecture)
    if not causal and exporter != "optimum":
        raise FptqError(
            f"{architecture} is not a causal language model, which is all that the exporter "
            f"{exporter} exports: use --exporter optimum"
        )
    takes = getattr(getattr(transformers, architecture, None), "main_input_name", "input_ids")
    if takes != "input_ids":
        raise FptqError(
            f"{architecture} takes {takes}, not tokens: export it with optimum-cli, and give the "
            "ONNX model to `fptq-onnx convert`"
        )
    model = None
    if exporter == "genai":
        from fptq_onnx.exporting.genai_exporter import export_with_genai

        export_with_genai(local, folder)
    elif exporter == "optimum":
        from fptq_onnx.exporting.optimum_exporter import export_with_optimum

        export_with_optimum(local, folder, task.name)
    else:
        from fptq_onnx.exporting.dynamo_exporter import export_with_dynamo

        model = load_torch_model(local, task)
        export_with_dynamo(model, folder)
    if model is None:
        model = load_torch_model(local, task)
    save_torch_reference(model, reference, task.output)
    return {
        "folder": str(local), "architecture": architecture, "causal": causal, "output": task.output
    }  # fmt: skip


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=kinds))
    except Exception as error:  # requests', httpx's and the hub's own types
        if why := _shortage(error):
            raise FptqError(why) from error
        raise FptqError(
            f"there is no folder {name} here, and the Hugging Face hub did not give it "
            f"({first_line(error)}): check the name and the network"
        ) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FptqError(f"{name} on the hub holds no config.json with *.safetensors beside it")
    return folder


def explain(error: BaseException) -> str:
    """One sentence for what stopped an export."""
    if isinstance(error, FptqError):
        return str(error)
    if why := _shortage(error):
        return why
    while type(error).__module__.startswith("torch.onnx") and error.__cause__ is not None:
        error = error.__cause__  # its own text gives torch's developers their next steps
    kind, line = type(error).__name__, " ".join(_COLOUR.sub("", first_line(error)).split())
    return (
        f"the exporter failed ({kind}: {line.rstrip('.:')}): try another --exporter, or --verbose"
    )


def _shortage(error: BaseException) -> str | None:
    """Whether disk or memory ran out anywhere in the chain of causes."""
    for cause in _chain(error):
        text = str(cause)
        if getattr(cause, "errno", None) in _DISK or any(words in text for words in _DISK_WORDS):
            return "the disk is full: free some space or choose another -o"
        if isinstance(cause, MemoryError) or any(words in text for words in _MEMORY_WORDS):
            return "out of memory: an export holds the whole model in float32"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def main(arguments: list[str]) -> int:
    """Run the job of a file; the exit code says no more than the result file does."""
    job_file, result_file = map(Path, arguments)
    job = json.loads(job_file.read_text(encoding="utf-8"))
    try:
        result = export(job["source"], job["exporter"], Path(job["folder"]), Path(job["reference"]))
    except Exception as error:  # exporters raise everything there is
        import traceback

        traceback.print_exc()
        result = {"error": explain(error)}
    result_file.write_text(json.dumps(result), encoding="utf-8")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
