"""An output folder that is either complete or absent.

Everything is written into a hidden folder beside the output and renamed at the end, so a crash, a
full disk or Ctrl-C leaves nothing behind, and the input can never be overwritten.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fptq_onnx.errors import FptqError

REPORT_FILE = "report.json"


def check_output(source: Path, output: Path, *, overwrite: bool, marker: str = REPORT_FILE) -> None:
    """Refuse an output that would endanger the input or somebody else's files.

    Args:
        source: the model as the user gave it, a file or a folder.
        output: where the result is to go.
        overwrite: replace an output folder that this tool wrote before.
        marker: a file that only such a folder, or a folder in it, has.

    Raises:
        FptqError: the output is inside the input, holds it or the current folder, or exists and may
            not be replaced.
    """
    source, target = source.resolve(), output.resolve()
    folder = source if source.is_dir() else source.parent
    if source.is_dir() and target.is_relative_to(source):
        raise FptqError(
            f"the output {output} is inside the input {source}: choose a folder elsewhere with -o"
        )
    if folder.is_relative_to(target):
        raise FptqError(
            f"the output {output} is the folder of the input: choose another one with -o"
        )
    if Path.cwd().is_relative_to(target):  # it is renamed at the end, and would be pulled away
        raise FptqError(f"the output {output} is the current folder: choose another one with -o")
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise FptqError(f"the output {output} exists and is not a folder: choose another with -o")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise FptqError(f"the output {output} exists: give --overwrite to replace it")
    if not list(output.glob(marker)) and not list(output.glob(f"*/{marker}")):
        raise FptqError(
            f"the output {output} was not written by this tool (no {marker}), so it is not "
            f"overwritten: remove it or choose another with -o"
        )


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """A work folder that becomes `output` when the block ends well, and vanishes otherwise.

    Raises:
        FptqError: the disk is full or the place is not writable.
    """
    made = [folder for folder in output.parents if not folder.exists()]  # the deepest first
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(
            tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent)
        )
    except OSError as error:
        _remove_empty(made)
        raise FptqError(f"cannot write to {output.parent}: {error.strerror}") from error
    try:
        yield work
        work.chmod(0o777 & ~_umask())  # mkdtemp makes it private to the user
        _replace(output, work)
    except OSError as error:
        raise FptqError(explain_write_error(error, output)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """Remove those that hold nothing: after a success the output is in them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _replace(output: Path, work: Path) -> None:
    if not output.exists():
        os.rename(work, output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent))
    os.rename(output, old / "old")
    try:
        os.rename(work, output)
    except OSError:
        os.rename(old / "old", output)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def explain_write_error(error: OSError, output: Path) -> str:
    """What to tell of an error met while writing `output`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk that holds {output.parent} is full: free some space or choose another -o"
    if error.errno == errno.EFBIG:
        return f"a file for {output} exceeds the size allowed here: choose another place with -o"
    return f"cannot write {output}: {error.strerror or error}"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
