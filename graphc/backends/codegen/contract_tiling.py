"""How a contraction is cut: register tile, blocks, depth of a packed slice.

Tiling follows from the contraction and the target alone, never from threads, and never changes
bits: each element of C is one chain of fused multiply-adds however it is cut.
Imports: targets, text, contract_access, contract_blocks, contract_epilogue, contract_few_rows,
contract_heights, contract_operands, contract_order, contract_outside, kernel, dims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from graphc.backends.codegen.contract_access import (
    Group,
    fused_axes,
    guarded,
    guards_axis,
    run_length,
    window_axes,
)
from graphc.backends.codegen.contract_blocks import (
    DEPTH,
    block,
    block_in_place,
    columns_in_place,
    slices_in_place,
)
from graphc.backends.codegen.contract_epilogue import finishes_again, walks_as_one
from graphc.backends.codegen.contract_few_rows import (
    FEWEST_ROWS,
    SIDE_BY_SIDE,
    STREAMED_ROWS,
    lies_in_vectors,
    may_be_few,
    reads_in_place,
)
from graphc.backends.codegen.contract_heights import heights_in_place
from graphc.backends.codegen.contract_microkernel import Tail, tail_of
from graphc.backends.codegen.contract_operands import (
    PACK_CYCLES,
    Packing,
    assumed,
    assumed_size,
    packing_of,
    run_cycles,
)
from graphc.backends.codegen.contract_order import groups_as_columns, near_rows, reach_of_groups
from graphc.backends.codegen.contract_outside import guards_first, needed_share
from graphc.backends.codegen.targets import Target
from graphc.backends.codegen.text import LANES
from graphc.dims import DimLike, ceildiv, factor, maximum, minimum, mul, product
from graphc.kernel import Access, Contraction, Cut

EVEN = 4
"""Cores that blocks are divided evenly among when the number of rows is known only at run time."""

SPREAD_ROWS = 32
"""Fewest rows worth a block of their own when the number of rows is known only at run time."""

STRIP_ROWS = 48
"""Rows of A packed together where rows lie side by side: whole lines of the caches, and a slice of
so many rows leaves room for one of B in the L2 cache."""

IN_PLACE_SUMS = 8
"""Accumulators of a register tile that reads B in place; two vectors wide it may have more."""

ALIKE = 0.98
"""A register tile is preferred to the usual one where it costs less than this share."""

IN_PLACE_RUN = 4
"""Fewest elements of a run along k for rows to be read in place."""

IN_PLACE_SHARE = 0.7
"""Share of A inside its guards below which rows in place follow each other so that they share
them; else neighbours follow each other, which share caches."""

LEAST_WINDOW, MOST_WINDOW = 3, 64
"""Elements of the rows of a window that are read in place, being cut at edges."""

MOST_CUT = 1024
"""Elements of a window of such rows."""


class Room(NamedTuple):
    """What scratch memory is laid out for."""

    rows: int  # of packed A
    cols: int
    depth: int
    runs: int  # of k in A, in a slice
    sums: int  # rows of C
    packed: int  # elements of packed B
    cut: int  # elements of A in a tile of rows whose runs guards may cut
    reach: int = 0  # of A, from what one panel of columns reads to what another does


@dataclass(frozen=True)
class Tiling:
    """The cut.  `rows` (broadcast) and `cols` (vector) are the m and n axes, or n and m."""

    rows: Group
    cols: Group
    left: Access
    right: Access
    pack_left: Packing
    pack_right: Packing
    lanes: int
    tile_rows: int
    tile_vectors: int
    block_rows: DimLike
    block_cols: DimLike
    depth: DimLike
    spread: DimLike  # blocks along rows of unknown number come in so many, if of SPREAD_ROWS each
    most: Room
    half: bool  # the last vector of a tile has half the lanes
    skips: bool  # runs of k that lie outside for every row of a tile are skipped
    flat: bool  # the epilogue walks the axes of the rows as one
    # the epilogue meets LANES columns at a time, fewer, and these with some that it met before
    chunks: tuple[bool, bool, bool]
    # (most, rows, vectors): so many rows read B in place, or a packed one panel by panel, by such
    # tiles; where their number is symbolic
    few_rows: tuple[tuple[int, int, int], ...] = ()
    swapped: bool = False
    batch_inside: bool = False  # blocks of all batches at some rows come one after the other
    grouped: bool = False  # the batch axis is the first of the columns: see contract_order
    tail: Tail = (0, False)

    @property
    def strips(self) -> bool:
        """Whether A is packed a strip of rows at a time."""
        return _in_strips(self.pack_left, self.rows, self.pack_right) and not self.skips

    @property
    def strip_rows(self) -> int:
        return _strip_rows(self.tile_rows)

    @property
    def by_tiles(self) -> bool:
        """Whether one row of tiles is summed and finished after the other."""
        return self.pack_left.mode == "direct" or self.strips

    @property
    def finished(self) -> Group:
        """The rows as the epilogue walks them."""
        if self.flat and len(self.rows.axes) > 1:
            return Group(self.rows.axes[-1:], (self.rows.size,))
        return self.rows

    @property
    def tile_cols(self) -> int:
        return self.tile_vectors * self.lanes

    @property
    def packed(self) -> bool:
        """Whether an earlier step has packed B."""
        return self.pack_right.mode == "packed"


def groups(c: Contraction) -> tuple[Group, Group, Group, Group]:
    """The batch, m, n and k axes."""
    found: list[Group] = []
    first = 0
    for extents in (c.batch, c.m, c.n, c.k):
        found.append(Group(tuple(range(first, first + len(extents))), extents))
        first += len(extents)
    return found[0], found[1], found[2], found[3]


def cut_of(c: Contraction, target: Target) -> Cut:
    """The tiling as something a kernel can carry: see `tile`."""
    t = tile(c, target)
    code = (
        t.swapped,
        (t.pack_left.mode, t.pack_left.fused),
        (t.pack_right.mode, t.pack_right.fused),
        t.tile_rows,
        t.tile_vectors,
        t.half,
        t.skips,
        t.flat,
        t.chunks,
        t.few_rows,
        t.batch_inside,
        t.grouped,
        t.tail,
    )
    return Cut(code, (t.block_rows, t.block_cols, t.depth, t.spread, *t.most), (), _panel(t))


def _panel(t: Tiling) -> int:
    """Columns of the panels in which the block of a tiling could read B, 0 if it cannot."""
    if t.swapped or t.grouped or guarded(t.right) or t.pack_right.mode in ("direct", "packed"):
        return 0
    return t.tile_cols


def _carried(c: Contraction, cut: Cut, target: Target) -> Tiling:
    """The tiling that a kernel carries."""
    swapped, pack_left, pack_right, tile_rows, vectors, half, skips, *last = cut.code
    flat, chunks, few_rows, inside, grouped, tail = last
    block_rows, block_cols, depth, spread, *_ = cut.numbers
    most: Any = cut.most or cut.numbers
    _, m, n, _ = groups(c)
    rows, cols, left, right = (n, m, c.b, c.a) if swapped else (m, n, c.a, c.b)
    if grouped:
        cols = Group((0, *n.axes), (*c.batch, *n.extents))
    lanes = target.lanes(c.dtype.itemsize)
    return Tiling(
        guards_first(left, rows) if skips else rows,
        cols,
        left,
        right,
        Packing(*pack_left),
        Packing(*pack_right),
        lanes,
        tile_rows,
        vectors,
        block_rows,
        block_cols,
        depth,
        spread,
        Room(*most[4:]),
        half,
        skips,
        flat,
        chunks,
        few_rows,
        swapped,
        inside,
        grouped,
        tail,
    )


def tile(c: Contraction, target: Target) -> Tiling:
    """The tiling of a contraction on a target: what it carries, or what suits its sizes."""
    if c.cut is not None:
        return _carried(c, c.cut, target)
    _, m, n, k = groups(c)
    lanes = target.lanes(c.dtype.itemsize)
    rows, cols, left, right = m, n, c.a, c.b
    swapped = not c.panel and (
        _orientation_cost(c, n, m, target) < _orientation_cost(c, m, n, target)
    )
    if swapped:
        rows, cols, left, right = n, m, c.b, c.a
    in_runs = _axes_in_runs(left, k)
    in_place = in_runs > 0 and not reads_in_place(c, right, rows, cols, k)
    heights = target.rows
    if in_place:
        heights = heights_in_place(left, rows, c.dtype.itemsize, target)
    tile_rows, vectors = _register_tile(assumed_size(rows), cols.size, lanes, heights)
    if c.panel and vectors != c.panel // lanes:
        vectors = c.panel // lanes
        tiles = max(-(-assumed_size(rows) // heights[vectors - 1]), 1)
        tile_rows = max(-(-assumed_size(rows) // tiles), 1)
    half = _half(cols.size, vectors, lanes)
    pack_left = packing_of(left, rows, k, broadcast=True)
    skips = needed_share(c, left, rows, k) < (IN_PLACE_SHARE if in_place else 1)
    if skips:
        rows = guards_first(left, rows)
    pack_right = Packing("packed", 0) if c.panel else packing_of(right, cols, k, broadcast=False)
    if not c.panel and reads_in_place(c, right, rows, cols, k):
        half = False
        pack_right = Packing("direct", len(cols.axes))
        most = max(IN_PLACE_SUMS // tile_rows, 2 if tile_rows <= target.rows[1] else 1)
        vectors = min(most, max(-(-assumed_size(cols) // lanes), 1))
    few_rows: tuple[tuple[int, int, int], ...] = ()
    windows = in_place and guards_axis(left, k.axes[-in_runs])
    merged = None
    if in_place and not (swapped or skips or windows or c.panel):
        merged = groups_as_columns(c, vectors * lanes)
    if merged:
        cols, half = merged, False
        pack_right = packing_of(right, cols, k, broadcast=False)
    elif may_be_few(rows.size) and not skips and not windows:
        if c.panel:
            low = min(FEWEST_ROWS, tile_rows)
            most = STREAMED_ROWS if in_place else low
            few_rows = ((1, 1, vectors if half else SIDE_BY_SIDE * vectors), (most, low, vectors))
        elif lies_in_vectors(right, cols, k) and pack_right.mode != "transpose":
            # a single column may also lie along k: the table of k then tells runs, not steps
            low = min(FEWEST_ROWS, tile_rows)
            few_rows = ((1, 1, 4), (low, low, 2))
    batches = math.prod(map(assumed, c.batch))
    fused = in_runs if in_place else pack_left.fused if skips else 0
    depth = _depth(k, fused)
    sizes = (assumed_size(rows), assumed_size(cols), assumed_size(k))
    known = isinstance(k.size, int)
    near = 0 if swapped else near_rows(c) // tile_rows * tile_rows
    in_strips = not in_place and not skips and _in_strips(pack_left, rows, pack_right)
    if in_place:
        pack_left = Packing("direct", in_runs)
        run = assumed(run_length(left, k))
        width, size = vectors * lanes, c.dtype.itemsize
        depths = {_depth(k, fused, most) for most in slices_in_place(k.size, width, size, target)}
        block_rows, block_cols, depth = block_in_place(
            sizes, tile_rows, width, sorted(depths), run, size, target, c.panel > 0, known
        )
        if near and not merged:
            block_rows = min(block_rows, near)
        whole = known and sizes[2] <= depth
        most_few = max((n for n, _, _ in few_rows), default=FEWEST_ROWS)
        few = (-(-most_few // tile_rows) + (most_few > FEWEST_ROWS)) * tile_rows
        runs, sums = _runs(k, pack_left.fused, depth), max(few, tile_rows if whole else block_rows)
        cut = 0
        if windows:
            whole_k = assumed(k.size)
            cut = tile_rows * (whole_k + lanes * runs)
        slices = 0 if c.panel else block_cols * depth
        room = Room(few, block_cols, depth, runs, sums, slices, cut)
        if merged:
            room = room._replace(reach=reach_of_groups(c))
    elif in_strips:
        width, size = vectors * lanes, c.dtype.itemsize
        block_rows, block_cols, depth = block_in_place(
            *(sizes, tile_rows, width, (depth,), 3 * sizes[2], size, target, c.panel > 0, known),
            batches,
        )
        whole = known and sizes[2] <= depth
        strip = _strip_rows(tile_rows)
        slices = 0 if c.panel else block_cols * depth
        sums = strip if whole else max(strip, block_rows)
        room = Room(strip, block_cols, depth, depth, sums, slices, 0)
    else:
        block_rows, block_cols = block(sizes, tile_rows, vectors * lanes, c.dtype.itemsize, target)
        if pack_right.mode == "direct":
            block_cols = columns_in_place(sizes[1], vectors * lanes, c.dtype.itemsize, batches)
        slices = 0 if pack_right.mode in ("direct", "packed") else block_cols * depth
        room = Room(block_rows, block_cols, depth, depth, block_rows, slices, 0)
    return Tiling(
        rows,
        cols,
        left,
        right,
        pack_left,
        pack_right,
        lanes,
        tile_rows,
        vectors,
        block_rows,
        block_cols,
        depth,
        _spread(rows, cols, block_cols),
        room,
        half,
        skips,
        walks_as_one(c, rows),
        _chunks(c, cols, vectors * lanes, block_cols),
        few_rows,
        swapped,
        near > 0 and not merged,
        bool(merged),
        tail_of(cols.size, vectors, lanes) if in_place or in_strips else (0, False),
    )


def block_count(c: Contraction, t: Tiling) -> DimLike:
    """How many blocks there are."""
    rows, cols = t.rows.size, ceildiv(t.cols.size, t.block_cols)
    by_rows = ceildiv(rows, t.block_rows)
    if t.spread != 1:
        even = mul(t.spread, ceildiv(rows, mul(t.spread, t.block_rows)))
        by_rows = maximum(by_rows, minimum(even, ceildiv(rows, SPREAD_ROWS)))
    return product((*(() if t.grouped else c.batch), by_rows, cols))


def _orientation_cost(c: Contraction, rows: Group, cols: Group, target: Target) -> float:
    """Cycles per element of C, roughly, when vectors run along `cols`."""
    lanes = target.lanes(c.dtype.itemsize)
    _, m, _, k = groups(c)
    left, right = (c.a, c.b) if rows == m else (c.b, c.a)
    depth, size = assumed_size(k), max(assumed_size(cols), 1)
    padding = -(-size // lanes) * lanes / size if isinstance(cols.size, int) else 1.1
    padding *= needed_share(c, left, rows, k)
    store = c.stores[0].access if c.stores else c.a
    contiguous = fused_axes(store, cols) == len(cols.axes)
    cost = depth / target.multiplies * padding + (0.5 if contiguous else 5)
    pack_left = PACK_CYCLES[packing_of(left, rows, k, broadcast=True).mode]
    pack_right = PACK_CYCLES[packing_of(right, cols, k, broadcast=False).mode]
    cost += depth * (pack_left + run_cycles(left, rows, k)) / min(size, 256)
    cost += depth * (pack_right + run_cycles(right, cols, k)) / max(min(assumed_size(rows), 96), 1)
    return cost


def _chunks(
    c: Contraction, group: Group, tile_cols: int, block_cols: int
) -> tuple[bool, bool, bool]:
    """Whether blocks have LANES columns to finish at a time, whether fewer are left over, and
    whether those are finished with some before them."""
    cols = group.size
    one = assumed(cols) <= block_cols
    rest = not (tile_cols % LANES == 0 or one) or factor(cols) % LANES != 0
    again = rest and one and isinstance(cols, int) and cols > LANES and finishes_again(c, group)
    return not isinstance(cols, int) or cols >= LANES, rest, again


def _half(cols: DimLike, vectors: int, lanes: int) -> bool:
    """Whether the last vector of the only column of tiles is at most half full."""
    unused = vectors * lanes - cols if isinstance(cols, int) else 0
    return lanes >= 4 and lanes // 2 <= unused < lanes


def _register_tile(
    rows: int, cols: DimLike, lanes: int, heights: tuple[int, ...]
) -> tuple[int, int]:
    """The tile that wastes least on the edges; tall ones are packed in fewer pieces."""
    best = (float("inf"), 1, 1)
    vectors_needed = max(-(-assumed(cols) // lanes), 1)
    # tiles kept low, see `heights_in_place`, are wide instead: fewer loads for a multiply-add
    for vectors in (2, 3, 4, 1) if heights[1] > heights[2] else (3, 4, 2, 1):
        if vectors > len(heights) or vectors > vectors_needed:
            continue
        tallest = heights[vectors - 1]
        half = _half(cols, vectors, lanes)
        for most in range(tallest, max(tallest - 2, 0), -1):
            tiles = max(-(-rows // most), 1)
            height = max(-(-rows // tiles), 1)
            sums = height * vectors
            wide = -(-vectors_needed // vectors) * vectors - 0.5 * (half and height % 2 == 0)
            loads = 1 + 0.12 / vectors + 0.2 / height
            bound = max(8 / sums, (height + vectors) / sums, 1)  # by latency, and by loads
            cost = tiles * height * wide * loads * bound
            # else the tile of most contractions, so that they share code
            if cost < best[0] * ALIKE:
                best = (cost, height, vectors)
    return best[1], best[2]


def _spread(rows: Group, cols: Group, block_cols: int) -> int:
    """Blocks along the rows come in multiples of so many, that two or four cores share them."""
    if isinstance(rows.size, int):
        return 1
    across = -(-cols.size // block_cols) if isinstance(cols.size, int) else 1
    return EVEN // math.gcd(EVEN, max(across, 1))


def _in_strips(pack_left: Packing, rows: Group, pack_right: Packing) -> bool:
    """Whether rows lie side by side in A, to be packed with several register tiles at a time."""
    panels = pack_left.mode == "panels" and pack_left.fused == len(rows.axes)
    return panels and pack_right.mode != "direct"


def _strip_rows(tile_rows: int) -> int:
    return max(STRIP_ROWS // tile_rows, 1) * tile_rows


def _depth(k: Group, fused: int, most: int = DEPTH) -> int:
    """Steps of k in a packed slice: of whole runs of the `fused` last axes where those fit."""
    size = k.size
    if not isinstance(size, int):
        return DEPTH
    if DEPTH < size <= most:
        return size
    run = product(k.extents[len(k.extents) - fused :])
    unit = run if isinstance(run, int) and 4 < run <= most else 4
    slices = max(-(-size // (most // unit * unit)), 1)
    steps = -(-size // slices)
    return max(-(-steps // unit) * unit, 4)


def _axes_in_runs(left: Access, k: Group) -> int:
    """How many trailing axes of k make runs, long enough for rows to be read in place; 0 if none.

    A run may be cut by a guard, see `window_axes`, if windows are small and known.
    """
    if any(t.div != 1 for t in guarded(left)):
        return 0
    fused = fused_axes(left, k)
    if fused and (fused == len(k.axes) or assumed(run_length(left, k)) >= IN_PLACE_RUN):
        return fused
    wide = window_axes(left, k)
    run = product(k.extents[len(k.extents) - wide :])
    if not isinstance(run, int) or not isinstance(k.size, int):
        return 0
    # slices of k must not cut runs: they are of whole runs where those are long enough
    most = MOST_CUT if run > 4 else DEPTH
    small = LEAST_WINDOW <= run <= MOST_WINDOW and k.size <= most
    return wide if small else 0


def _runs(k: Group, fused: int, depth: int) -> int:
    """Most runs of k, its last `fused` axes, that a slice can reach into."""
    run = product(k.extents[len(k.extents) - fused :])
    most = -(-depth // max(run, 1)) + 1 if isinstance(run, int) else depth
    outer = product(k.extents[: len(k.extents) - fused])
    return min(most, outer) if isinstance(outer, int) else most
