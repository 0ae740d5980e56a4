"""Words that practitioners do not use, each with the term that took its place.

They may stand where old names are accepted, in tests of that, and in CHANGELOG.md.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
RETIRED = {
    r"--(w8|weights|policy|bits-budget|no-clean-up)\b": "--int8-layers, --weight-method, ...",
    r"\b(bits_budget|POLICIES)\b": "target_bits, ACTIVATION_SCHEMES",
    r"\b(last-?word|last_word|last[- ]word (accuracy|perplexity|task))": "LAMBADA",
    r"divisor": "smoothing scale",
    r"\bwalk(s|ed)?\b": "sequential quantization",
    r"\b(two|both) streams\b|TwoStreams": "float and quantized activations side by side",
    r"\bstages?\b|StageView": "layer group",
    r"\bharm\b": "sensitivity",
    r"wider[ _]forms?": "precision candidate",
    r"second_moments|upper_factor": "Hessian, Cholesky factor",
    r"\bfigures\b|\bFigures\b": "metrics",
    r"spellings?\b": "op variant",
    r"clean[-_ ]up": "graph optimization",
    r"reads[-_ ]ahead": "bidirectional attention",
    r"\bways\b|token_ways": "runtimes",
    r"\b(Cache|Padded|Shared|Separate|Refed)Rows\b|\bmax_rows\b": "sequences, slots",
    r"expose_linears|open_convolutions|guard_after_product|plain_transposes|divide_norms":
        "extract_linears, conv1x1_to_matmul, hoist_nan_guard, merge_key_transpose, ...",
}  # fmt: skip
EVERYWHERE = (
    "CHANGELOG.md",
    "fptq_onnx/scheme/old_names.py",
    "fptq_onnx/cli/old_flags.py",
    "tests/scheme/test_old_names.py",
    "tests/cli/test_old_flags.py",
    "tests/conversion/test_old_outputs.py",
    "tests/test_retired_words.py",
)
# Another meaning, or the one line that declares an old flag.
ALLOWED = {
    r"\bwalk(s|ed)?\b": ("fptq_onnx/graph/", "tests/graph/"),  # of a graph, node by node
    r"spellings?\b": ("fptq_onnx/model_io/opset/",),  # of the same op in another opset
}
OLD_FLAG = re.compile(r'^\s*add_old_flag\(\w+, "--[\w-]+", \w+\)$')
ROOMS = ("fptq_onnx", "passes", "docs", "tests", "benchmarks", "tools", "examples")


def texts() -> list[Path]:
    """Python and Markdown in git, of the rooms and the top level."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [Path(name) for name in listed.stdout.split("\0") if name]
    return [
        path
        for path in paths
        if path.suffix in (".py", ".md")
        and (len(path.parts) == 1 or path.parts[0] in ROOMS)
        and (REPOSITORY / path).is_file()
    ]


def findings(path: str, text: str) -> list[str]:
    """Each line of a file that has a retired word, with the word and its term of today."""
    found = []
    for word, today in RETIRED.items():
        if path in EVERYWHERE or path.startswith(ALLOWED.get(word, ("\0",))):
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            match = re.search(word, line)
            if match and not OLD_FLAG.match(line):
                found.append(f"{path}:{number}: {match.group()} (now: {today})")
    return found


def test_retired_words_are_gone() -> None:
    files = texts()
    assert len(files) > 300
    found = []
    for path in files:
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        found += findings(path.as_posix(), f"{path.name}\n{text}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "try --weights mse", "    policy=POLICIES[0],", "the last-word accuracy", "last_word_score",
        "# by the divisors", "left to the walk", "the two streams", "of one stage", "its harm",
        "def figures():", "every spelling", "the clean-up", "reads ahead", "all ways", "max_rows=4",
        "in wider forms",
    ],
)  # fmt: skip
def test_a_planted_word_is_found(line: str) -> None:
    assert findings("docs/page.md", f"A page.\n{line}\n")


def test_what_may_stand() -> None:
    line = '    add_old_flag(plan, "--w8", int8)'
    assert not findings("fptq_onnx/cli/quantization_options.py", line)
    assert findings("fptq_onnx/cli/quantization_options.py", line + "  # --w8")
    assert not findings("CHANGELOG.md", "--w8") and findings("README.md", "--w8")
    assert not findings("fptq_onnx/graph/walk_back.py", "a walk")
    assert not findings("fptq_onnx/passes.py", "weights, policy, --weight-method, half the way")
