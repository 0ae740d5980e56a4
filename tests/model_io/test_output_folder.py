from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fptq_onnx.conversion.pipeline import default_output
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.output_folder import REPORT_FILE, atomic_folder, check_output


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def written_before(folder: Path) -> Path:
    folder.mkdir()
    (folder / REPORT_FILE).write_text("{}")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.onnx").write_bytes(b"model")
    return tmp_path / "in"


def test_a_new_place_and_an_empty_folder_are_fine(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for output in ("out", "empty", "deep/er/out", "in-w4a8"):
        check_output(source, tmp_path / output, overwrite=False)
        check_output(source / "model.onnx", tmp_path / output, overwrite=False)


@pytest.mark.parametrize("inside", [".", "out", "a/b", "../in/out", "a/../out"])
def test_output_inside_the_input(source: Path, inside: str) -> None:
    for overwrite in (False, True):
        with pytest.raises(FptqError, match=r"is inside the input .*: choose a folder elsewhere"):
            check_output(source, source / inside, overwrite=overwrite)


def test_output_inside_the_input_through_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(FptqError, match="is inside the input"):
        check_output(tmp_path / "link", source / "out", overwrite=False)
    with pytest.raises(FptqError, match="is inside the input"):
        check_output(source, tmp_path / "link" / "out", overwrite=False)


def test_output_that_holds_the_input(source: Path, tmp_path: Path) -> None:
    (tmp_path / REPORT_FILE).write_text("{}")
    for output in (tmp_path, tmp_path.parent):
        with pytest.raises(FptqError, match="is the folder of the input"):
            check_output(source, output, overwrite=True)
    with pytest.raises(FptqError, match="is the folder of the input"):
        check_output(source / "model.onnx", source, overwrite=True)


def test_an_existing_output_needs_overwrite(source: Path, tmp_path: Path) -> None:
    output = written_before(tmp_path / "out")
    with pytest.raises(FptqError, match="exists: give --overwrite"):
        check_output(source, output, overwrite=False)
    check_output(source, output, overwrite=True)


def test_outputs_of_several_targets_may_be_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    written_before(tmp_path / "out" / "qdq")
    check_output(source, tmp_path / "out", overwrite=True)


def test_folders_of_others_are_never_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(FptqError, match="was not written by this tool"):
        check_output(source, tmp_path / "out", overwrite=True)


def test_an_output_that_is_no_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    written_before(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "dangling", "link"):
        with pytest.raises(FptqError, match="exists and is not a folder"):
            check_output(source, tmp_path / name, overwrite=True)
    with pytest.raises(FptqError, match="exists and is not a folder"):
        check_output(tmp_path / "file", tmp_path / "file", overwrite=True)


def test_everything_or_nothing(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as work:
        (work / "sub").mkdir()
        (work / "sub" / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert listing(tmp_path) == ["out", "out/sub", "out/sub/a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, FptqError, SystemExit])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="boom"), atomic_folder(tmp_path / "out") as work:
        (work / "a").write_text("a")
        raise error("boom")
    assert listing(tmp_path) == []


def test_folders_made_on_the_way_are_removed_again(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match="boom"), atomic_folder(tmp_path / "here/a/b/out"):
        raise ValueError("boom")
    assert listing(tmp_path) == ["here"]


def test_the_old_output_survives_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(ValueError, match="boom"), atomic_folder(tmp_path / "out") as work:
        (work / "new").write_text("new")
        raise ValueError("boom")
    assert listing(tmp_path) == ["out", "out/old"]


def test_the_old_output_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with atomic_folder(tmp_path / "out") as work:
        (work / "new").write_text("new")
    assert listing(tmp_path) == ["out", "out/new"]


def test_the_old_output_returns_when_the_swap_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if ".partial" in str(source):
            raise OSError(errno.EACCES, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(FptqError, match="Permission denied"), atomic_folder(tmp_path / "out"):
        pass
    assert listing(tmp_path) == ["out", "out/old"]


def test_the_folder_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    with atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize(
    ("code", "match"),
    [
        (errno.ENOSPC, "the disk that holds .* is full: free some space"),
        (errno.EDQUOT, "the disk that holds .* is full: free some space"),
        (errno.EFBIG, "exceeds the size allowed"),
        (errno.EIO, "cannot write .*out"),
    ],
)
def test_write_errors_are_explained(tmp_path: Path, code: int, match: str) -> None:
    with pytest.raises(FptqError, match=match), atomic_folder(tmp_path / "out"):
        raise OSError(code, os.strerror(code))
    assert listing(tmp_path) == []


@pytest.mark.process
def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    """A process that may write 4096 bytes a file: the model's data cannot be written."""
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
import onnx_ir as ir
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.save import save_model
from fptq_onnx.model_io.output_folder import atomic_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
model = ir.from_onnx_text('<ir_version: 8, opset_import: ["" : 18]> '
    'g (float[64] x) => (float[64] y) { y = MatMul(x, W) }',
    initializers=[ir.tensor(np.ones((64, 64), np.float32), name="W")])
try:
    with atomic_folder(Path(sys.argv[1])) as work:
        save_model(model, work)
except FptqError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert "exceeds the size allowed here" in done.stdout
    assert listing(tmp_path) == []


def test_an_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FptqError, match="cannot write to"), atomic_folder(tmp_path / "file/out"):
        pass


def test_the_current_folder_is_not_pulled_away(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deep")
    for output in (Path(), tmp_path / "here"):
        with pytest.raises(FptqError, match="is the current folder: choose another"):
            check_output(source, output, overwrite=True)
    check_output(source, Path("out"), overwrite=False)


def test_the_default_output_lies_beside_the_path_that_was_given(tmp_path):
    (tmp_path / "far" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "model")
    assert default_output(tmp_path / "link") == tmp_path / "link-w4a8"
    assert default_output(tmp_path / "far" / "a.onnx") == tmp_path / "far" / "a-w4a8"
