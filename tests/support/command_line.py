"""Running the command line as a user does: in a subprocess."""

import subprocess
import sys
from pathlib import Path

MODEL = Path(__file__).parents[2] / "models" / "tinystories-7m"
RANDOM_FEW = ("--max-samples", "2", "--max-seq-len", "32")


def command(*arguments, **options):
    """Run the command; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "fptq_onnx", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        **options,
    )


def refused(*arguments, saying, code=2, **options):
    """The command fails with one clear line, and no traceback."""
    result = command(*arguments, **options)
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("fptq-onnx: ")]
    assert len(lines) == 1, result.stderr
    assert saying in lines[0], lines[0]
    assert "Traceback" not in result.stderr
    return result


def leftovers(folder):
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())
