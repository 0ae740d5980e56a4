"""The tables that benchmarks/kernels.py prints are read from its rows without mistakes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def row(impl: str, isa: str, m: int, gops: float, k: int = 4096) -> dict[str, Any]:
    return {
        "impl": impl, "isa": isa, "threads": 1, "M": m, "K": k, "N": 4096, "gops": gops,
        "gbps": gops / 4,
    }  # fmt: skip


ROWS = [
    row("ours avx2 128 per-token", "avx2", 1, 40),
    row("ours avx2 128 per-token", "avx2", 128, 300),
    row("ours avx2 128 per-token", "avx2", 128, 240, k=2048),
    row("ours avx2 128 per-token", "avx2", 512, 280),
    row("MatMulNBits 128", "", 1, 32),
    row("MatMulNBits 128", "", 128, 100),
    row("MatMulNBits 128", "", 128, 120, k=2048),
]


def test_checks_take_the_worst_shape_and_all_large_row_counts() -> None:
    lines = module("kernel_report").check_lines(ROWS, {"avx2": 400.0, "read": 12.5})
    text = [" ".join(line.split()) for line in lines]
    assert "avx2 0.60 of its peak, M >= 128 (0.75: NOT met)" in text  # 240 of 400
    assert "avx2 2.00 times MatMulNBits 128, M >= 128 (2.00: met)" in text  # 240 / 120, not 3.0
    assert "avx2 1.25 times MatMulNBits 128, M = 1 (1.15: met)" in text
    assert "avx2 0.80 of the read bandwidth, M = 1 (0.90: NOT met)" in text  # 10 of 12.5
    assert not any("W8A8" in line for line in text)  # not measured, not judged


def test_checks_compare_two_threads_with_one() -> None:
    two = [dict(row("ours avx2 128 per-token", "avx2", m, gops), threads=2)
           for m, gops in ((1, 41), (128, 570), (512, 504))]  # fmt: skip
    lines = module("kernel_report").check_lines([*ROWS, *two], {})
    text = [" ".join(line.split()) for line in lines]
    assert "avx2 1.80 times one thread with two, M >= 128 (1.80: met)" in text  # 504 / 280


def test_the_table_has_each_cell_once() -> None:
    lines = module("kernel_report").table_lines(ROWS)
    first = lines.index("\nK=4096 N=4096, 1 thread(s), GOPS (GB/s of weights) for M =")
    assert lines[first + 1].split() == ["1", "128", "512"]
    assert lines[first + 2].replace("ours avx2 128 per-token", "").split() == [
        "40", "(10.0)", "300", "(75.0)", "280", "(70.0)",
    ]  # fmt: skip


def test_the_markdown_table_compares_with_the_same_number_of_rows() -> None:
    picture = module("kernel_picture")
    lines = picture.markdown_lines(picture.select(ROWS, 4096, 4096))
    assert lines[0] == "| GOPS | 1 row | 128 rows | 512 rows |"
    assert lines[2] == "| fptq, AVX2 | 40 (1.25x) | 300 (3.00x) | 280 |"


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawn with the extra [bench]")
    picture = module("kernel_picture")
    picture.draw(ROWS[:4], {"read": 12.5, "avx512vnni": 990.0}, "title", tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    assert "<svg" in text
    assert "</svg>" in text
