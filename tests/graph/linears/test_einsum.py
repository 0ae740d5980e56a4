"""Equations of Einsum against numpy.einsum, every way to write two short operands."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fptq_onnx.graph.linears.einsum import plain_product

ROWS = ("k", "bk", "bsk", "...k", "b...k", "kb", "k...", "bbk", "...", "")
MATRICES = ("kn", "nk", "kk", "bk", "kb", "...kn", "k", "kns")
RESULTS = ("", "->n", "->bn", "->bsn", "->...n", "->b...n", "->nb", "->k", "->bk", "->sbn")
SIZES = {"k": 3, "n": 5, "b": 2, "s": 4}


def array(rng: np.random.Generator, term: str) -> np.ndarray:
    shape = [size for part in term.replace("...", ".") for size in _sizes(part)]
    return rng.standard_normal(shape)


def _sizes(part: str) -> tuple[int, ...]:
    return (6, 7) if part == "." else (SIZES[part],)


@pytest.mark.parametrize("matrix", [0, 1])
@pytest.mark.parametrize("weight", MATRICES)
def test_what_is_taken_for_a_product_is_one(
    rng: np.random.Generator, matrix: int, weight: str
) -> None:
    """And where the result has x's axes but the last, nothing that is one is missed."""
    for rows, result in product(ROWS, RESULTS):
        terms = [weight, rows] if matrix == 0 else [rows, weight]
        equation = ",".join(terms) + result
        found = plain_product(equation, matrix)
        x, w = array(rng, rows), array(rng, weight.replace("...", ""))
        try:
            wanted = np.einsum(equation, *([w, x] if matrix == 0 else [x, w]))
        except ValueError:
            assert found is None or w.ndim != 2, equation
            continue
        if found is not None:
            assert found.x == 1 - matrix
            np.testing.assert_allclose(x @ (w.T if found.turned else w), wanted, err_msg=equation)
        elif w.ndim == 2 and x.ndim and x.shape[-1] == 3:
            for turned in (w, w.T):
                same = turned.shape == (3, 5) and wanted.shape == (*x.shape[:-1], 5)
                assert not (same and np.allclose(x @ turned, wanted)), equation


def test_letters_of_both_cases_leave_the_order_open() -> None:
    assert plain_product("aBk,kz", 1) is None
    assert plain_product("aBk,kz->aBz", 1) is not None
    assert plain_product("ABK,KZ", 1) is not None


@pytest.mark.parametrize("equation", ["", "->", "bk", "bk,kn,n->bn", "bk,kn,->bn", ",", ",kn->n"])
def test_what_makes_no_sense(equation: str) -> None:
    assert plain_product(equation, 1) is None
