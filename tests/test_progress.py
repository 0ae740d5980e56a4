from __future__ import annotations

import io
import itertools

import pytest

from fptq_onnx import progress
from fptq_onnx.progress import track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ticking(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    clock = itertools.count(0.0, seconds)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
@pytest.mark.parametrize("quiet", [True, False])
def test_every_item_comes_through(stream: type[io.StringIO], quiet: bool) -> None:
    out = stream()
    assert list(track(iter("abc"), total=3, what="counting", quiet=quiet, stream=out)) == [*"abc"]
    if quiet:
        assert out.getvalue() == ""


def test_plain_lines_with_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking(monkeypatch, 6.0)
    out = io.StringIO()
    list(track(range(4), total=4, what="calibrating", stream=out))
    # Started at 0; asked at 6, 12, 18, 24. The first item is not done at 6, so nothing is said.
    assert out.getvalue().splitlines() == [
        "calibrating: 1/4, about 36 s left",
        "calibrating: 2/4, about 18 s left",
        "calibrating: 3/4, about 8 s left",
    ]


def test_plain_lines_without_a_total(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking(monkeypatch, 3.0)
    out = io.StringIO()
    list(track(range(5), total=None, what="reading", stream=out))
    assert out.getvalue().splitlines() == ["reading: 1", "reading: 3"]


def test_fast_work_says_nothing() -> None:
    out = io.StringIO()
    list(track(range(100), total=100, what="fast", stream=out))
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar() -> None:
    out = Terminal()
    list(track(range(3), total=3, what="writing", stream=out))
    assert "writing" in out.getvalue()
    assert "3" in out.getvalue()


def test_items_are_taken_one_at_a_time() -> None:
    taken = []

    def source():  # type: ignore[no-untyped-def]
        for item in range(3):
            taken.append(item)
            yield item

    next(track(source(), total=3, what="lazy", stream=io.StringIO()))
    assert taken == [0]
