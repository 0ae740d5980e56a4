"""Does a converted model write the same greedy tokens wherever it runs?

    fptq-onnx convert models/tinystories-7m -o story --target custom,matmulnbits
    python tools/same_tokens.py story [--prompts 50] [--tokens 64] [--json FILE]

MODEL is what convert wrote: a folder, or one with `custom` and `matmulnbits` in it. Beginnings of
the stories in --text, of 1 to 40 words, are gone on from by each way of token_runtimes.py; what
`fptq-onnx run` writes of the same graph is what the others are compared with. Where texts differ,
the table has the largest difference between the logits of the two most likely tokens at such a
place: what noise was enough to turn round. Runtimes that are missing here say so. Exits with 1 if
any token differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import token_runtimes as runtimes
from qemu_sysroot import CPUS
from token_runtimes import AbsentError, Tokens, Work

from fptq_onnx.generation.language_model import LanguageModel
from fptq_onnx.runtime.decoder import Decoder, open_decoder

TEXT = Path(__file__).resolve().parents[1] / "models" / "tinystories-7m" / "heldout.txt"
EMULATED = "edge package, aarch64"
LONGEST = 40  # words of a prompt


@dataclass(frozen=True)
class Row:
    """One way, compared.

    graph: custom or portable.
    texts, tokens: how many were compared.
    same_texts: equal to the last token.
    same_tokens: up to each text's first difference.
    margin: largest difference of the two highest logits at a first difference; None without one.
    absent: why there is nothing to compare.
    """

    graph: str
    way: str
    texts: int = 0
    same_texts: int = 0
    tokens: int = 0
    same_tokens: int = 0
    margin: float | None = None
    absent: str | None = None

    @property
    def line(self) -> str:
        """For the table."""
        if self.absent:
            return f"| {self.graph} | {self.way} | skipped: {self.absent} | | |"
        margin = "" if self.margin is None else f"{self.margin:.2g}"
        return (
            f"| {self.graph} | {self.way} | {self.same_texts} of {self.texts} | "
            f"{self.same_tokens} of {self.tokens} | {margin} |"
        )


def prompts(text: Path, count: int) -> list[str]:
    """Beginnings of stories, of mixed lengths in no order of lengths."""
    stories = [story.split() for story in text.read_text(encoding="utf-8").split("\n") if story]
    stories = [story for story in stories if len(story) > LONGEST]
    lengths = (1 + 17 * place % LONGEST for place in range(count))
    found = [" ".join(story[:n]) for story, n in zip(stories, lengths, strict=False)]
    if len(found) < count:
        raise SystemExit(f"{text} has {len(found)} long enough lines: give --prompts {len(found)}")
    return found


def compare(graph: str, way: str, found: Tokens, expected: Tokens, margin: Margin) -> Row:
    """Count what is equal, and look up what decided where it is not."""
    if len(found) != len(expected):
        raise RuntimeError(f"{way} wrote {len(found)} texts of {len(expected)}")
    common = [_common(a, b) for a, b in zip(found, expected, strict=True)]
    other = [
        place for place, (a, b) in enumerate(zip(found, expected, strict=True)) if list(a) != b
    ]
    return Row(
        graph, way, len(found), len(found) - len(other), sum(map(len, expected)), sum(common),
        max((margin(place, common[place]) for place in other), default=None),
    )  # fmt: skip


def _common(one: list[int], other: list[int]) -> int:
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


@dataclass(frozen=True)
class Margin:
    """The two highest logits after so many tokens of a text: how far are they apart."""

    decoder: Decoder
    work: Work
    expected: Tokens

    def __call__(self, text: int, place: int) -> float:
        """Of the token at a place."""
        ids = [*self.work.ids[text], *self.expected[text][:place]]
        logits = self.decoder.forward(np.asarray(ids, np.int64)[None], None).logits
        assert logits is not None
        second, first = np.sort(logits[0, -1])[-2:]
        return float(first - second)


def _runtimes(
    custom: Path, portable: Path | None, work: Work, short: Work, place: Path
) -> dict[tuple[str, str], Callable[[], Tokens]]:
    """Every way by graph and name; the first of a graph is what the others are compared with.

    `short` is for what an emulator runs.
    """
    edge = runtimes.edge_package(custom, place / "x86")
    genai = place / "genai"
    runtimes.command("package", custom, "--for", "genai", "-o", genai)
    stock = place / "genai-portable"
    if (genai / "genai_config.portable.json").exists():
        stock.mkdir()
        for path in genai.iterdir():
            os.link(path, stock / path.name)
        (stock / "genai_config.json").unlink()
        (stock / "genai_config.portable.json").rename(stock / "genai_config.json")
        (stock / "libfptq_ort_ops.so").unlink()
    arm: dict[str, Path] = {}

    def on_arm(cpu: str, *options: object) -> Tokens:
        library = runtimes.arm_library()
        if not arm:
            arm["package"] = runtimes.edge_package(custom, place / "arm", library)
        return runtimes.by_runner(arm["package"], short, *options, cpu=cpu)

    found: dict[tuple[str, str], Callable[[], Tokens]] = {}
    for graph, model, folder, options in (
        ("custom", custom, genai, ()),
        ("portable", portable, stock, ("--portable",)),
    ):
        if model is None:
            continue
        entries: dict[str, Callable[[], Tokens]] = {
            "fptq-onnx run": partial(runtimes.by_run, model, work),
            "fptq-onnx run, 2 threads": partial(runtimes.by_run, model, work, 2),
            "server, one request": partial(runtimes.by_server, model, work, 1),
            "server, 4 requests at a time": partial(runtimes.by_server, model, work, 4),
            "engine, batch 1": partial(runtimes.by_engine, model, work, 1),
            "engine, batch 4": partial(runtimes.by_engine, model, work, 4),
            "onnxruntime-genai": partial(runtimes.by_genai, folder, work),
            "edge package, x86-64": partial(runtimes.by_runner, edge, work, *options),
            **{f"{EMULATED} {cpu}": partial(on_arm, cpu, *options) for cpu in CPUS},
        }
        found |= {(graph, name): way for name, way in entries.items()}
    return found


def measure(
    model: Path, texts: list[str], new: int, emulated: int, say: Callable[[str], None]
) -> list[Row]:
    """Try all runtimes; a line of the table for each as it comes."""
    both = (model / "custom").is_dir()
    custom = model / "custom" if both else model
    portable = model / "matmulnbits" if (model / "matmulnbits").is_dir() else None
    language = LanguageModel.open(custom)
    work = Work(texts, [language.encode(text) for text in texts], new)
    short = replace(work, new=emulated)
    rows: list[Row] = []
    margin: Margin | None = None
    with tempfile.TemporaryDirectory() as place:
        for (graph, name), way in _runtimes(custom, portable, work, short, Path(place)).items():
            try:
                found = way()
            except AbsentError as error:
                rows.append(Row(graph, name, absent=str(error)))
            else:
                if margin is None or graph != rows[-1].graph:  # the way to compare with
                    folder = custom if graph == "custom" else portable
                    assert folder is not None
                    margin = Margin(open_decoder(folder, threads=1), work, found)
                expected = margin.expected
                if name.startswith(EMULATED):
                    expected = [tokens[:emulated] for tokens in expected]
                rows.append(compare(graph, name, found, expected, margin))
            say(rows[-1].line)
    return rows


def main() -> int:
    """Run; exit code 1 where a token differs."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--emulated-tokens", type=int, help="of an emulated CPU, which is slow (--tokens)"
    )
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    texts = prompts(options.text, options.prompts)
    print("| graph | way | texts equal | tokens equal | largest margin at a difference |")
    print("|---|---|---|---|---|")
    emulated = min(options.emulated_tokens or options.tokens, options.tokens)
    rows = measure(options.model, texts, options.tokens, emulated, partial(print, flush=True))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return int(any(row.same_texts < row.texts for row in rows))


if __name__ == "__main__":
    sys.exit(main())
