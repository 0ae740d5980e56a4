"""docs/cli.md is what the parsers give, and a hidden option is in neither."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from fptq_onnx.cli import build_parser

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import cli_reference

    return cli_reference


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """Two commands with every kind of argument."""
    made = argparse.ArgumentParser(prog="tool")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    first = commands.add_parser("first", help="do the first thing")
    first.add_argument("model", help="a model (or a folder)")
    first.add_argument("text", nargs="?", metavar="PROMPT", help="text | nothing")
    first.add_argument("-o", "--output", required=True, help="where to write")
    first.add_argument("--size", type=int, default=64, help="of a group (32, 64; 64)")
    first.add_argument("--old-size", dest="size", type=int, help=argparse.SUPPRESS)
    first.add_argument("--rounds", type=int, default=3, metavar="N", help="of timing")
    first.add_argument("--zero", type=int, default=0, help="nothing")
    first.add_argument("--all", action="store_true", help="take all (slow)")
    limits = first.add_argument_group("limits")
    limits.add_argument("--many", nargs="+", default=[], metavar="N", help="numbers below 100 %%")
    hidden = first.add_argument_group("hidden")
    hidden.add_argument("--secret", help=argparse.SUPPRESS)
    commands.add_parser("second", help="do nothing")
    return made


def test_the_page_is_what_the_parsers_give(tool) -> None:
    written = tool.PAGE.read_text(encoding="utf-8")
    current = tool.reference(build_parser())
    assert written == current, f"docs/cli.md is out of date: run {tool.COMMAND}"


def test_every_command_is_listed(tool) -> None:
    page = tool.PAGE.read_text(encoding="utf-8")
    for name in ("convert", "inspect", "run", "serve", "eval", "compare", "bench", "package"):
        assert f"\n## {name}\n\n    fptq-onnx {name} " in page


def test_a_page_of_all_kinds_of_arguments(tool, parser: argparse.ArgumentParser) -> None:
    page = tool.reference(parser)
    assert page.endswith(
        "| command | |\n"
        "|---|---|\n"
        "| [first](#first) | do the first thing |\n"
        "| [second](#second) | do nothing |\n"
        "\n"
        "## first\n"
        "\n"
        "    tool first [OPTIONS] --output OUTPUT MODEL [PROMPT]\n"
        "\n"
        "Do the first thing.\n"
        "\n"
        "| argument | default | |\n"
        "|---|---|---|\n"
        "| `MODEL` | | a model (or a folder) |\n"
        "| `PROMPT` | | text \\| nothing |\n"
        "\n"
        "| option | default | |\n"
        "|---|---|---|\n"
        "| `-o`, `--output OUTPUT` | | where to write |\n"
        "| `--size SIZE` | 32, 64; 64 | of a group |\n"
        "| `--rounds N` | 3 | of timing |\n"
        "| `--zero ZERO` | 0 | nothing |\n"
        "| `--all` | | take all (slow) |\n"
        "\n"
        "Options of limits:\n"
        "\n"
        "| option | default | |\n"
        "|---|---|---|\n"
        "| `--many N...` | | numbers below 100 % |\n"
        "\n"
        "## second\n"
        "\n"
        "    tool second\n"
        "\n"
        "Do nothing.\n"
    )
    assert "old-size" not in page and "secret" not in page and "hidden" not in page


def test_check_tells_how_to_mend_it(tool, monkeypatch, tmp_path: Path, capsys) -> None:
    stale = tmp_path / "cli.md"
    stale.write_text(tool.PAGE.read_text(encoding="utf-8").replace("convert", "turn"))
    monkeypatch.setattr(tool, "PAGE", stale)
    monkeypatch.setattr(sys, "argv", ["cli_reference.py", "--check"])
    assert tool.main() == 1
    assert "run python tools/cli_reference.py" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["cli_reference.py"])
    assert tool.main() == 0
    assert stale.read_text() == tool.reference(build_parser())


@pytest.mark.process
def test_the_script_runs() -> None:
    done = subprocess.run(
        [sys.executable, TOOLS / "cli_reference.py", "--check"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
