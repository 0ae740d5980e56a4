"""An evaluation as a short table for people."""

from __future__ import annotations

from collections.abc import Iterator

from fptq_onnx.evaluation.evaluate import Evaluation
from fptq_onnx.evaluation.standard_errors import Estimate

# Name, the model's value, the reference's, digits after the point.
_Row = tuple[str, Estimate, Estimate | None, int]


def evaluation_table(evaluation: Evaluation) -> list[str]:
    """Lines: what was run, and each metric with its standard error.

    Args:
        evaluation: as measured.
    """
    lines = [f"model      {evaluation.model}"]
    if evaluation.reference is not None:
        lines.append(f"reference  {evaluation.reference}")
    lines += [f"data       {evaluation.data}: {', '.join(_sizes(evaluation))}", ""]
    rows = list(_rows(evaluation))
    heads = ["", "model", "s.e."] + ["reference", "s.e."] * (evaluation.reference is not None)
    cells = [heads, *([name, *_pair(a, n), *_pair(b, n)] for name, a, b, n in rows)]
    cells = [row[: len(heads)] for row in cells]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for name, *metrics in cells:
        line = [name.ljust(widths[0])]
        line += [cell.rjust(width) for cell, width in zip(metrics, widths[1:], strict=True)]
        lines.append("  ".join(line).rstrip())
    return lines


def _sizes(evaluation: Evaluation) -> Iterator[str]:
    if (windows := evaluation.perplexity) is not None:
        yield (
            f"{windows.windows} windows of up to {evaluation.window} tokens, "
            f"{windows.predictions} predicted"
        )
    if (words := evaluation.lambada) is not None:
        cut = f" ({words.shortened} shortened to the model's context)" if words.shortened else ""
        yield f"{words.passages} passages{cut}"


def _rows(evaluation: Evaluation) -> Iterator[_Row]:
    if (windows := evaluation.perplexity) is not None:
        yield "perplexity", windows.perplexity, windows.perplexity_reference, 4
        if windows.perplexity_ratio is not None:
            yield "perplexity / reference's", windows.perplexity_ratio, None, 5
        if windows.kl is not None:
            yield "KL to reference (nats)", windows.kl, None, 5
        if windows.top1 is not None:
            yield "top-1 agreement", windows.top1, None, 4
    if (words := evaluation.lambada) is not None:
        yield "LAMBADA accuracy", words.accuracy, words.accuracy_reference, 4
        if words.accuracy_change is not None:
            yield "LAMBADA accuracy, change", words.accuracy_change, None, 4
        yield "LAMBADA perplexity", words.perplexity, words.perplexity_reference, 4


def _pair(estimate: Estimate | None, digits: int) -> list[str]:
    if estimate is None:
        return ["", ""]
    error = estimate.standard_error
    return [_number(estimate.value, digits), "-" if error is None else _number(error, digits)]


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.4g}"
