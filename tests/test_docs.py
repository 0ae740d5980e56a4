"""Links between the pages of the documentation lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "models/**/*.md", "passes/*.md")
    for page in REPOSITORY.glob(pattern)
)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_CODE = re.compile(r"^(```.*?^```|    .*?)$", re.MULTILINE | re.DOTALL)


def broken_links(page: Path) -> Iterator[str]:
    """Relative links of a page whose file or heading is missing."""
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in anchors(target):
            yield f"{link}: no such heading"


def anchors(page: Path) -> set[str]:
    """The names GitHub gives to the headings of a page."""
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert not list(broken_links(page))


def test_every_page_of_docs_is_in_the_index() -> None:
    index = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {(REPOSITORY / "docs" / name).resolve() for name in _LINK.findall(index)}
    pages = set((REPOSITORY / "docs").glob("**/*.md")) - {REPOSITORY / "docs" / "README.md"}
    assert pages and not pages - linked


def test_broken_links_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One `thing`, two\n\n    # no heading\n")
    page.write_text(
        "[a](other.md#one-thing-two) [b](other.md#no-heading) [c](absent.md) [d](#here)\n"
        "[e](https://example.org/absent.md)\n\n## Here\n"
    )
    assert list(broken_links(page)) == [
        "other.md#no-heading: no such heading",
        "absent.md: no such file",
    ]
