"""Where a model folder keeps its chat templates."""

from __future__ import annotations

from pathlib import Path

from fptq_onnx.downloaded_file import check_downloaded
from fptq_onnx.errors import FptqError
from fptq_onnx.model_folder import TEMPLATE_FOLDER, side_file
from fptq_onnx.side_json import read_config
from fptq_onnx.text_encoding import read_text

DEFAULT, TOOL_USE = "default", "tool_use"
_FILE = "chat_template.jinja"
# Of processors for text and images: what a folder without a template for its tokenizer has.
_PROCESSOR_FILES = ("chat_template.json", "processor_config.json")


def read_templates(folder: Path) -> dict[str, str]:
    """Jinja texts by name, as transformers finds them.

    Files go first: chat_template.jinja is the default one, additional_chat_templates/NAME.jinja
    another one. Without chat_template.jinja those of tokenizer_config.json count as well: one, or
    several by name. A folder with none of these may have the template of a processor.

    Raises:
        FptqError: a file that cannot be read.
    """
    sources = {}
    if side_file(folder, _FILE).is_file():
        sources[DEFAULT] = _read(side_file(folder, _FILE))
    for path in sorted(side_file(folder, TEMPLATE_FOLDER).glob("*.jinja")):
        sources[path.stem] = _read(path)
    if DEFAULT not in sources:
        sources = {**_named(read_config(folder, "tokenizer_config.json")), **sources}
    for name in _PROCESSOR_FILES:
        if not sources:
            sources = _named(read_config(folder, name))
    return sources


def _named(config: dict[str, object]) -> dict[str, str]:
    value = config.get("chat_template")
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, dict):
        pairs = list(value.items())
    else:
        listed = value if isinstance(value, list) else []
        pairs = [(one.get("name"), one.get("template")) for one in listed if isinstance(one, dict)]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def _read(path: Path) -> str:
    check_downloaded(path)
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise FptqError(f"cannot read {path}: {error}; mend or remove it") from error
