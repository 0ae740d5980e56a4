"""How to install an extra: the package is on no index, so its checkout is named."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

_DISTRIBUTION = "fptq-onnx"
_CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def install_advice(extra: str) -> str:
    """The command that installs an extra.

    Args:
        extra: a name of pyproject.toml's optional dependencies.

    Returns:
        One command, or two with "then": where the extra needs torch, its build for CPUs comes
        first, for the default one brings gigabytes of CUDA. The checkout that this installation
        came from is named where it is still there; else where the command is to be run.
    """
    torch = _torch_of(extra)
    first = f"pip install '{torch}' --index-url {_CPU_WHEELS}, then " if torch else ""
    checkout = find_checkout()
    if checkout is None:
        return f"{first}pip install '.[{extra}]' in the checkout of {_DISTRIBUTION}"
    return f"{first}pip install '{checkout}[{extra}]'"


def find_checkout() -> Path | None:
    """The source folder this package was installed from, or is imported from; None if unknown."""
    beside = Path(__file__).resolve().parents[1]
    if _is_checkout(beside):
        return beside
    try:
        text = importlib.metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")
        url = urlparse(str(json.loads(text or "{}").get("url", "")))
    except (importlib.metadata.PackageNotFoundError, ValueError, AttributeError):
        return None
    place = Path(unquote(url.path))
    return place if url.scheme == "file" and _is_checkout(place) else None


def _is_checkout(folder: Path) -> bool:
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return re.search(rf'^name = "{_DISTRIBUTION}"', text, re.MULTILINE) is not None


def _torch_of(extra: str) -> str | None:
    """The version of torch that an extra asks for, as pip takes it; None if it needs none."""
    try:
        needed = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for line in needed:
        what, _, condition = line.partition(";")
        of_extra = re.search(rf"""extra == ["']{re.escape(extra)}["']""", condition)
        if of_extra and re.match(r"torch\b(?!-)", what):
            return what.strip()
    return None
