"""Conversions that tests share are made once, and anew when anything they depend on changes."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from support import conversion_cache
from support.conversion_cache import ConversionCache, current_state, files_digest, tree_digest


class Maker:
    """Counts how often it is asked to write a folder."""

    def __init__(self, content: str = "weights") -> None:
        self.content, self.calls = content, 0

    def __call__(self, folder: Path) -> str:
        self.calls += 1
        folder.mkdir()
        (folder / "model.onnx").write_text(self.content)
        return f"output {self.calls}\n"


def test_made_once_by_all_sessions(tmp_path: Path) -> None:
    make = Maker()
    for _ in range(2):
        found = ConversionCache(tmp_path, "state").made_once("story", ["paper"], make)
        assert found.folder.name == "story" and found.printed == "output 1\n"
        assert (found.folder / "model.onnx").read_text() == "weights"
    assert make.calls == 1


@pytest.mark.parametrize(
    ("state", "name", "key"), [("b", "n", "k"), ("a", "m", "k"), ("a", "n", "l")]
)
def test_made_anew_for_anything_else(tmp_path: Path, state: str, name: str, key: str) -> None:
    make = Maker()
    first = ConversionCache(tmp_path, "a").made_once("n", ["k"], make)
    assert ConversionCache(tmp_path, state).made_once(name, [key], make) != first
    assert make.calls == 2


def test_processes_that_ask_at_once_wait_for_one(tmp_path: Path) -> None:
    make, begun, go = Maker(), threading.Event(), threading.Event()

    def slowly(folder: Path) -> str:
        begun.set()
        assert go.wait(30)
        return make(folder)

    found: list[Path] = []

    def ask() -> None:  # locks of two open files exclude each other in one process too
        found.append(ConversionCache(tmp_path, "a").made_once("n", [], slowly).folder)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go.set()
    for thread in threads:
        thread.join(30)
    assert make.calls == 1 and found[0] == found[1]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> str:
        folder.mkdir()
        (folder / "half").write_text("")
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        ConversionCache(tmp_path, "a").made_once("n", [], fails)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert ConversionCache(tmp_path, "a").made_once("n", [], Maker()).printed == "output 1\n"


@pytest.mark.parametrize("how", ["changed", "added", "gone"])
def test_a_test_that_changes_one_is_found_and_it_is_made_anew(tmp_path: Path, how: str) -> None:
    cache, make = ConversionCache(tmp_path, "a"), Maker()
    folder = cache.made_once("n", [], make).folder
    cache.check_unchanged()
    if how == "changed":
        (folder / "model.onnx").write_text("weightz")
    elif how == "added":
        (folder / "more").write_text("")
    else:
        (folder / "model.onnx").unlink()
    with pytest.raises(AssertionError, match="a test changed a shared conversion"):
        cache.check_unchanged()
    again = ConversionCache(tmp_path, "a").made_once("n", [], make).folder
    assert (again / "model.onnx").read_text() == "weights" and make.calls == 2
    assert [path.name for path in again.iterdir()] == ["model.onnx"]


def test_the_longest_unused_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion_cache, "KEPT", 2)
    make = Maker()
    for key in "abab":
        ConversionCache(tmp_path, "s").made_once(key, [], make)
    assert make.calls == 2
    ConversionCache(tmp_path, "s").made_once("c", [], make)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
    ConversionCache(tmp_path, "s").made_once("b", [], make)
    assert make.calls == 3
    ConversionCache(tmp_path, "s").made_once("a", [], make)
    assert make.calls == 4


def test_sources_and_settings_are_in_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(conversion_cache.fptq_onnx.__file__).parent
    copy = tmp_path / "fptq_onnx"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    monkeypatch.setattr(conversion_cache.fptq_onnx, "__file__", str(copy / "__init__.py"))
    states = [current_state()]
    for changed in ("passes/fold_into_producers.py", "numerics/gptq.py", "scheme/recipes.py"):
        text = (copy / changed).read_text()
        (copy / changed).write_text(text + "\n")
        states.append(current_state())
        (copy / changed).write_text(text)
        assert current_state() == states[0]
    (copy / "numerics" / "new.py").write_text("")
    states.append(current_state())
    (copy / "numerics" / "new.py").unlink()
    library = tmp_path / "library.so"
    library.write_bytes(b"another")
    with monkeypatch.context() as patch:
        patch.setattr(conversion_cache, "library_path", lambda: library)
        states.append(current_state())
    with monkeypatch.context() as patch:
        patch.setenv("FPTQ_FORCE_KERNEL", "scalar")
        states.append(current_state())
    assert len(set(states)) == len(states) and current_state() == states[0]


def test_the_model_is_in_the_key(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("a")
    digests = {tree_digest(tmp_path)}
    (tmp_path / "model.onnx").write_text("b")
    digests.add(tree_digest(tmp_path))
    (tmp_path / "model.onnx").rename(tmp_path / "other.onnx")
    digests.add(tree_digest(tmp_path))
    assert len(digests) == 3
    assert files_digest([tmp_path / "other.onnx"], tmp_path) in digests
