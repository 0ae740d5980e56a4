"""fptq-onnx compare on the embedded model, small."""

import json
import re

import pytest
from support.command_line import MODEL, command, refused

from fptq_onnx.benchmarking.benchmark import load_within, measure_speeds
from fptq_onnx.benchmarking.compare_recipes import Comparison

pytestmark = pytest.mark.process

HELDOUT = MODEL / "heldout.txt"
SMALL = ("--max-windows", "3", "--max-samples", "2", "--rounds", "1", "--decode", "4", "-q")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """One run: its output, figures and page."""
    folder = tmp_path_factory.mktemp("compare")
    done = command(
        "compare", MODEL, "--data", HELDOUT, "--recipes", "paper,w8a8,fp16", *SMALL,
        "--json", folder / "c.json", "--html", folder / "c.html", "-o", folder / "kept",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "c.json").read_text()), folder


def test_all_models_are_in_the_table_with_every_figure(compared):
    printed, figures, _ = compared
    names = ["original", "paper", "w8a8", "fp16", "stock-32", "stock-128"]
    table = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert [row[0] for row in table[2:]] == names == [row["name"] for row in figures["rows"]]
    assert table[0] == [
        "model", "precision", "bits per weight", "perplexity", "KL (nats)", "top-1", "last word",
        "size", "peak memory", "prefill tokens/s", "decode tokens/s",
    ]  # fmt: skip
    assert all(cell != "-" for row in table[3:] for cell in row)
    assert table[2][7].endswith("(1.00x)")
    rows = {row["name"]: row for row in figures["rows"]}
    kl = {name: rows[name]["evaluation"]["perplexity"]["kl"]["value"] for name in names[1:]}
    assert kl["fp16"] < kl["w8a8"] < kl["stock-32"] < kl["paper"]
    assert rows["stock-32"]["bits_per_weight"] > rows["stock-128"]["bits_per_weight"] > 4
    assert rows["paper"]["bytes"] < rows["w8a8"]["bytes"] < rows["original"]["bytes"]
    assert all(row["speed"]["decode"] > 0 for row in rows.values())


def test_the_page_has_the_figures_and_no_scripts(compared):
    printed, _, folder = compared
    page = (folder / "c.html").read_text()
    assert "<script" not in page and page.count("<svg") == 3 and "href" not in page
    for cell in re.findall(r"\d\.\d{5} ± \d\.\d{5}", printed):
        assert cell in page


def test_the_models_are_kept_where_asked(compared):
    kept = compared[2] / "kept"
    assert {path.name for path in kept.iterdir()} == {
        "paper", "w8a8", "fp16", "stock-32", "stock-128",
    }  # fmt: skip
    speed = _speed(kept / "paper")
    assert speed.prefill > 0 and speed.decode is not None
    assert speed.peak_bytes > (kept / "paper" / "model.onnx.data").stat().st_size


def test_a_models_memory_is_its_own_and_not_this_process(compared):
    ballast = bytearray(400 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    assert _speed(compared[2] / "kept" / "paper").peak_bytes < 400 << 20


def _speed(model):
    (speed,) = measure_speeds([model], load_within(None, 8, 2), threads=1, rounds=1)
    return speed


@pytest.mark.parametrize(
    ("context", "prefill", "steps"), [(None, 128, 32), (161, 128, 32), (160, 127, 32), (64, 47, 16)]
)
def test_what_is_timed_fits_into_the_context(context, prefill, steps):
    load = load_within(context, 128, 32)
    assert (load.prefills, load.depths, load.steps) == ((prefill,), (prefill,), steps)
    assert context is None or load.longest() <= context


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (("--recipes", "paper,awq"), "no recipe 'awq'"),
        (("--rounds", "0"), "must be at least 1"),
        (("--html", "nowhere/at/all.html"), "make it first"),
        (("--json", MODEL), "is a folder"),
    ],
)
def test_mistakes_are_told_before_any_work(arguments, saying):
    refused("compare", MODEL, "--data", HELDOUT, *arguments, saying=saying)


def test_data_that_are_no_use(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    refused("compare", MODEL, "--data", tmp_path / "empty.txt", saying="empty.txt")
    refused("compare", MODEL, "--data", tmp_path / "none.txt", saying="none.txt")


def test_a_comparison_is_plain_json():
    assert json.loads(json.dumps(Comparison("m", "d", 1, 1, 0, 1, ()).to_dict()))["rows"] == []
