"""Arithmetic with sizes of which some are only known by name: sums, broadcasting, reshapes.

Equal texts are equal sizes, of different ones nothing is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

Size = int | str
Sizes = tuple[Size, ...]


def summed(sizes: Iterable[Size]) -> Size:
    """A sum in a form of its own: names sorted, then the sum of the integers if it is not 0."""
    number = 0
    names: list[str] = []
    for size in sizes:
        for term in [size] if isinstance(size, int) else size.split("+"):
            text = str(term).strip()
            if text.lstrip("-").isdigit():
                number += int(text)
            else:
                names.append(text)
    if not names:
        return number
    return " + ".join([*sorted(names), *([str(number)] if number else [])])


def broadcast(a: Sizes, b: Sizes, unknown: str) -> Sizes:
    """The shape of an elementwise result.

    Args:
        a: one shape.
        b: the other one.
        unknown: name of the result; of two sizes that may differ the result has one of its own.
    """
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    result: list[Size] = []
    for axis, (x, y) in enumerate(pairs):
        if y in (x, 1):
            result.append(x)
        elif x == 1 or isinstance(y, int):
            result.append(y)  # a name beside an integer that is not 1 is that integer, or 1
        elif isinstance(x, int):
            result.append(x)
        else:
            result.append(f"{unknown}[{axis}]")
    return tuple(result)


def reshaped(
    shape: Sizes | None, wanted: Sizes, *, zero_copies: bool, unknown: Sequence[str]
) -> Sizes:
    """The shape that Reshape gives.

    Args:
        shape: of what is reshaped, None where it is not known.
        wanted: what is asked for; at most one -1.
        zero_copies: whether 0 keeps the size at its place.
        unknown: a name for each size of the result.
    """
    result = list(wanted)
    for axis, size in enumerate(wanted):
        if size == 0 and zero_copies:
            known = shape is not None and axis < len(shape)
            result[axis] = shape[axis] if known and shape is not None else unknown[axis]
    if -1 in result:
        axis = result.index(-1)
        rest = result[:axis] + result[axis + 1 :]
        found = None if shape is None else _quotient(shape, rest)
        result[axis] = unknown[axis] if found is None else found
    return tuple(result)


def _quotient(whole: Sequence[Size], parts: Sequence[Size]) -> Size | None:
    """The product of some sizes over that of others, where it is one integer or one name."""
    names = Counter(size for size in whole if isinstance(size, str))
    names.subtract(Counter(size for size in parts if isinstance(size, str)))
    left = [name for name, count in names.items() for _ in range(count)]
    if any(count < 0 for count in names.values()) or len(left) > 1:
        return None
    above, below = _product(whole), _product(parts)
    if below == 0 or above % below:
        return None
    if not left:
        return above // below
    return left[0] if above == below else None


def _product(sizes: Sequence[Size]) -> int:
    result = 1
    for size in sizes:
        result *= size if isinstance(size, int) else 1
    return result
