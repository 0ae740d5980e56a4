"""What native/ may include, and where its files have to be named.

Kernels and memory know nothing of ONNX Runtime: they can be built, tested and timed without it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
NATIVE = REPOSITORY / "native"
INCLUDE = re.compile(r"^[ \t]*#[ \t]*include\b[ \t]*(.*?)[ \t]*$", re.MULTILINE)
# Names of ONNX Runtime and of our declarations of it: a copied struct needs no include.
RUNTIME = re.compile(r"\bort::|\bnamespace ort\b|\bOrt[A-Z]\w*|\bORT_\w+", re.ASCII)
# Folders that use nothing but the standard headers, the instructions' headers and themselves.
ON_THEIR_OWN = ("kernels", "memory")


def sources(folder: str) -> list[Path]:
    """The C++ files of a folder of native/."""
    return sorted(path for path in (NATIVE / folder).iterdir() if path.suffix in (".cc", ".h"))


def without_comments(text: str) -> str:
    """Text without // and /* */ comments, which may speak of ONNX Runtime."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def strangers(text: str, own: set[str]) -> list[str]:
    """Includes of anything but `own` files and system headers, and names of ONNX Runtime."""
    code = without_comments(text)
    found = []
    for included in INCLUDE.findall(code):
        if included.startswith("<"):
            allowed = "ort_" not in included and "onnx" not in included.lower()
        else:  # "file.h" of the same folder; a macro is not looked through, so not allowed
            allowed = included.strip('"') in own and included.startswith('"')
        if not allowed:
            found.append(included)
    return found + RUNTIME.findall(code)


@pytest.mark.parametrize("folder", ON_THEIR_OWN)
def test_kernels_and_memory_do_without_onnx_runtime(folder: str) -> None:
    files = sources(folder)
    own = {path.name for path in files}
    found = {path.name: strangers(path.read_text(encoding="utf-8"), own) for path in files}
    assert files
    assert not {name: names for name, names in found.items() if names}


@pytest.mark.parametrize(
    "planted",
    [
        '#include "ort_abi.h"',
        '#include "ort_wrappers.h"',
        '#include "linear_op.h"',
        '#include "../ops/node_info.h"',
        '  #  include "ort_abi.h"',
        "#include <onnxruntime_c_api.h>",
        "#include <onnxruntime/core/session/onnxruntime_cxx_api.h>",
        "#include FPTQ_SOME_HEADER",
        "void run(const ort::Functions& f);",
        "struct OrtApi;",
        "int status = ORT_FAIL;",
    ],
)
def test_a_planted_violation_is_found(planted: str) -> None:
    path = NATIVE / "kernels" / "dispatch.cc"
    own = {other.name for other in sources("kernels")}
    text = path.read_text(encoding="utf-8")
    assert not strangers(text, own)
    assert strangers(f"{text}\n{planted}\n", own)
    assert not strangers(f"{text}\n// {planted}\n", own)


@pytest.mark.parametrize("folder", ["kernels", "memory", "ops", "tests", "bench"])
def test_every_source_file_is_built(folder: str) -> None:
    """A file that CMakeLists.txt does not name is neither compiled nor tested."""
    lists = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
    names = [f"native/{folder}/{path.name}" for path in sources(folder) if path.suffix == ".cc"]
    assert names
    assert not [name for name in names if not re.search(rf"{re.escape(name)}(?![\w.])", lists)]


def test_files_are_in_a_folder_of_their_kind() -> None:
    assert not [path.name for path in NATIVE.iterdir() if path.is_file()]
