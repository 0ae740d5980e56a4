"""The shape of the repository, so that it stays one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PASSES = sorted(
    path.relative_to(REPOSITORY / "passes").with_suffix("").as_posix()
    for path in (REPOSITORY / "passes").rglob("*.py")
    if not path.stem.startswith("_")
)
LONGEST = 300
# Files that are longer, each with the reason it is not split.
LONGER: dict[str, str] = {}


def tracked() -> list[Path]:
    """Files in git; in an unpacked source archive, all source files."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name]


def test_there_are_passes() -> None:
    assert {"normalize", "fold_into_producers", "emit_custom"} <= set(PASSES)


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_has_its_test(name: str) -> None:
    place = (REPOSITORY / "tests" / "passes" / name).with_name(f"test_{Path(name).name}.py")
    text = place.read_text(encoding="utf-8")
    assert f"fptq_onnx.passes.{name.replace('/', '.')} import" in text


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_called_as_its_file(name: str) -> None:
    """House rule: one verb phrase, in the file of that name, with a docstring."""
    text = (REPOSITORY / "passes" / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert re.search(rf"^def {Path(name).name}\(", text, re.MULTILINE)


def test_passes_are_linked_into_the_package() -> None:
    link = REPOSITORY / "fptq_onnx" / "passes"
    assert link.resolve() == REPOSITORY / "passes"
    assert (link / "fold_into_producers.py").is_file()
    if link.is_symlink():  # a source archive may hold the files themselves
        assert str(link.readlink()) == "../passes"


@pytest.mark.process
def test_passes_have_one_identity() -> None:
    """Importing the folder by its own name would make second copies of every class."""
    done = subprocess.run(
        [sys.executable, "-c", "import passes"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "ImportError: import fptq_onnx.passes, not passes" in done.stderr


def test_no_source_file_is_long() -> None:
    long = {}
    for path in tracked():
        if path.suffix in (".py", ".cc", ".h", ".cpp", ".hpp"):
            lines = (REPOSITORY / path).read_text(encoding="utf-8").count("\n")
            if lines > LONGEST and path.as_posix() not in LONGER:
                long[path.as_posix()] = lines
    assert not long


def test_exceptions_still_exist() -> None:
    assert set(LONGER) <= {path.as_posix() for path in tracked()}


def test_no_file_is_named_after_nothing() -> None:
    names = {"utils.py", "helpers.py", "common.py", "misc.py", "graph_surgeries.py"}
    assert not [path for path in tracked() if path.name in names]


def test_no_path_of_anybodys_machine() -> None:
    # Written in two parts, so that this file is not its own finding.
    pattern = re.compile("/" + r"(home|root|work|Users)/\w|" + "/" + r"tmp/\w")
    kinds = (".py", ".md", ".toml", ".cc", ".h", ".txt", "")
    found = []
    for path in tracked():
        full = REPOSITORY / path
        if path.suffix in kinds and path.name != "heldout.txt" and full.is_file():
            text = full.read_text(encoding="utf-8", errors="replace")
            found += [f"{path}: {match.group()}" for match in pattern.finditer(text)]
    assert not found


def test_the_package_is_typed_and_small_files_only() -> None:
    assert (REPOSITORY / "fptq_onnx" / "py.typed").is_file()
    big = [
        path.as_posix()
        for path in tracked()
        if path.parts[0] != "models"
        and (REPOSITORY / path).is_file()
        and (REPOSITORY / path).stat().st_size > 200_000
    ]
    assert not big


ROOMLESS = {"__init__", "__main__", "errors", "lm_eval_model", "progress", "version"}
MOST_MODULES = 20


def test_every_module_has_its_room() -> None:
    """What everybody uses lies directly in the package, and nothing else."""
    assert {path.stem for path in (REPOSITORY / "fptq_onnx").glob("*.py")} == ROOMLESS


def test_rooms_are_small() -> None:
    package = REPOSITORY / "fptq_onnx"
    folders = [path for path in (*package.rglob("*"), package / "passes") if path.is_dir()]
    modules = {
        folder.relative_to(REPOSITORY).as_posix(): len(
            [path for path in folder.glob("*.py") if path.stem != "__init__"]
        )
        for folder in (package, *folders)
    }
    assert not {name for name, count in modules.items() if count > MOST_MODULES}


def test_the_version_is_in_one_place() -> None:
    """The build, the package and the command line read it in version.py."""
    text = (REPOSITORY / "fptq_onnx" / "version.py").read_text(encoding="utf-8")
    written = re.search(r'__version__ = "([^"]+)"', text)
    assert written is not None
    number = re.escape(written.group(1))
    stated = re.compile(rf"""version(__)?["']?\s*[=:]\s*["']?{number}\b""", re.IGNORECASE)
    kinds = (".py", ".toml", ".cfg", ".txt", ".cc", ".h", ".cff")
    files = [path for path in tracked() if path.suffix in kinds and (REPOSITORY / path).is_file()]
    found = {
        path.as_posix() for path in files
        if stated.search((REPOSITORY / path).read_text(encoding="utf-8", errors="replace"))
    }  # fmt: skip
    assert found == {"fptq_onnx/version.py"}
