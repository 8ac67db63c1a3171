"""The transforms of Winograd convolution as straight-line vector code.

Every vector holds one element of a tile for neighbouring channels, so that the two products with a
small constant matrix are sums of vectors.  Imports: text, winograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.backends.codegen.text import FunctionText, splat_literal
from graphc.winograd import Matrix

Square = list[list[str]]


@dataclass(frozen=True)
class Lanes:
    """Vectors of one element type."""

    scalar: str
    itemsize: int
    lanes: int

    @property
    def vector(self) -> str:
        return f"<{self.lanes} x {self.scalar}>"

    @property
    def bytes(self) -> int:
        return self.lanes * self.itemsize


def on_both_sides(
    f: FunctionText, t: Lanes, matrix: Matrix, shared: Sequence[Sequence[int]], tile: Square
) -> Square:
    """matrix * tile * matrix^T; `shared`: columns whose combinations rows have in common."""

    def product(values: Sequence[str]) -> list[str]:
        return [_row(f, t, row, shared, values) for row in matrix]

    half = _transposed([product(column) for column in _transposed(tile)])
    return [product(row) for row in half]


def alternating(columns: int) -> tuple[tuple[int, ...], ...]:
    """The even columns and the odd ones."""
    return tuple(range(0, columns, 2)), tuple(range(1, columns, 2))


def _row(
    f: FunctionText,
    t: Lanes,
    row: Sequence[float],
    shared: Sequence[Sequence[int]],
    values: Sequence[str],
) -> str:
    """A row of a matrix times a column of vectors."""
    parts = []
    for group in shared:
        terms = [(row[i], values[i]) for i in group if row[i] != 0]
        if len(terms) > 1 and len(terms) < sum(c != 0 for c in row):
            # as rows share it: with a factor of 1 in the last place
            factor = terms[-1][0]
            parts.append((factor, _combination(f, t, [(c / factor, x) for c, x in terms])))
        else:
            parts.extend(terms)
    return _combination(f, t, parts)


def _combination(f: FunctionText, t: Lanes, terms: Sequence[tuple[float, str]]) -> str:
    """A sum of vectors times constants, made once."""
    # one that needs no product first: the others are added to it
    (c, total), *rest = sorted(terms, key=lambda term: term[0] != 1)
    if c != 1:
        total = f.known(f"fmul {t.vector} {total}, {splat_literal(c, t.scalar)}")
    for c, x in rest:
        if c in (1, -1):
            total = f.known(f"{'fadd' if c == 1 else 'fsub'} {t.vector} {total}, {x}")
        else:
            factor = splat_literal(c, t.scalar)
            total = f.intrinsic("fma", t.scalar, x, factor, total, lanes=t.lanes)
    return total


def _transposed(square: Square) -> Square:
    return [list(column) for column in zip(*square, strict=True)]


def transposed_vectors(f: FunctionText, t: Lanes, rows: Sequence[str]) -> list[str]:
    """The columns of a square of elements given as its rows: `lanes` vectors, by perfect
    shuffles."""
    n = t.lanes
    vectors = list(rows)
    for _ in range(n.bit_length() - 1):
        mixed = []
        for x, y in zip(vectors[: n // 2], vectors[n // 2 :], strict=True):
            mixed += [_interleaved(f, t, x, y, half) for half in range(2)]
        vectors = mixed
    return vectors


def _interleaved(f: FunctionText, t: Lanes, x: str, y: str, half: int) -> str:
    n = t.lanes
    picked = [half * n // 2 + i // 2 + (n if i % 2 else 0) for i in range(n)]
    indices = "<" + ", ".join(f"i32 {i}" for i in picked) + ">"
    return f.value(f"shufflevector {t.vector} {x}, {t.vector} {y}, <{n} x i32> {indices}")
