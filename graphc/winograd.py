"""Winograd's minimal filtering F(m x m, 3x3): the three matrices, for tiles of m = 2 and m = 4.

A tile of m x m outputs of a 3x3 convolution of stride 1 follows from a tile of (m+2) x (m+2) inputs
with (m+2)**2 multiplications, where the sum over taps takes 9 * m**2:

    Y = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A

(A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.)  In float32 the
error of m = 2 is that of the sum over taps; that of m = 4, whose matrices hold larger numbers, is
about ten times that.  An infinity or NaN in the input reaches every output of the tiles it is in.
Imports: nothing of graphc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

TAPS = 3

Matrix = tuple[tuple[float, ...], ...]

Number = TypeVar("Number")


class Algebra(Protocol[Number]):
    """What computes with elements of tiles: code, expressions, numbers."""

    def scaled(self, c: float, x: Number) -> Number:
        """c * x."""
        ...

    def added(self, total: Number, c: float, x: Number) -> Number:
        """total + c * x, rounded once."""
        ...


@dataclass(frozen=True)
class Filtering:
    """The matrices of F(tile x tile, 3x3).

    Rows share sums: in those of `input` and `filter` the even columns, and the odd ones; in those
    of `output` columns 1 and 2, 3 and 4.  `taps` is a left inverse of G.
    """

    tile: int
    input: Matrix  # B^T
    filter: Matrix  # G
    output: Matrix  # A^T
    taps: Matrix

    @property
    def columns(self) -> tuple[tuple[int, ...], ...]:
        """The columns of `output` that go together."""
        pairs = tuple((i, i + 1) for i in range(1, self.span - 1, 2))
        return ((0,), *pairs, (self.span - 1,))

    @property
    def span(self) -> int:
        """Inputs along one side of a tile."""
        return self.tile + TAPS - 1

    @property
    def points(self) -> int:
        """Multiplications of a tile, per channel."""
        return self.span * self.span


F2 = Filtering(
    2,
    input=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
    filter=((1, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 1)),
    output=((1, 0.5, 0.5, 0), (0, 0.5, -0.5, 1)),
    taps=((1, 0, 0, 0), (0, 0.5, -0.5, 0), (0, 0, 0, 1)),
)

F4 = Filtering(
    4,
    input=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    filter=(
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    output=(
        (1, 1, 1, 1, 1, 0),
        (0, 1, -1, 2, -2, 0),
        (0, 1, 1, 4, 4, 0),
        (0, 1, -1, 8, -8, 1),
    ),
    taps=((4, 0, 0, 0, 0, 0), (0, -3, 3, 0, 0, 0), (0, 0, 0, 0, 0, 1)),
)

FILTERINGS = {2: F2, 4: F4}


# ---- transforms ------------------------------------------------------------------------------

Square = list[list[Number]]


def input_transform(rule: Filtering, ops: Algebra[Number], tile: Square[Number]) -> Square[Number]:
    """B^T d B."""
    return _on_both_sides(ops, rule.input, _alternating(rule.span), tile)


def filter_transform(rule: Filtering, ops: Algebra[Number], taps: Square[Number]) -> Square[Number]:
    """G g G^T."""
    return _on_both_sides(ops, rule.filter, _alternating(TAPS), taps)


def output_transform(rule: Filtering, ops: Algebra[Number], tile: Square[Number]) -> Square[Number]:
    """A^T M A."""
    return _on_both_sides(ops, rule.output, rule.columns, tile)


def _on_both_sides(
    ops: Algebra[Number], matrix: Matrix, shared: Sequence[Sequence[int]], tile: Square[Number]
) -> Square[Number]:
    """matrix * tile * matrix^T; `shared`: columns whose combinations rows have in common."""

    def product(values: Sequence[Number]) -> list[Number]:
        return [_row(ops, row, shared, values) for row in matrix]

    half = _transposed([product(column) for column in _transposed(tile)])
    return [product(row) for row in half]


def _alternating(columns: int) -> tuple[tuple[int, ...], ...]:
    """The even columns and the odd ones."""
    return tuple(range(0, columns, 2)), tuple(range(1, columns, 2))


def _row(
    ops: Algebra[Number],
    row: Sequence[float],
    shared: Sequence[Sequence[int]],
    values: Sequence[Number],
) -> Number:
    """A row of a matrix times a column."""
    parts: list[tuple[float, Number]] = []
    for group in shared:
        terms = [(row[i], values[i]) for i in group if row[i] != 0]
        if len(terms) > 1 and len(terms) < sum(c != 0 for c in row):
            # as rows share it: with a factor of 1 in the last place
            factor = terms[-1][0]
            parts.append((factor, _combination(ops, [(c / factor, x) for c, x in terms])))
        else:
            parts.extend(terms)
    return _combination(ops, parts)


def _combination(ops: Algebra[Number], terms: Sequence[tuple[float, Number]]) -> Number:
    # one that needs no product first: the others are added to it
    (c, total), *rest = sorted(terms, key=lambda term: term[0] != 1)
    if c != 1:
        total = ops.scaled(c, total)
    for c, x in rest:
        total = ops.added(total, c, x)
    return total


def _transposed(square: Square[Number]) -> Square[Number]:
    return [list(column) for column in zip(*square, strict=True)]
