"""How a Winograd convolution is cut: tiles, filters and channels of a block.

Imports: targets, contract_access, kernel, dims.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc import dims
from graphc.backends.codegen.contract_access import linear
from graphc.backends.codegen.targets import Target
from graphc.dims import DimLike
from graphc.kernel import Contraction, Cut

VECTORS = 2
"""Vectors of filters in a register tile, where one does not hold all filters."""

TILES = {2: 72, 4: 36}
FILTERS = 64
CHANNELS = {2: 64, 4: 64}
"""Most tiles, filters and channels that a block, and a slice of it, has: V and M then fill L2."""

PACKED_TILES = {2: 30, 4: 12}
PACKED_FILTERS = 128
PACKED_CHANNELS = 128
"""The same where filters are transformed already: reading them again for fewer tiles costs less
than partial sums and transforms of the input do."""

FEWEST_TILES = 24
"""Tiles of a block for which the filters are worth reading, or transforming, once more."""


@dataclass(frozen=True)
class WinogradTiling:
    """How a Winograd convolution is cut."""

    tile_rows: int
    vectors: int
    block_tiles: DimLike
    block_filters: DimLike
    depth: DimLike
    most: tuple[int, int, int]  # what scratch memory is laid out for
    whole_channels: bool  # all vectors of channels are full
    whole_filters: bool
    transposed: bool  # the weights of a filter are contiguous along channels


def winograd_tiling(c: Contraction, target: Target) -> WinogradTiling:
    """What a Winograd convolution carries, or what suits its sizes."""
    if c.cut is not None:
        _, rows, vectors, whole_channels, whole_filters, transposed = c.cut.code
        tiles, filters, depth = c.cut.numbers
        most = c.cut.most or c.cut.numbers
        assert all(isinstance(n, int) for n in most)
        known = (int(str(most[0])), int(str(most[1])), int(str(most[2])))
        whole = (whole_channels, whole_filters)
        return WinogradTiling(rows, vectors, tiles, filters, depth, known, *whole, transposed)
    lanes = target.lanes(c.dtype.itemsize)
    one = isinstance(c.n[0], int) and c.n[0] <= lanes
    vectors = c.panel // lanes if c.panel else 1 if one else VECTORS
    rows, panel = target.rows[vectors - 1], vectors * lanes
    if c.panel:
        most = PACKED_TILES[c.winograd], PACKED_FILTERS, PACKED_CHANNELS
    else:
        most = TILES[c.winograd], FILTERS, CHANNELS[c.winograd]
    tiles = max(most[0] // rows, -(-min(most[0], FEWEST_TILES) // rows)) * rows
    filters = _even_part(c.n[0], max(most[1] // panel, 1) * panel, panel)
    depth = _even_part(c.k[-1], most[2], lanes)
    return WinogradTiling(
        rows,
        vectors,
        tiles,
        filters,
        depth,
        (tiles, filters, depth),
        dims.factor(c.k[-1]) % lanes == 0,
        bool(c.panel) or dims.factor(c.n[0]) % panel == 0,
        not c.panel and linear(c.b, 3) != 1,
    )


def _even_part(size: DimLike, most: int, unit: int) -> int:
    """The size of the slices when a size is cut into as few even ones as can be."""
    if not isinstance(size, int):
        return most
    parts = max(-(-size // most), 1)
    return max(-(-size // parts // unit) * unit, unit)


def winograd_cut(c: Contraction, target: Target) -> Cut:
    """The cut of a Winograd convolution as something it can carry."""
    t = winograd_tiling(c, target)
    code = ("winograd", t.tile_rows, t.vectors, t.whole_channels, t.whole_filters, t.transposed)
    panel = t.vectors * target.lanes(c.dtype.itemsize)
    return Cut(code, (t.block_tiles, t.block_filters, t.depth), (), panel)


def winograd_blocks(c: Contraction, target: Target) -> DimLike:
    """How many independent blocks there are.

    An odd number of blocks of filters is made up for by an even one of blocks of tiles, or by one
    block more where tiles are few: else one of two cores waits for the other in the end.
    """
    t = winograd_tiling(c, target)
    images, height, width = c.m
    across = [dims.ceildiv(n, c.winograd) for n in (height, width)]
    tiles = dims.product((images, *across))
    by_filters = dims.ceildiv(c.n[0], t.block_filters)
    few = dims.maximum(dims.add(2, dims.mul(-1, dims.ceildiv(tiles, FEWEST_TILES))), 0)
    more = dims.add(by_filters, dims.mul(_odd(by_filters), few))
    panels = dims.ceildiv(c.n[0], t.vectors * target.lanes(c.dtype.itemsize))
    by_filters = dims.minimum(more, panels)
    by_tiles = dims.ceildiv(tiles, t.block_tiles)
    pairs = dims.ceildiv(tiles, dims.mul(2, t.block_tiles))
    even = dims.minimum(dims.mul(2, pairs), dims.ceildiv(tiles, FEWEST_TILES))
    rest = dims.add(dims.maximum(by_tiles, even), dims.mul(-1, by_tiles))
    return dims.mul(dims.add(by_tiles, dims.mul(_odd(by_filters), rest)), by_filters)


def _odd(n: DimLike) -> DimLike:
    """1 if a number is odd, else 0."""
    return dims.add(n, dims.mul(-2, dims.floordiv(n, 2)))
