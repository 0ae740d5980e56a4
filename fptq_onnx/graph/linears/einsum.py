"""Which equations of Einsum are plain products of rows with a matrix, x [.., K] with W.

bsk,kn->bsn        x, W [K, N]
...i, oi -> ...o   x, W [N, K]
kn,bsk->bsn        W, x
abk,kz             x, W: what is kept is not written, then it is each letter that occurs once
"""

from __future__ import annotations

from dataclasses import dataclass

_MORE = "..."


@dataclass(frozen=True)
class EinsumProduct:
    """How an equation multiplies.

    x: index of the input with the rows.
    turned: whether the matrix is [N, K].
    """

    x: int
    turned: bool


def plain_product(equation: str, matrix: int) -> EinsumProduct | None:
    """Read an equation of two operands; None where it is anything but a product of rows.

    Args:
        equation: of Einsum.
        matrix: index of the input of rank 2.
    """
    terms, arrow, result = equation.replace(" ", "").partition("->")
    operands = terms.split(",")
    if len(operands) != 2:
        return None
    rows, letters = operands[1 - matrix], operands[matrix].replace(_MORE, "")
    if not arrow:
        found = _implicit(terms)
        if found is None:
            return None
        result = found
    if _MORE not in rows:
        result = result.replace(_MORE, "")  # dots of the matrix alone stand for nothing
    names = rows.replace(_MORE, "")
    if not names or len(set(names)) != len(names) or rows.endswith("."):
        return None
    k = names[-1]
    if len(letters) != 2 or letters[0] == letters[1] or k not in letters:
        return None
    turned = letters[1] == k
    n = letters[0] if turned else letters[1]
    if n in names or result != rows[:-1] + n:
        return None
    return EinsumProduct(1 - matrix, turned)


def _implicit(terms: str) -> str | None:
    """What is kept where the equation does not say; None where letters of both cases leave it open.

    Runtimes do not agree whether A comes before b.
    """
    letters = [letter for letter in terms if letter.isalpha()]
    if len({letter.isupper() for letter in letters}) > 1:
        return None
    kept = sorted(letter for letter in letters if letters.count(letter) == 1)
    return (_MORE if _MORE in terms else "") + "".join(kept)
