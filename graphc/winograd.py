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

from dataclasses import dataclass

TAPS = 3

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Filtering:
    """The matrices of F(tile x tile, 3x3).

    Rows share sums: in those of `input` and `filter` the even columns, and the odd ones; in those
    of `output` columns 1 and 2, 3 and 4.
    """

    tile: int
    input: Matrix  # B^T
    filter: Matrix  # G
    output: Matrix  # A^T

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
)

FILTERINGS = {2: F2, 4: F4}
