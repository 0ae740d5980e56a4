"""The process that exports: what its errors become, and that it never outlives its caller."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.exporting import run_worker as module
from fptq_onnx.exporting.run_worker import run_worker
from fptq_onnx.exporting.worker import explain

JOB = {"source": "x", "exporter": "genai", "folder": "x", "reference": "x"}


def wrapped(cause: BaseException) -> RuntimeError:
    error = RuntimeError("the exporter's own words\nand more of them")
    error.__cause__ = cause
    return error


class TorchExportError(Exception):
    """As torch.onnx raises, with colours and advice to its developers."""

    __module__ = "torch.onnx._internal.exporter._errors"


def of_torch(cause: BaseException | None) -> TorchExportError:
    error = TorchExportError(
        "Failed to export. \x1b[96mThis is step 1/3\x1b[0m. Next steps:\n- Modify"
    )
    error.__cause__ = cause
    return error


def test_torch_is_asked_for_the_cause() -> None:
    why = explain(of_torch(ValueError("Could not guard on\x1b[1m u0\x1b[0m.  (symbols)\nmore")))
    assert why == (
        "the exporter failed (ValueError: Could not guard on u0. (symbols)): try another "
        "--exporter, or --verbose"
    )
    assert explain(of_torch(None)) == (
        "the exporter failed (TorchExportError: Failed to export. This is step 1/3. Next steps): "
        "try another --exporter, or --verbose"
    )
    assert explain(of_torch(MemoryError())).startswith("out of memory")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FptqError("as it is"), "as it is"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (wrapped(OSError(errno.EFBIG, "File too large")), "the disk is full"),
        (RuntimeError("write failed: No space left on device (os error 28)"), "the disk is full"),
        (wrapped(MemoryError()), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (wrapped(ValueError("x")), "the exporter failed (RuntimeError: the exporter's own words):"),
        (KeyError("llama"), "the exporter failed (KeyError: 'llama')"),
    ],
)
def test_one_sentence_for_an_error(error: BaseException, sentence: str) -> None:
    assert explain(error).startswith(sentence)
    assert "\n" not in explain(error)


def a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have this code run in the place of the worker, with its two arguments."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport sys, os, time\nresult = sys.argv[4]\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(script))


@pytest.mark.process
def test_a_worker_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_worker(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)")
    with pytest.raises(FptqError, match="it was killed, perhaps for lack of memory"):
        run_worker(JOB, tmp_path, tmp_path, quiet=True, verbose=False)


@pytest.mark.process
def test_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_worker(tmp_path, monkeypatch, "time.sleep(0.3); open(result, 'w').write('{\"causal\": 1}')")
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.05)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").write_bytes(bytes(2000))
    done = run_worker(JOB, tmp_path, tmp_path / "out", quiet=False, verbose=False)
    assert done == {"causal": 1}
    assert "exporting: 0 s, 2.0 kB written" in capsys.readouterr().err


@pytest.mark.process
def test_an_interrupt_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_worker(tmp_path, monkeypatch, "open(result + '.pid', 'w').write(str(os.getpid()))\n"
             "time.sleep(60)")  # fmt: skip
    pid_file = tmp_path / "result.json.pid"

    def interrupt(*_: object, **__: object) -> None:
        while not pid_file.is_file() or not pid_file.read_text():
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_worker(JOB, tmp_path, tmp_path, quiet=True, verbose=False)
    assert not Path("/proc", pid_file.read_text()).exists()
