"""inspect --errors: the linear that is off comes first."""

import json

import pytest
from support.command_line import MODEL, RANDOM_FEW, command, refused

VICTIM = "model.layers.3.mlp.gate_proj"
SHARING = {VICTIM, "model.layers.3.mlp.up_proj"}  # they read the same value


@pytest.fixture(scope="module")
def planned(conversions):
    """The default recipe's output."""
    return conversions.command("out", MODEL, *RANDOM_FEW).folder


def rows_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_planted_wrong_scale_is_found_first(planned, tmp_path):
    plan = json.loads((planned / "plan.json").read_text())
    for entry in plan["linears"]:
        if entry["path"] == VICTIM:
            entry.update(scheme="static", input_scale=1.0)  # its input reaches about 5
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    arguments = ("--plan", tmp_path / "plan.json", *RANDOM_FEW)
    folder = tmp_path / "out"
    assert command("convert", MODEL, "-o", folder, *arguments).returncode == 0
    for done in (
        command("inspect", folder, "--errors", "--json"),
        command("inspect", MODEL, "--errors", "--json", *arguments),
    ):
        rows = rows_of(done)
        assert len(rows) == 31 and rows[0]["path"] == VICTIM
        assert rows[0]["output_local_sqnr_db"] < rows[1]["output_local_sqnr_db"] - 3
    table = command("inspect", folder, "--errors").stdout.splitlines()
    assert "as measured when out was converted" in table[0]
    assert table[2].startswith(VICTIM)


def test_every_figure_is_there_and_totals_are_worse_than_local_ones(planned):
    rows = rows_of(command("inspect", planned, "--errors", "--json"))
    worst = [row["output_local_sqnr_db"] for row in rows]
    assert worst == sorted(worst)
    for row in rows:
        assert 5 < row["weight_sqnr_db"] < 40 and row["input_local_sqnr_db"] > 20
    later = [row for row in rows if "layers.5" in row["path"]]
    assert later and all(row["input_total_sqnr_db"] < row["input_local_sqnr_db"] for row in later)


@pytest.mark.slow
def test_the_papers_recipe_measures_when_asked(tmp_path):
    folder = tmp_path / "out"
    options = ("--recipe", "paper", *RANDOM_FEW)
    assert command("convert", MODEL, "-o", folder, *options).returncode == 0
    refused("inspect", folder, "--errors", saying="written without measuring errors")
    assert len(rows_of(command("inspect", MODEL, "--errors", "--json", *options))) == 31


def test_inspect_says_whose_schemes_it_shows():
    done = command("inspect", MODEL, *RANDOM_FEW)
    assert done.returncode == 0 and "by the paper's thresholds" in done.stdout
    done = command("inspect", MODEL, "--activation-scheme", "thresholds", *RANDOM_FEW)
    assert "by the paper's thresholds" not in done.stdout


def test_a_dry_run_decides_as_the_conversion_does(planned):
    done = command("convert", MODEL, "--dry-run", *RANDOM_FEW)
    assert done.returncode == 0, done.stderr
    plan = json.loads((planned / "plan.json").read_text())["linears"]
    per_token = sum(entry["scheme"] == "per_token" for entry in plan)
    assert f"{per_token} per-token dynamic" in done.stdout
