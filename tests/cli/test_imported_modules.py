"""What a command imports: nothing that it does not use, for importing takes longer than most do.

Modules are counted, not seconds: those depend on the machine.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import onnx
import pytest
from support.command_line import MODEL

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.scheme.recipes import find_recipe

pytestmark = pytest.mark.process

LIBRARIES = {"jinja2", "ml_dtypes", "numpy", "onnx", "onnx_ir", "onnxruntime", "starlette",
             "sympy", "tokenizers", "tqdm", "uvicorn"}  # fmt: skip
OF_GRAPHS = {"onnx_ir", "sympy"}
ROOMS = {
    f"fptq_onnx.{room}"
    for room in (
        "benchmarking",
        "calibration",
        "conversion",
        "evaluation",
        "exporting",
        "graph.linears",
        "graph.shapes",
        "packaging",
        "passes",
        "quantization",
        "scheme.config",
        "scheme.plan",
    )
}  # fmt: skip  (scheme.old_names is names alone)
MAIN = "from fptq_onnx.cli.main import main\ntry: code = main({arguments!r})\n" + (
    "except SystemExit as end: code = end.code\n"
)
PRINT = "import sys; print('\\nmodules', *sys.modules); sys.exit(code)"
# The command as it is, up to where it would wait for requests.
SERVE = "import fptq_onnx.serving.http_server as server\nserver.serve = lambda *a, **k: None\n"


def imported(code: str) -> set[str]:
    """The modules of a fresh process that ran some code, which leaves 0 in `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code + PRINT], capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("\nmodules ")[1].split())


def of_command(*arguments: str) -> set[str]:
    return imported(MAIN.format(arguments=list(arguments)))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with our ops in it, as quickly as that can be had."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    config = find_recipe("paper").config()
    convert(MODEL, folder, samples=Samples("random", 1, 8), config=config, verify_samples=0)
    return folder


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["convert", "--help"],
                                       ["run", "--help"], ["library"]], ids=" ".join)  # fmt: skip
def test_what_computes_nothing_imports_no_library(arguments: list[str]) -> None:
    modules = of_command(*arguments)
    assert not modules & (LIBRARIES | ROOMS)
    assert arguments == ["library"] or "importlib.metadata" not in modules


def test_the_package_imports_no_library() -> None:
    modules = imported("import fptq_onnx; code = 0\n")
    assert not modules & (LIBRARIES | ROOMS | {"argparse", "importlib.metadata"})


@pytest.mark.parametrize("kind", ["float", "converted"])
def test_run_makes_no_graph(kind: str, request: pytest.FixtureRequest) -> None:
    model = MODEL if kind == "float" else request.getfixturevalue("converted")
    modules = of_command("run", str(model), "Once", "--max-tokens", "2", "--threads", "1")
    assert {"onnxruntime", "fptq_onnx.generation.kv.open"} <= modules  # it did run
    assert not modules & (OF_GRAPHS | ROOMS | {"starlette", "tqdm", "uvicorn"})


@pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="no extra [serve]")
def test_serve_makes_no_graph(converted: Path) -> None:
    arguments = ["serve", str(converted), "--port", "0", "--threads", "1"]
    modules = imported(SERVE + MAIN.format(arguments=arguments))
    assert {"uvicorn", "fptq_onnx.generation.kv.open"} <= modules
    assert not modules & (OF_GRAPHS | ROOMS | {"tqdm"})


def test_a_model_to_be_changed_is_run_as_well(tmp_path: Path) -> None:
    """Its initializers are inputs too: loading takes them off, and imports what it needs for it."""
    folder = Path(shutil.copytree(MODEL, tmp_path / "model"))
    proto = onnx.load(MODEL / "model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        value = proto.graph.input.add(name=tensor.name)
        value.type.tensor_type.elem_type = tensor.data_type
        for size in tensor.dims:
            value.type.tensor_type.shape.dim.add(dim_value=size)
    onnx.save(proto, folder / "model.onnx")
    assert ids(folder) == ids(MODEL)
    modules = of_command("run", str(folder), "Once", "--max-tokens", "2", "--threads", "1")
    assert "onnx_ir" in modules


def ids(model: Path) -> Iterable[str]:
    done = subprocess.run(
        [sys.executable, "-m", "fptq_onnx", "run", str(model), "Once upon a time", "--ids",
         "--max-tokens", "8", "--threads", "1"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
