"""A package for linux-aarch64 on this machine, under qemu-user: the tokens that x86 writes.

make test-package-aarch64 builds the library, fetches an ONNX Runtime for Arm, and names both here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.command_line import command
from support.edge_tools import compile_runner, opened, run_tokens

from fptq_onnx.generation.greedy import generate
from fptq_onnx.runtime.decoder import open_decoder

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LIBRARY, RUNTIME = os.environ.get("FPTQ_AARCH64_LIBRARY"), os.environ.get("FPTQ_AARCH64_RUNTIME")
TOOLS = Path(__file__).resolve().parents[2] / "tools"
PROMPT = [1, 432, 445, 261, 406]
NEW = 40

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        not (LIBRARY and RUNTIME), reason="needs a library and an ONNX Runtime for Arm: "
        "make test-package-aarch64"
    ),
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
        reason="needs the Debian packages g++-aarch64-linux-gnu and qemu-user",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def package(both: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = tmp_path_factory.mktemp("arm") / "story.tar.gz"
    done = command(
        "package", both / "custom", "--for", "edge", "--target", "linux-aarch64",
        "--library", LIBRARY, "-o", archive,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return opened(archive, tmp_path_factory.mktemp("opened"))


@pytest.fixture(scope="module")
def sysroots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the name of the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        from qemu_sysroot import CPUS, make_sysroot
    place = tmp_path_factory.mktemp("sysroot")
    return {cpu: make_sysroot(place / cpu, cpu) for cpu in CPUS}


def test_its_own_test_passes(package: Path, sysroots: dict[str, Path]) -> None:
    done = subprocess.run(
        [package / "smoke_test.sh", RUNTIME],
        env={**os.environ, "CXX": COMPILER, "RUN": f"{EMULATOR} -L {sysroots['max']}"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "going on with the portable graph" not in done.stderr
    assert done.stdout.endswith("PASSED\n")


# All instructions, without i8mm, and without dot products: another kernel each.
@pytest.mark.parametrize("cpu", ["max", "cortex-a76", "cortex-a72"])
def test_the_tokens_that_x86_writes(
    package: Path, sysroots: dict[str, Path], both: Path, tmp_path: Path, cpu: str
) -> None:
    runner = compile_runner(package, tmp_path, compiler=COMPILER)
    emulated = (EMULATOR, "-cpu", cpu, "-L", sysroots[cpu], runner)
    options = ("--onnxruntime", RUNTIME, "--model", package / "model", "--threads", 1)
    tokens, told = run_tokens(*emulated, *options, "--tokens", NEW, *PROMPT)
    assert "portable" not in told
    expected = generate(open_decoder(both / "custom", threads=1), PROMPT, NEW, eos=[2])
    assert tokens == list(expected)
    assert len(tokens) > 20


def test_the_library_of_another_machine_is_told_of(both: Path, tmp_path: Path) -> None:
    done = command(
        "package", both, "--for", "edge", "--library", LIBRARY, "-o", tmp_path / "a.tar.gz"
    )
    assert done.returncode == 2
    assert "was built for linux-aarch64, not for" in done.stderr
    assert not list(tmp_path.iterdir())
