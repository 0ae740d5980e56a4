"""FPTQ_HUGE_PAGES=1: weights are copied once, their pages given back, and nothing else changes.

Every measurement is in a process of its own, so that other tests' memory does not blur it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from fptq_onnx.runtime import native_library as runtime

HUGE = Path("/sys/kernel/mm/transparent_hugepage")
K = N = 8192  # 32 MB of codes, 2 MB of scales

MEASURE = """
import gc, hashlib, json, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import onnxruntime as ort
from fptq_onnx.runtime import native_library as runtime

def memory():  # bytes in memory: of the weights' file, and of what is advised to be huge pages
    file = huge = 0
    mapping = ""
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0]:
            mapping = line
        elif words[0] == "Rss:":
            resident = int(words[1]) * 1024
        elif words[0] == "VmFlags:":
            if mapping.rstrip().endswith("weights.data"):
                file += resident
            elif "hg" in words and len(mapping.split()) == 5:
                huge += resident
    return file, huge

def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runtime.register(options)
    return ort.InferenceSession(path, options)

def step(what):
    gc.collect()
    file, huge = memory()
    found[what] = [file, huge - before]

found = {}
k = int(sys.argv[2])
x = np.sin(np.arange(3 * k, dtype=np.float32).reshape(3, k))
before = memory()[1]
first, twin = session(sys.argv[1]), session(sys.argv[1])
step("made")
with ThreadPoolExecutor(4) as pool:  # all of them first runs
    y, *others = pool.map(lambda one: one.run(None, {"A": x})[0], [first, twin, first, twin])
assert all((y == other).all() for other in others)
step("run")
second = session(sys.argv[1])
z = second.run(None, {"A": x})[0]
step("second")
assert (y == z).all() and (first.run(None, {"A": x})[0] == y).all()
del first, twin
assert (second.run(None, {"A": x})[0] == y).all()
del second
step("gone")
found["digest"] = hashlib.sha256(y.tobytes()).hexdigest()
print(json.dumps(found))
"""


def measured(model: Path, choice: str | None) -> dict[str, Any]:
    """Bytes [of the file, of copies] at each step, and a digest of the outputs."""
    env = {**os.environ, "FPTQ_ONNX_LIBRARY": str(runtime.library_path())}
    env.pop("FPTQ_HUGE_PAGES", None)
    if choice is not None:
        env["FPTQ_HUGE_PAGES"] = choice
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, model, str(K)],
        env=env, cwd=Path(runtime.__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def model(op: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One linear of 34 MB, its weights in a file beside it."""
    rng = np.random.default_rng(0)
    node = op.make_node(8, 8, 8).with_attribute(K=K, N=[N], block_size=128)
    node = node.with_constant("B", rng.integers(0, 256, (N // 64, K // 8, 256), dtype=np.uint8))
    scales = rng.uniform(0.001, 0.002, (N // 64, K // 128, 64)).astype(np.float32)
    built = op.build(node.with_constant("scales", scales))
    built.graph.inputs[0].shape = ir.Shape(("tokens", K))
    path = tmp_path_factory.mktemp("huge") / "model.onnx"
    ir.save(built, path, external_data="weights.data")
    return path


def has_huge_pages() -> bool:
    """Of the size that is copied to, and memory enough for copies."""
    size, enabled = HUGE / "hpage_pmd_size", HUGE / "enabled"
    if not (size.exists() and enabled.exists()):
        return False
    lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    kilobytes = {line[0]: int(line[1]) for line in lines}
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container: it may be nearly full
    return (
        size.read_text().strip() == str(2 << 20)
        and "[never]" not in enabled.read_text()
        and kilobytes["MemAvailable:"] > kilobytes["MemTotal:"] // 4 + (1 << 20)
        and not (limit.exists() and limit.read_text().strip() != "max")
    )


pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc"),
    pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="ASan maps memory too"),
]


@pytest.mark.skipif(not has_huge_pages(), reason="no huge pages of 2 MB, or no memory for them")
def test_weights_move_at_the_first_run_and_are_shared(model: Path) -> None:
    weights = (model.parent / "weights.data").stat().st_size
    found = measured(model, "1")
    few = 1 << 20
    assert found["made"][1] < few  # making a session copies nothing
    for step in ("run", "second"):  # nor does a second session of the same weights
        file, huge = found[step]
        assert file < few and weights - few < huge < weights + (4 << 20), step
    assert found["gone"][1] < few
    assert found["digest"] == measured(model, "0")["digest"]


@pytest.mark.parametrize("choice", [None, "0", "yes"])
def test_without_the_variable_nothing_is_copied(model: Path, choice: str | None) -> None:
    weights = (model.parent / "weights.data").stat().st_size
    found = measured(model, choice)
    assert found["run"][0] > weights // 2
    assert found["second"][1] < 1 << 20


def test_weights_inside_the_model_stay(model: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside.onnx"
    loaded = ir.load(model)
    ir.external_data.load_to_model(loaded)
    ir.save(loaded, inside)
    found = measured(inside, "1")
    assert found["run"][1] < 1 << 20
    assert found["digest"] == measured(model, "0")["digest"]


def test_our_own_loop_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtime.HUGE_PAGES_VARIABLE, raising=False)
    runtime.prefer_huge_pages()
    assert os.environ[runtime.HUGE_PAGES_VARIABLE] == "1"
    monkeypatch.setenv(runtime.HUGE_PAGES_VARIABLE, "0")
    runtime.prefer_huge_pages()
    assert os.environ[runtime.HUGE_PAGES_VARIABLE] == "0"
