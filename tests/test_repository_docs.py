"""Pages about the repository itself: decisions, kernels, citation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DECISIONS = sorted((REPOSITORY / "docs" / "decisions").glob("[0-9]*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_all_parts(path: Path) -> None:
    number = int(path.stem[:4])
    text = path.read_text(encoding="utf-8")
    begin = (
        rf"# {number}\. .+\n\n\* Status: (accepted|superseded by \d+)\n\* Date: \d{{4}}-\d\d-\d\d"
    )
    assert re.match(begin, text)
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    assert parts[1::2] == ["Context", "Decision", "Consequences"]
    assert all(part.strip() for part in parts[2::2])


def test_all_decisions_are_in_the_list() -> None:
    text = (REPOSITORY / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in DECISIONS] == LINK.findall(text)


def test_every_kernel_is_documented() -> None:
    table = (REPOSITORY / "native" / "kernels" / "dispatch.cc").read_text(encoding="utf-8")
    names = re.findall(r'kernel\.name = "(\w+)";', table)
    text = (REPOSITORY / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert {"amx", "scalar", "neon_i8mm"} <= set(names)
    assert not [name for name in names if f"\n| {name} | " not in text]


def test_the_citation_holds_no_version() -> None:
    """The version has one place; a second one would be forgotten."""
    text = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert "arXiv:2308.15987" in text
    assert not re.search(r"^(version|date-released):", text, re.MULTILINE)
