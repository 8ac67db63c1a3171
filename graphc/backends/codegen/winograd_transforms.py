"""The transforms of Winograd convolution as straight-line vector code.

Every vector holds one element of a tile for neighbouring channels, so that the two products with a
small constant matrix are sums of vectors.  Imports: text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.backends.codegen.text import FunctionText, splat_literal

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
    f: FunctionText, t: Lanes, matrix: Sequence[Sequence[float]], tile: Square
) -> Square:
    """matrix * tile * matrix^T."""
    half = _transposed([combinations(f, t, matrix, column) for column in _transposed(tile)])
    return [combinations(f, t, matrix, row) for row in half]


def combinations(
    f: FunctionText, t: Lanes, matrix: Sequence[Sequence[float]], values: Sequence[str]
) -> list[str]:
    """The product of a constant matrix and a vector of vectors."""
    return [_combination(f, t, row, values) for row in matrix]


def _combination(f: FunctionText, t: Lanes, row: Sequence[float], values: Sequence[str]) -> str:
    terms = [(c, x) for c, x in zip(row, values, strict=True) if c != 0]
    # one that needs no product first: the others are added to it
    terms.sort(key=lambda term: (term[0] != 1, abs(term[0]) != 1))
    (c, x), *rest = terms
    total = x if c == 1 else f.value(f"fmul {t.vector} {x}, {splat_literal(c, t.scalar)}")
    for c, x in rest:
        if c in (1, -1):
            total = f.value(f"{'fadd' if c == 1 else 'fsub'} {t.vector} {total}, {x}")
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
