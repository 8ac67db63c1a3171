"""Which contractions are summed line by line of k with A read in place, and how they are cut.

    dW[kh, kw, ic, oc] = sum over n, oh, ow of x[n, oh + kh, ow + kw, ic] * dy[n, oh, ow, oc]

The last row axes lie side by side in A at every step of k, so that the rows of a register tile are
consecutive elements, and nothing of A need be packed.  The other row axes are taps: at a tap the
guards of A leave, of each line along the last axis of k, one run of steps.  Filter gradients and
products with a transposed first operand have this form; it is recognised by its accesses.
Imports: targets, contract_access, contract_tiling, kernel, dims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from graphc.backends.codegen.contract_access import Group, fused_axes, guarded
from graphc.backends.codegen.contract_tiling import (
    ALIKE,
    assumed,
    assumed_size,
    groups,
)
from graphc.backends.codegen.targets import Target
from graphc.backends.codegen.text import LANES
from graphc.dims import DimLike, ceildiv, product
from graphc.kernel import Access, Contraction, Cut

DEPTH = 64
"""Steps of k in a slice: what a row of tiles reads of A, and several panels of B, then stay in the
L1 cache."""

SHORTEST_SUM = 64
"""Fewest steps of k for which setting up lines pays."""

MOST_TAPS = 512
"""Row axes that are not contiguous in A hold at most so many elements: setting up each costs."""

WIDE_BYTES = 1024
"""Most columns of a block, in bytes."""

C_BYTES = 256 * 1024
"""Scratch for the partial sums of a block, which stay in the L2 cache."""


@dataclass(frozen=True)
class LineTiling:
    """The cut.  The row axes are `taps` followed by `rows`, which are contiguous in A."""

    taps: Group
    rows: Group
    cols: Group
    left: Access
    right: Access
    lanes: int
    tile_rows: int
    tile_vectors: int
    half: bool  # the last vector of a tile has half the lanes
    block_taps: DimLike
    block_rows: DimLike
    block_cols: DimLike
    depth: DimLike
    most: tuple[int, int, int, int]  # of the four above, that scratch memory is laid out for
    swapped: bool

    @property
    def tile_cols(self) -> int:
        return self.tile_vectors * self.lanes

    @property
    def code(self) -> tuple[Any, ...]:
        """What a cut says besides numbers."""
        inner = len(self.rows.axes)
        return ("lines", self.swapped, inner, self.tile_rows, self.tile_vectors, self.half)


def line_tiling(c: Contraction, target: Target) -> LineTiling | None:
    """The tiling of a contraction of this form; None for others."""
    if c.cut is not None:
        return _carried(c, c.cut, target) if c.cut.code[0] == "lines" else None
    if c.panel:
        return None
    for swapped in (False, True):
        parts = _parts(c, swapped)
        if parts is not None:
            return _tiling(c, swapped, *parts, target)
    return None


def line_cut(t: LineTiling) -> Cut:
    return Cut(t.code, (t.block_taps, t.block_rows, t.block_cols, t.depth))


def line_block_count(c: Contraction, t: LineTiling) -> DimLike:
    """How many independent blocks there are."""
    pairs = ((t.taps, t.block_taps), (t.rows, t.block_rows), (t.cols, t.block_cols))
    return product((*c.batch, *(ceildiv(group.size, block) for group, block in pairs)))


def _sides(c: Contraction, swapped: bool) -> tuple[Group, Group, Access, Access]:
    _, m, n, _ = groups(c)
    return (n, m, c.b, c.a) if swapped else (m, n, c.a, c.b)


def _split(rows: Group, inner: int) -> tuple[Group, Group]:
    at = len(rows.axes) - inner
    return Group(rows.axes[:at], rows.extents[:at]), Group(rows.axes[at:], rows.extents[at:])


def _parts(c: Contraction, swapped: bool) -> tuple[Group, Group, Group, Access, Access] | None:
    """Taps, rows and columns with the operands, if the contraction has the form."""
    rows, cols, left, right = _sides(c, swapped)
    k = groups(c)[3]
    if not c.stores or not k.axes or assumed_size(k) < SHORTEST_SUM:
        return None
    inner = fused_axes(left, rows)
    if inner == 0 or not cols.axes or fused_axes(right, cols) < len(cols.axes) or guarded(right):
        return None
    if fused_axes(c.stores[0].access, cols) < len(cols.axes):
        return None
    taps, rows = _split(rows, inner)
    if not isinstance(rows.size, int) or not isinstance(taps.size, int):
        return None
    if rows.size < 4 or taps.size > MOST_TAPS or not _by_lines(left, k):
        return None
    return taps, rows, cols, left, right


def _by_lines(left: Access, k: Group) -> bool:
    """Whether each guard is on one axis of k, along which an index grows."""
    for term in guarded(left):
        inside = [coef for axis, coef in term.axes if axis in k.axes]
        if term.div != 1 or len(inside) > 1:
            return False
        if any(not isinstance(coef, int) or coef < 1 for coef in inside):
            return False
    return True


def _carried(c: Contraction, cut: Cut, target: Target) -> LineTiling:
    """The tiling that a kernel carries."""
    _, swapped, inner, tile_rows, vectors, half = cut.code
    rows, cols, left, right = _sides(c, swapped)
    taps, rows = _split(rows, inner)
    lanes = target.lanes(c.dtype.itemsize)
    most: Any = cut.most or cut.numbers
    tile = (lanes, tile_rows, vectors, half)
    block_taps, block_rows, block_cols, depth = cut.numbers
    blocks = (block_taps, block_rows, block_cols, depth)
    return LineTiling(taps, rows, cols, left, right, *tile, *blocks, most, swapped)


def _tiling(
    c: Contraction,
    swapped: bool,
    taps: Group,
    rows: Group,
    cols: Group,
    left: Access,
    right: Access,
    target: Target,
) -> LineTiling:
    itemsize = c.dtype.itemsize
    lanes = target.lanes(itemsize)
    high, vectors, half = _register_tile(assumed_size(rows), cols.size, lanes, target)
    sizes = (assumed_size(taps), assumed_size(rows), assumed_size(cols))
    k = assumed_size(groups(c)[3])
    blocks = _block(sizes, k, high, vectors * lanes, itemsize, math.prod(map(assumed, c.batch)))
    most = (*blocks, DEPTH)
    return LineTiling(
        taps, rows, cols, left, right, lanes, high, vectors, half, *most, most, swapped
    )


def _register_tile(rows: int, cols: DimLike, lanes: int, target: Target) -> tuple[int, int, bool]:
    """Rows and vectors of the tile that wastes least, and whether its last vector is halved."""
    best = (float("inf"), 1, 1, False)
    needed = max(-(-assumed(cols) // lanes), 1)
    for vectors in (2, 3, 4, 1):
        if vectors > min(len(target.rows), needed):
            continue
        unused = vectors * lanes - cols if isinstance(cols, int) else 0
        half = lanes >= 4 and lanes // 2 <= unused < lanes
        wide = -(-needed // vectors) * vectors - 0.5 * half
        tallest = target.rows[vectors - 1]
        for high in range(min(tallest, rows), 0, -1):
            padded = -(-rows // high) * high * wide
            loads = 1 + 0.12 / vectors + 0.2 / high
            idle = max(4 / (high * vectors), 1)  # chains that hide the latency
            issue = max((vectors + high) / (high * vectors), 1)  # loads per multiply-add
            cost = padded * loads * max(idle, issue)
            if cost < best[0] * ALIKE:
                best = (cost, high, vectors, half)
    return best[1:]


def _block(
    sizes: tuple[int, int, int], k: int, high: int, wide: int, itemsize: int, batch: int
) -> tuple[int, int, int]:
    """Taps, rows and columns of a block, from a model of packing, edges and balance over cores."""
    taps, rows, cols = (max(n, 1) for n in sizes)
    panels, down = -(-cols // wide), -(-rows // high)
    best = (float("inf"), 1, high, wide)
    for parts in range(1, panels + 1):
        w = -(-panels // parts) * wide
        if w * itemsize > WIDE_BYTES:
            continue
        row_bytes = (-(-w // LANES) + 1) * LANES * itemsize
        room = C_BYTES // row_bytes // high
        for t, r in _heights(taps, down, room):
            blocks = batch * parts * -(-taps // t) * -(-down // r)
            tiles = t * r
            # multiply-adds, reading A and packing B
            work = k * (tiles * high * w / 16 + w + r * high / 2)
            # lists of runs, sums to and fro, epilogue
            work += (
                k / DEPTH * (tiles * (high * w / 2 + 20) + t * 500) + tiles * high * w / 4 + 2000
            )
            waits = 4 * ((blocks + 2) // 2) + 4 * ((blocks + 4) // 4)  # of 2 or 4 cores
            cost = work * (3 * blocks + waits)
            if cost < best[0]:
                best = (cost, t, r * high, w)
    return best[1:]


def _heights(taps: int, tiles: int, room: int) -> list[tuple[int, int]]:
    """(taps, tiles of rows) that a block may have: several whole taps, or a part of one."""
    found = []
    for parts in range(1, taps + 1):
        t = -(-taps // parts)
        if t * tiles <= room and (t, tiles) not in found:
            found.append((t, tiles))
    for parts in range(2, tiles + 1):
        r = -(-tiles // parts)
        if r <= room and (1, r) not in found:
            found.append((1, r))
    return found or [(1, 1)]
