"""Models that many tests read, converted once: kept in build/test-cache for the next run too.

What decides what a conversion writes is in the name of its folder: the package's sources, the
native library, the source model, the arguments, and the versions of what computes. So a change of
any of them converts anew. A test about converting itself does not use this.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fptq_onnx
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.runtime.native_library import library_path
from fptq_onnx.scheme.config import Config
from support.command_line import command

COMPUTING = ("numpy", "onnx", "onnx-ir", "onnxruntime", "ml_dtypes", "tokenizers")
KEPT = 24  # folders; older ones go when a new one is made
_DIGESTS, _PRINTED = "digests.json", "printed.txt"


@dataclass(frozen=True)
class Converted:
    """A folder that `convert` wrote, for reading only, and what it printed."""

    folder: Path
    printed: str


@dataclass
class ConversionCache:
    """Conversions in a folder, each made by whichever process needs it first.

    root: the folder. Processes share it.
    state: a digest of all that every conversion depends on.
    """

    root: Path
    state: str
    handed_out: set[Path] = field(default_factory=set)

    def command(self, name: str, source: Path, *arguments: str) -> Converted:
        """What `fptq-onnx convert SOURCE -o NAME ARGUMENTS` writes."""

        def make(folder: Path) -> str:
            done = command("convert", source, "-o", folder, *arguments)
            assert done.returncode == 0, done.stderr
            return done.stdout

        return self.made_once(name, [tree_digest(source), *arguments], make)

    def convert(
        self, name: str, source: Path, *, samples: Samples, config: Config,
        targets: tuple[str, ...] = ("custom",), verify_samples: int = 8,
    ) -> Path:  # fmt: skip
        """What `convert` writes with these arguments; samples are generated or random ones."""
        assert samples.source in ("generated", "random")
        # Samples remember what they drew: a new one each time, so that equal ones are told alike.
        drawn = Samples(samples.source, samples.max_samples, samples.max_seq_len, samples.seed)
        key = [tree_digest(source), repr((drawn, config, targets, verify_samples))]

        def make(folder: Path) -> str:
            convert(
                source, folder, samples=drawn, config=config, targets=targets,
                verify_samples=verify_samples,
            )  # fmt: skip
            return ""

        return self.made_once(name, key, make).folder

    def made_once(self, name: str, key: list[str], make: Callable[[Path], str]) -> Converted:
        """The folder NAME that `make` writes; made unless it is there as it was written.

        Args:
            name: of the folder.
            key: what `make` depends on beside the state.
            make: writes the folder it is given, and returns what it printed.
        """
        digest = hashlib.sha256(json.dumps([self.state, name, key]).encode()).hexdigest()[:24]
        entry = self.root / digest
        self.root.mkdir(parents=True, exist_ok=True)
        with _locked(self.root / f"{digest}.lock"):
            if entry not in self.handed_out and not unchanged(entry):
                shutil.rmtree(entry, ignore_errors=True)
                self._write(entry, name, make)
                self._prune()
            os.utime(entry)
        self.handed_out.add(entry)
        return Converted(entry / name, (entry / _PRINTED).read_text(encoding="utf-8"))

    def check_unchanged(self) -> None:
        """No test changed what it was given; what was changed is made anew next time."""
        changed = [str(entry) for entry in self.handed_out if not unchanged(entry)]
        assert not changed, f"a test changed a shared conversion, not a copy: {changed}"

    def _write(self, entry: Path, name: str, make: Callable[[Path], str]) -> None:
        """All or nothing: written beside its place, then moved there."""
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".making-") as beside:
            making = Path(beside) / "entry"
            making.mkdir()
            (making / _PRINTED).write_text(make(making / name), encoding="utf-8")
            digests = json.dumps(file_digests(making))
            (making / _DIGESTS).write_text(digests, encoding="utf-8")
            making.rename(entry)

    def _prune(self) -> None:
        """Of entries that are not in use here, the longest unused go."""
        entries = [path for path in self.root.iterdir() if (path / _DIGESTS).is_file()]
        entries.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for entry in entries[KEPT:]:
            if entry not in self.handed_out:
                shutil.rmtree(entry, ignore_errors=True)  # its lock stays: others may wait for it


def current_state() -> str:
    """A digest of the sources, the library, versions, and settings of this process."""
    package = Path(fptq_onnx.__file__).parent
    # A link inside the package: rglob does not follow it in all versions of Python.
    folders = (package, (package / "passes").resolve())
    sources = {path for folder in folders for path in folder.rglob("*.py")}
    settings = {name: value for name, value in os.environ.items() if name.startswith("FPTQ_")}
    told = [
        sys.version, platform.machine(), str(os.cpu_count()), json.dumps(settings, sort_keys=True),
        *(f"{name} {importlib.metadata.version(name)}" for name in COMPUTING),
        _digest(library_path()), files_digest(sources, package),
    ]  # fmt: skip
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def files_digest(files: Iterable[Path], base: Path) -> str:
    """A digest of names, below `base` where they are, and contents."""
    told = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(base) if path.is_relative_to(base) else path
        told.update(f"{name.as_posix()} {_digest(path)}\n".encode())
    return told.hexdigest()


def tree_digest(source: Path) -> str:
    """A digest of a file, or of all files of a folder and their names."""
    files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    return files_digest(files, source)


def file_digests(folder: Path) -> dict[str, str]:
    """Of each file under a folder but the list of these."""
    return {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _DIGESTS
    }


def unchanged(entry: Path) -> bool:
    """It is there with every file as it was written."""
    listed = entry / _DIGESTS
    if not listed.is_file():
        return False
    return bool(json.loads(listed.read_text(encoding="utf-8")) == file_digests(entry))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
