"""How large the blocks of a contraction are: from models of packing, edges and balance.

Imports: targets, dims.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from graphc.backends.codegen.targets import Target
from graphc.dims import DimLike

DEPTH = 256
"""Steps along k that one packed slice covers: a panel of A then stays in the L1 cache."""

SCRATCH_BYTES = 544 * 1024
"""Stack a block may use for its packed slices and its tile of C."""

WIDE_BYTES = 1024
"""Columns of a block, in bytes, that there must be room for."""

TALLEST = 144
"""Most rows of a block."""

SLICED_ROWS = 264
"""Most rows of a block whose rows are read in place, where k takes several slices."""

RUN_BYTES = 16384
"""Columns of a block that reads B in place, in bytes, that make runs long enough."""

FEW_BLOCKS = 2
"""Blocks wanted before they are made wider."""


def _room(tile_rows: int, tile_cols: int, itemsize: int) -> tuple[int, int]:
    """The largest rows and columns of a block of such tiles: slices of DEPTH and C fit scratch."""
    cols = -(-WIDE_BYTES // itemsize // tile_cols) * tile_cols
    left = SCRATCH_BYTES // itemsize - cols * DEPTH
    rows = min(left // (DEPTH + cols), TALLEST)
    return max(rows // tile_rows, 1) * tile_rows, cols


def block(
    sizes: tuple[int, int, int], tile_rows: int, tile_cols: int, itemsize: int, target: Target
) -> tuple[int, int]:
    """Rows and columns of a block, from a model of packing, edges and balance over cores."""
    rows, cols, k = sizes
    best = (float("inf"), tile_rows, tile_cols)
    most_rows, most_cols = _room(tile_rows, tile_cols, itemsize)
    tallest = max(min(most_rows // tile_rows, -(-rows // tile_rows)), 1)
    widest = max(min(most_cols // tile_cols, -(-cols // tile_cols)), 1)
    for tall in range(1, tallest + 1):
        r = tall * tile_rows
        down = -(-rows // r)
        for wide in range(1, widest + 1):
            w = wide * tile_cols
            blocks = down * -(-cols // w)
            work = k * (r * w / target.multiplies + 0.5 * (r + w)) + r * w / 4 + 2000
            # waiting for the last of 1 core (three times as likely as four), 2 (twice) or 4
            cost = work * (3 * blocks + 4 * ((blocks + 1) // 2) + 4 * ((blocks + 3) // 4))
            if cost < best[0]:
                best = (cost, r, w)
    return best[1], best[2]


def columns_in_place(cols: int, tile_cols: int, itemsize: int, batches: int) -> int:
    """Columns of a block that reads B in place: long runs of memory, and a few blocks at least."""
    most = RUN_BYTES // itemsize
    parts = max(FEW_BLOCKS // max(batches, 1), 1)
    wanted = max(min(-(-cols // parts), most), WIDE_BYTES // itemsize)
    return -(-min(wanted, max(cols, 1)) // tile_cols) * tile_cols


def slices_in_place(k: DimLike, tile_cols: int, itemsize: int, target: Target) -> tuple[int, ...]:
    """Most steps of k in a slice, what is worth a look where rows are read in place.

    All of k at once where packed columns of that depth stay in the L2 cache: sums then go from
    registers to the epilogue.  Else as few slices as stay there.
    """
    most = target.packed_bytes // (tile_cols * itemsize)
    if not isinstance(k, int) or k <= DEPTH:
        return (DEPTH,)
    return (DEPTH, -(-k // max(-(-k // most), 1)))


def block_in_place(
    sizes: tuple[int, int, int],
    tile_rows: int,
    tile_cols: int,
    depths: Iterable[int],
    run: int,
    itemsize: int,
    target: Target,
    packed: bool,
    known: bool,
    batches: int = 1,
) -> tuple[int, int, int]:
    """Rows, columns and depth of a block whose rows are read in place.

    Of a row, `run` elements are its own: those of other taps are rows of other tiles too.  B may be
    `packed` already.  There are so many `batches` of blocks.  Unless the steps of k are `known`
    there may be several slices of them, and a block needs room for the sums of all its rows.
    """
    rows, cols, depth = sizes
    best = (float("inf"), tile_rows, tile_cols, DEPTH)
    widest = max(min(-(-cols // tile_cols), WIDE_BYTES // itemsize // tile_cols), 1)
    tallest = max(-(-rows // tile_rows), 1)
    for deep in depths:
        whole = known and deep >= depth
        for wide in range(1, widest + 1):
            w = wide * tile_cols
            if wide > 1 and deep * w * itemsize > target.packed_bytes:
                break
            across = -(-cols // w)
            limit = tallest if whole else min(tallest, SLICED_ROWS // tile_rows)
            for down in _parts(tallest, limit):
                r = -(-tallest // down) * tile_rows
                blocks = -(-rows // r) * across * batches
                work = (
                    depth * (r * w / target.multiplies + (0.6 if packed else 1.3) * w)
                    + r * (w / 4 + 8 + run / 3)
                    + 2000
                )
                if not whole:
                    work += r * w * -(-depth // deep) / 8
                # as `block` does; and a core that is busy otherwise is waited for
                cost = work * (3 * blocks + 4 * ((blocks + 1) // 2) + 4 * ((blocks + 3) // 4) + 2)
                if cost < best[0]:
                    best = (cost, r, w, deep)
    return best[1], best[2], best[3]


def _parts(tiles: int, most: int) -> list[int]:
    """Numbers of blocks worth a look that rows of tiles, `most` in a block, can be divided into."""
    fewest = -(-tiles // most)
    return sorted({min(max(n, fewest), tiles) for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)})


def even_sizes(units: int) -> Iterator[int]:
    """How many units are in a part where 1, 2, 3, ... parts are as even as can be; each size once.

    Sizes fall to 1; there are about twice the square root of `units`.
    """
    size = units
    while size > 1:
        yield size
        parts = -(-units // (size - 1))  # the fewest that are smaller
        size = -(-units // parts)
    yield 1
