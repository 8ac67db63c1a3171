"""Which contractions are summed line by line of k with A read in place, and how they are cut.

    dW[kh, kw, ic, oc] = sum over n, oh, ow of x[n, oh + kh, ow + kw, ic] * dy[n, oh, ow, oc]

The last row axes lie side by side in A at every step of k, so that the rows of a register tile are
consecutive elements, and nothing of A need be packed.  The other row axes are taps: at a tap the
guards of A leave, of each line along the last axis of k, one run of steps.  Filter gradients and
products with a transposed first operand have this form; it is recognised by its accesses.
Imports: targets, contract_access, contract_blocks, contract_tiling, kernel, dims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from graphc.backends.codegen.contract_access import Group, fused_axes, guarded, linear
from graphc.backends.codegen.contract_blocks import even_sizes
from graphc.backends.codegen.contract_microkernel import Tail, tail_of
from graphc.backends.codegen.contract_operands import assumed, assumed_size
from graphc.backends.codegen.contract_tiling import groups
from graphc.backends.codegen.targets import Target
from graphc.backends.codegen.text import LANES
from graphc.dims import DimLike, ceildiv, product
from graphc.kernel import Access, Contraction, Cut

DEPTH = 72
"""Steps of k in a slice: what a row of tiles reads of A, and several panels of B, then stay in the
L1 cache."""

FEWEST_ROWS = 4

FAR_BYTES = 1024
"""Steps of k so far apart or further are copied: they share few sets of the caches."""

FEW_COLUMNS = 96
"""Columns that are too few to repay packing rows that could be read in place."""

MARGIN_BYTES = 64 * 1024
"""Most memory of a slice copied with margins."""

SHORTEST_SUM = 32
"""Fewest steps of k for which setting up lines pays."""

ALIKE = 0.94
"""A register tile is preferred to the usual one where it costs less than this share."""

MOST_TAPS = 512
"""Row axes that are not contiguous in A hold at most so many elements: setting up each costs."""

WIDE_BYTES = 1024
"""Most columns of a block, in bytes."""

C_BYTES = 256 * 1024
"""Scratch for the partial sums of a block, which stay in the L2 cache."""


@dataclass(frozen=True)
class LineTiling:
    """The cut.  The row axes are `taps` followed by `rows`, which are contiguous in A.

    `copies` says how A is copied (see contract_lines_copy), '' where it is read in place.  With
    'margins' and 'pixels' the first axis of `rows` has guard `margin` in common with the last axis
    of k.
    """

    taps: Group
    rows: Group
    cols: Group
    left: Access
    right: Access
    lanes: int
    tile_rows: int
    tile_vectors: int
    half: bool  # the last vector of a tile has half the lanes
    tail: Tail
    copies: str
    margin: int
    block_taps: DimLike
    block_rows: DimLike
    block_cols: DimLike
    depth: DimLike
    room: DimLike  # elements that copies with margins take
    most: tuple[int, int, int, int, int]  # of the five above, that scratch memory is laid out for
    along: int  # the last axis of k
    swapped: bool

    @property
    def tile_cols(self) -> int:
        return self.tile_vectors * self.lanes

    @property
    def margins(self) -> bool:
        """Whether lines of A are copied with margins, for all taps along them."""
        return self.copies in ("margins", "pixels")

    @property
    def code(self) -> tuple[Any, ...]:
        """What a cut says besides numbers."""
        inner = len(self.rows.axes)
        tile = (self.tile_rows, self.tile_vectors, self.half, self.tail)
        return ("lines", self.swapped, inner, self.copies, self.margin, *tile)


def line_tiling(c: Contraction, target: Target) -> LineTiling | None:
    """The tiling of a contraction of this form; None for others."""
    if c.cut is not None:
        return _carried(c, c.cut, target) if c.cut.code[0] == "lines" else None
    if c.panel:
        return None
    for swapped in (False, True):
        form = _form(c, swapped)
        if form is not None:
            return _tiling(c, form, target)
    return None


def line_cut(t: LineTiling) -> Cut:
    return Cut(t.code, (t.block_taps, t.block_rows, t.block_cols, t.depth, t.room))


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


@dataclass(frozen=True)
class _Form:
    """A contraction seen as taps, rows and columns."""

    swapped: bool
    taps: Group
    rows: Group
    cols: Group
    left: Access
    right: Access
    along: int
    copies: str = ""
    margin: int = 0


def _form(c: Contraction, swapped: bool) -> _Form | None:
    """The contraction with rows read in place, if it has the form."""
    rows, cols, left, right = _sides(c, swapped)
    k = groups(c)[3]
    if not c.stores or not k.axes or assumed_size(k) < SHORTEST_SUM:
        return None
    inner = fused_axes(left, rows)
    if not cols.axes or fused_axes(right, cols) < len(cols.axes) or guarded(right):
        return None
    if fused_axes(c.stores[0].access, cols) < len(cols.axes):
        return None
    taps, rows = _split(rows, inner)
    if not isinstance(rows.size, int) or not isinstance(taps.size, int):
        return None
    if taps.size > MOST_TAPS or not _by_lines(left, k):
        return None
    form = _Form(swapped, taps, rows, cols, left, right, k.axes[-1])
    return None if _better_in_strips(form, k, c.dtype.itemsize) else form


def _better_in_strips(form: _Form, k: Group, itemsize: int) -> bool:
    """Whether it is a product of matrices whose rows are better packed in strips, that is (see
    contract_tiling) once for more steps: they are copied anyway, or serve many columns."""
    if form.taps.axes or len(k.axes) != 1 or guarded(form.left):
        return False
    return _is_far(form, itemsize) or assumed_size(form.cols) > FEW_COLUMNS


def _with_margins(form: _Form) -> _Form | None:
    """The same with the taps along a line as rows, if they can be."""
    if not form.taps.axes:
        return None
    tap, width = form.taps.axes[-1], form.rows.size
    for i, term in enumerate(guarded(form.left)):
        coefs = dict(term.axes)
        step, apart = coefs.get(form.along), term.stride
        if coefs.get(tap) != 1 or not isinstance(step, int) or not isinstance(apart, int):
            continue
        if linear(form.left, tap) != apart:
            continue
        taps, extents = form.taps.axes[:-1], form.taps.extents
        rows = Group((tap, *form.rows.axes), (extents[-1], *form.rows.extents))
        outer = Group(taps, extents[:-1])
        copies = "margins" if apart == width else "pixels"
        return replace(form, taps=outer, rows=rows, copies=copies, margin=i)
    return None


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
    _, swapped, inner, copies, margin, tile_rows, vectors, half, tail = cut.code
    rows, cols, left, right = _sides(c, swapped)
    taps, rows = _split(rows, inner)
    tile = (target.lanes(c.dtype.itemsize), tile_rows, vectors, half, tail)
    block_taps, block_rows, block_cols, depth, room = cut.numbers
    blocks = (block_taps, block_rows, block_cols, depth, room)
    most: Any = cut.most or cut.numbers
    rest = (most, groups(c)[3].axes[-1], swapped)
    return LineTiling(taps, rows, cols, left, right, *tile, copies, margin, *blocks, *rest)


def _tiling(c: Contraction, form: _Form, target: Target) -> LineTiling | None:
    """The best of the ways to read A."""
    itemsize = c.dtype.itemsize
    lanes = target.lanes(itemsize)
    extent = c.axes[form.along]
    line = extent if isinstance(extent, int) else 1
    found: list[tuple[float, int, _Form, tuple[int, int, bool], int]] = []
    in_place = _copied_rows(form, itemsize)
    for choice in (in_place, _with_margins(form)):
        if choice is None or assumed_size(choice.rows) < FEWEST_ROWS:
            continue
        cost, high, vectors, half = _register_tile(
            assumed_size(choice.rows), choice.cols.size, lanes, target
        )
        room = _margin_room(choice, line)
        if room * itemsize > MARGIN_BYTES:
            continue
        cost = cost * assumed_size(choice.taps) * _copy_cost(choice)
        found.append((cost, len(found), choice, (high, vectors, half), room))
    if not found:
        return None
    _, _, form, (high, vectors, half), room = min(found, key=lambda x: x[:2])
    sizes = (assumed_size(form.taps), assumed_size(form.rows), assumed_size(form.cols))
    k = assumed_size(groups(c)[3])
    blocks = _block(
        sizes, k, high, vectors * lanes, itemsize, math.prod(map(assumed, c.batch)), target
    )
    most = (*blocks, DEPTH, room)
    return LineTiling(
        form.taps,
        form.rows,
        form.cols,
        form.left,
        form.right,
        lanes,
        high,
        vectors,
        half,
        tail_of(form.cols.size, vectors, lanes),
        form.copies,
        form.margin,
        *most,
        most,
        form.along,
        form.swapped,
    )


def _copied_rows(form: _Form, itemsize: int) -> _Form:
    """With rows copied, if the steps of k lie far apart."""
    return replace(form, copies="rows") if _is_far(form, itemsize) else form


def _is_far(form: _Form, itemsize: int) -> bool:
    step = linear(form.left, form.along)
    return isinstance(step, int) and step * itemsize >= FAR_BYTES


def _copy_cost(form: _Form) -> float:
    """What copying adds to multiplying: each element copied serves some columns."""
    if not form.copies:
        return 1.0
    taps = assumed(form.rows.extents[0]) if form.copies != "rows" else 1
    width = assumed_size(form.rows) // max(taps, 1)
    each = 0.0 if form.copies == "margins" else (0.2 + 2 / max(width, 1)) / max(taps, 1)
    cost = 1 + 16 * each / max(min(assumed_size(form.cols), 256), 1)
    return cost if form.copies == "rows" else cost + 0.1


def _margin_room(form: _Form, line: int) -> int:
    """Elements that a slice takes with its margins; 0 if it is copied without."""
    if form.copies not in ("margins", "pixels"):
        return 0
    step = dict(guarded(form.left)[form.margin].axes)[form.along]
    assert isinstance(step, int)
    taps = assumed(form.rows.extents[0])
    runs = DEPTH // max(line, 1) + 2
    return (DEPTH * step + runs * taps) * (assumed_size(form.rows) // taps) + 64


def _register_tile(
    rows: int, cols: DimLike, lanes: int, target: Target
) -> tuple[float, int, int, bool]:
    """The tile that wastes least: its cost, rows and vectors, and whether the last is halved."""
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
            idle = max(8 / (high * vectors), 1)  # chains that hide the latency
            issue = max((vectors + high) / (high * vectors), 1)  # loads per multiply-add
            cost = padded * loads * max(idle, issue)
            if cost < best[0] * ALIKE:  # else the tile of most, so that they share code
                best = (cost, high, vectors, half)
    return best


def _block(
    sizes: tuple[int, int, int],
    k: int,
    high: int,
    wide: int,
    itemsize: int,
    batch: int,
    target: Target,
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
            work = k * (tiles * high * w / target.multiplies + 1.25 * w + r * high)
            # lists of runs, sums to and fro, epilogue
            work += (
                k / DEPTH * (tiles * (high * w / 2 + 20) + t * 500) + tiles * high * w / 4 + 2000
            )
            waits = 4 * ((blocks + 1) // 2 + 0.5) + 4 * ((blocks + 3) // 4 + 0.5)  # of 2, 4 cores
            cost = work * (3 * blocks + waits)
            if cost < best[0]:
                best = (cost, t, r * high, w)
    return best[1:]


def _heights(taps: int, tiles: int, room: int) -> list[tuple[int, int]]:
    """(taps, tiles of rows) that a block may have: several whole taps, or a part of one."""
    found = [(t, tiles) for t in even_sizes(taps) if t * tiles <= room]
    found += [(1, r) for r in even_sizes(tiles) if r <= room and r < tiles]
    return found or [(1, 1)]
