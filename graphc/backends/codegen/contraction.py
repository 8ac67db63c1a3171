"""Contractions as machine code: packed operands, a register tile, one epilogue.

A block is a rectangle of C at one batch index.  It packs slices of A and B into stack memory, lets
the register tile sum over k into a tile of C on the stack, then runs the epilogue over that tile.
Blocks share nothing, and no sum is ever split, so any order and any number of threads give the same
bits.  Imports: the other contract modules, targets, text, kernel.
"""

from __future__ import annotations

from dataclasses import replace

from graphc.backends.codegen.contract_access import (
    Group,
    Operand,
    Record,
    coordinates,
    sum_records,
)
from graphc.backends.codegen.contract_across import Multiply, tiles_across
from graphc.backends.codegen.contract_block_packing import BlockPacking
from graphc.backends.codegen.contract_epilogue import Columns, Epilogue, Rows
from graphc.backends.codegen.contract_lines import LinesEmitter
from graphc.backends.codegen.contract_lines_tiling import (
    line_block_count,
    line_cut,
    line_tiling,
)
from graphc.backends.codegen.contract_microkernel import Runs, Tile, emit_tile, lanes_below
from graphc.backends.codegen.contract_packing import clear_missing
from graphc.backends.codegen.contract_panels import PackedPanels
from graphc.backends.codegen.contract_panelwise import Panels, multiply_few, multiply_panels
from graphc.backends.codegen.contract_parts import ceildiv, even_part, size_of
from graphc.backends.codegen.contract_rows import RowScratch, RowsInPlace
from graphc.backends.codegen.contract_scratch import Scratch
from graphc.backends.codegen.contract_tiling import (
    SPREAD_ROWS,
    Tiling,
    block_count,
    cut_of,
    groups,
    tile,
)
from graphc.backends.codegen.contract_winograd import WinogradEmitter
from graphc.backends.codegen.contract_winograd_tiling import winograd_blocks, winograd_cut
from graphc.backends.codegen.targets import Target, host_target
from graphc.backends.codegen.text import FunctionText, scalar_type
from graphc.dims import DimLike, factor
from graphc.kernel import Contraction, Cut, sizes_of

IN_PLACE_STRIP, SINGLE_STRIP = 8, 4
"""Steps of k over all columns of a block that reads B in place, and of one with a single row of C:
as many rows of B are read at once."""


def contraction_blocks(c: Contraction, target: Target | None = None) -> DimLike:
    """How many independent blocks the kernel of a contraction has: a formula in sizes."""
    target = target or host_target()
    if c.winograd:
        return winograd_blocks(c, target)
    by_lines = line_tiling(c, target)
    return line_block_count(c, by_lines) if by_lines else block_count(c, tile(c, target))


def contraction_cut(c: Contraction, target: Target | None = None) -> Cut:
    """How the kernel of a contraction is cut: to be carried by it, see `kernel.Cut`."""
    target = target or host_target()
    if c.winograd:
        return winograd_cut(c, target)
    by_lines = line_tiling(c, target)
    return line_cut(by_lines) if by_lines else cut_of(c, target)


def emit_contraction(c: Contraction, name: str, target: Target | None = None) -> FunctionText:
    """The kernel `void name(ptr args, ptr sizes, i64 b0, i64 b1)` of a contraction."""
    assert c.dtype.name in ("f32", "f64")
    assert c.bufs[0] is c.dtype and c.bufs[1] is c.dtype
    f = FunctionText(name)
    f.open_kernel(len(c.bufs), sizes_of(c))
    target = target or host_target()
    by_lines = None if c.winograd else line_tiling(c, target)
    if c.winograd:
        WinogradEmitter(f, c, target).emit()
    elif by_lines:
        LinesEmitter(f, c, by_lines).emit()
    else:
        _Emitter(f, c, tile(c, target), target.unroll).emit()
    f.close_kernel()
    return f


class _Emitter:
    """One kernel being written."""

    def __init__(self, f: FunctionText, c: Contraction, t: Tiling, unroll: int) -> None:
        self.f, self.c, self.t, self.unroll = f, c, t, unroll
        self.batch, _, _, self.k = groups(c)
        if t.grouped:
            self.batch = Group((), ())
        self.itemsize = c.dtype.itemsize
        self.scalar = scalar_type(c.dtype)
        self.room = Scratch(f, c, t)
        self.scratch = self.room.places
        axes = range(len(c.axes))
        self.left = Operand(f, t.left, self.itemsize, axes)
        self.right = Operand(f, t.right, self.itemsize, axes)
        self.epilogue = Epilogue(f, c, t.cols)
        along_rows, along_cols = t.pack_left.mode == "panels", t.pack_right.mode != "transpose"
        self.left_tables = self.room.tables(
            self.left, t.rows, self.k, t.pack_left, along_rows, "left"
        )
        self.right_tables = self.room.tables(
            self.right, t.cols, self.k, t.pack_right, along_cols, "right"
        )
        self.packing = BlockPacking(
            f, t, self.room, (self.left, *self.left_tables), (self.right, *self.right_tables)
        )
        window = self.k.axes[-t.pack_left.fused] if t.pack_left.mode == "direct" else None
        tables = RowScratch(*(self.scratch[n] for n in ("runs", "needed", "zeros", "cut")))
        k = self.left_tables[1]
        self.in_place = RowsInPlace(self.left, t.rows, k, tables, window, unroll)

    # ---- blocks

    def emit(self) -> None:
        f, t = self.f, self.t
        self.row_count, self.col_count, self.k_count = (
            size_of(f, group.extents) for group in (t.rows, t.cols, self.k)
        )
        self.panels = PackedPanels(
            f, self.right.base, self.col_count, self.k_count, self.room.b_step, t.tile_cols
        )
        row_blocks = ceildiv(self.f, self.row_count, f.dim(t.block_rows))
        if t.spread != 1:
            spread, most = f.dim(t.spread), ceildiv(f, self.row_count, SPREAD_ROWS)
            even = ceildiv(f, self.row_count, f.mul(spread, f.dim(t.block_rows)))
            row_blocks = f.smax(row_blocks, f.smin(f.mul(spread, even), most))
        col_blocks = ceildiv(self.f, self.col_count, f.dim(t.block_cols))
        # along an axis of size 0 no block runs, but the text must not divide by a constant 0
        row_blocks, col_blocks = f.smax(row_blocks, 1), f.smax(col_blocks, 1)
        blocks = f.open_loop("%b0", "%b1", 1)
        col = f.urem(blocks.index, col_blocks)
        rest = f.udiv(blocks.index, col_blocks)
        if t.batch_inside:
            batches = f.smax(size_of(self.f, self.batch.extents), 1)
            row, batch = f.udiv(rest, batches), f.urem(rest, batches)
        else:
            row, batch = f.urem(rest, row_blocks), f.udiv(rest, row_blocks)
        r0, r1 = even_part(self.f, self.row_count, t.tile_rows, row, row_blocks)
        c0, c1 = even_part(self.f, self.col_count, t.tile_cols, col, col_blocks)
        self.row0, self.rows = r0, f.sub(r1, r0)
        self.col0, self.cols = c0, f.sub(c1, c0)
        self.batch_index = batch
        self.batch_coords = coordinates(f, self.batch, batch)
        if t.by_tiles:
            self._by_tiles()
        else:
            self._sum()
            self._finish()
        f.close_loop(blocks)

    # ---- the sum over k

    def _origin(self, operand: Operand) -> Record:
        return sum_records(self.f, operand.origin(), operand.part(self.f, self.batch_coords))

    def _by_tiles(self) -> None:
        """Sum and finish one row of tiles after the other."""
        f, t = self.f, self.t
        after = f.fresh("after")
        if t.few_rows:
            few, more = f.fresh("few"), f.fresh("more")
            most = max(rows for rows, _, _ in t.few_rows)
            f.branch_if(f.value(f"icmp sle i64 {self.rows}, {most}"), few, more)
            f.label(few)
            self._sum()
            self._finish()
            f.branch(after)
            f.label(more)
        whole = f.value(f"icmp sle i64 {self.k_count}, {self.room.depth}")
        below = f.value(f"select i1 {whole}, i64 0, i64 {t.tile_rows * self.room.c_row}")
        slices = f.open_loop(0, f.smax(self.k_count, 1), self.room.depth)
        left = f.sub(self.k_count, slices.index)
        first = f.value(f"icmp eq i64 {slices.index}, 0")
        last = f.value(f"icmp sle i64 {left}, {self.room.depth}")
        self._tiles_of_slice(slices.index, f.smin(left, self.room.depth), first, last, below)
        f.close_loop(slices)
        f.branch(after)
        f.label(after)

    def _tiles_of_slice(self, start: str, depth: str, first: str, last: str, below: str) -> None:
        """All rows of tiles over one slice of k, `below` each other in C; finished if it is the
        last one."""
        f, t = self.f, self.t
        if t.pack_right.mode == "transpose":
            self.right_tables[0].fill(f, self.col0, self.cols)
        self.left_tables[1].fill(f, start, depth)
        if t.packed:
            b, panel = self.panels.at(self.batch_index, self.col0, start)
        else:
            b, panel = self.scratch["b"], self.room.b_panel
            self.right_tables[1].fill(f, start, depth)
            origin = self._origin(self.right)
            self.packing.pack_right(origin, (self.col0, self.cols), depth)
        if t.strips:
            self._strips_of_slice(depth, (b, panel), first, last, below)
            return
        shape, origin = self._tile_shape(), self._origin(self.left)
        begin = share = "0"
        if t.packed:
            tiles = ceildiv(f, self.rows, t.tile_rows)
            begin, share = self.panels.ahead(self.cols, start, depth, last, tiles, self.unroll)
        carried = [("ptr", self.scratch["c"]), ("i64", begin)]
        down = f.open_loop(0, self.rows, t.tile_rows, carried)
        c, ahead = down.carried
        left = f.sub(self.rows, down.index)
        first_row = f.add(self.row0, down.index)
        self.in_place.locate(f, shape, origin, first_row, left)
        rows = self._rows(first_row, f.smin(left, t.tile_rows))
        parts = ceildiv(self.f, self.cols, t.tile_cols)

        def multiply(tile: Tile, b: str, at: str, column: str) -> None:
            self.in_place.fetch_ahead(f, shape, f.udiv(column, t.tile_cols), parts)
            if t.packed:
                tile = replace(tile, stream=(f.offset(b, ahead), share))
            self.in_place.multiply(f, tile, b, at, first, self._moved(column))

        self._across(rows, (b, panel), c, last, multiply)
        c, fetched = f.offset(c, below), f.udiv(f.mul(share, depth), self.unroll)
        f.close_loop(down, [c, f.add(ahead, fetched)])

    def _strips_of_slice(
        self, depth: str, panels: tuple[str, str], first: str, last: str, below: str
    ) -> None:
        """The same where A is packed, a strip of rows at a time: `panels` are where those of B
        begin, and the bytes from one to the next."""
        f, t = self.f, self.t
        origin = self._origin(self.left)
        strips = f.open_loop(0, self.rows, t.strip_rows, [("ptr", self.scratch["c"])])
        top = f.add(self.row0, strips.index)
        height = f.smin(f.sub(self.rows, strips.index), t.strip_rows)
        self.packing.pack_left(origin, (top, height), depth)
        start = [("ptr", self.scratch["a"]), ("ptr", strips.carried[0])]
        down = f.open_loop(0, height, t.tile_rows, start)
        a, c = down.carried
        rows = self._rows(f.add(top, down.index), f.smin(f.sub(height, down.index), t.tile_rows))

        def multiply(tile: Tile, b: str, at: str, _: str) -> None:
            emit_tile(f, tile, a, b, at, depth, first)

        self._across(rows, panels, c, last, multiply)
        c = f.close_loop(down, [f.offset(a, self.room.a_panel), f.offset(c, below)])[1]
        f.close_loop(strips, [c])

    def _across(
        self, rows: Rows, panels: tuple[str, str], c: str, last: str, multiply: Multiply
    ) -> None:
        """The tiles beside each other at `c`, finished if the slice is the `last` one."""
        f, shape, columns = self.f, self._tile_shape(), (self.col0, self.cols)
        tiles_across(f, self.t, shape, columns, panels, c, multiply, (self.epilogue, rows, last))
        finish, after = f.fresh("finish"), f.fresh("after")
        f.branch_if(last, finish, after)
        f.label(finish)
        self._finish_rows(c, rows)
        f.branch(after)
        f.label(after)

    def _moved(self, column: str) -> str:
        """How many bytes further the panel of a column of the block reads A."""
        f, t = self.f, self.t
        if not t.grouped:
            return "0"
        batch, _ = t.cols.axes
        group = f.udiv(f.add(self.col0, column), f.dim(t.cols.extents[1]))
        return f.mul(group, f.mul(self.left.strides[batch], self.itemsize))

    def _sum(self) -> None:
        f, t = self.f, self.t
        origins = {"left": self._origin(self.left), "right": self._origin(self.right)}
        if t.pack_left.mode != "panels":
            self.left_tables[0].fill(f, self.row0, self.rows)
            tiles = ceildiv(self.f, self.rows, t.tile_rows)
            if t.packed and t.pack_left.mode == "direct":  # lower tiles reach into the next one
                tiles = f.add(tiles, 1)
            part = (f.mul(self.rows, self.room.a_row), f.mul(tiles, self.room.a_panel))
            clear_missing(f, self.scratch["a"], *part, self.itemsize)
        if t.pack_right.mode == "transpose":
            self.right_tables[0].fill(f, self.col0, self.cols)
        slices = f.open_loop(0, f.smax(self.k_count, 1), self.room.depth)
        depth = f.smin(f.sub(self.k_count, slices.index), self.room.depth)
        self.left_tables[1].fill(f, slices.index, depth)
        if not t.packed:
            self.right_tables[1].fill(f, slices.index, depth)
        self.packing.pack_left(origins["left"], (self.row0, self.rows), depth)
        first = f.value(f"icmp eq i64 {slices.index}, 0")
        if t.packed:
            self._multiply_packed(depth, first, slices.index)
        elif t.pack_right.mode == "direct":
            self._multiply_in_place(depth, first, origins["right"], t.tile_rows, t.tile_vectors)
        elif t.few_rows:
            self._by_rows(depth, first, origins["right"])
        else:
            self._pack_and_multiply(depth, first, origins["right"])
        f.close_loop(slices)

    def _by_rows(self, depth: str, first: str, origin: Record) -> None:
        """Multiply by B in place if the run turns out to have few rows, else by packed B."""
        f, t = self.f, self.t
        after = f.fresh("after")
        for most, rows, vectors in t.few_rows:
            few, more = f.fresh("few"), f.fresh("more")
            f.branch_if(f.value(f"icmp sle i64 {self.rows}, {most}"), few, more)
            f.label(few)
            self._multiply_in_place(depth, first, origin, rows, vectors)
            f.branch(after)
            f.label(more)
        if not t.by_tiles:
            self._pack_and_multiply(depth, first, origin)
        f.branch(after)
        f.label(after)

    def _multiply_packed(self, depth: str, first: str, start: str) -> None:
        """Multiply by panels that an earlier step has packed, from step `start` of k on."""
        f, t, room = self.f, self.t, self.room
        panels = Panels(*self.panels.at(self.batch_index, self.col0, start), depth, first)
        shape = self._tile_shape()
        after = f.fresh("after")
        for most, rows, vectors in t.few_rows:
            few, more = f.fresh("few"), f.fresh("more")
            f.branch_if(f.value(f"icmp sle i64 {self.rows}, {most}"), few, more)
            f.label(few)
            size, tall = (self.rows, self.cols), replace(shape, rows=rows)
            multiply_few(f, t, room, tall, panels, size, vectors)
            f.branch(after)
            f.label(more)
        if t.skips:
            self._multiply(depth, first, self.scratch["a"], panels.first, shape, panels.apart)
        elif not t.by_tiles:
            multiply_panels(f, t, room, shape, panels, (self.rows, "0", self.cols))
        f.branch(after)
        f.label(after)

    def _pack_and_multiply(self, depth: str, first: str, origin: Record) -> None:
        self.packing.pack_right(origin, (self.col0, self.cols), depth)
        shape = self._tile_shape()
        a, b = self.scratch["a"], self.scratch["b"]
        self._multiply(depth, first, a, b, shape, self.room.b_panel)

    def _multiply_in_place(
        self, depth: str, first: str, origin: Record, rows: int, vectors: int
    ) -> None:
        """Multiply by B where it lies: few rows would not repay packing it.

        A few steps of k at a time over all columns, so that memory is read along the rows of B.
        """
        f, t = self.f, self.t
        column, _ = self.right_tables[1].read(f, "0")
        column[0] = f.add(column[0], self.col0)
        b, _ = self.right.locate(f, origin, column)
        step = f.mul(self.right_tables[1].step, self.itemsize)
        shape = replace(
            self._tile_shape(), rows=rows, vectors=vectors, half=False, b_step=step, in_place=True
        )
        panel = vectors * t.lanes * self.itemsize
        if t.skips:
            self._multiply(depth, first, self.scratch["a"], b, shape, panel)
            return
        strip = SINGLE_STRIP if rows == 1 else IN_PLACE_STRIP
        start = [("ptr", self.scratch["a"]), ("ptr", b)]
        strips = f.open_loop(0, f.smax(depth, 1), strip, start)
        a, b = strips.carried
        steps = f.smin(f.sub(depth, strips.index), strip)
        begins = f.value(f"icmp eq i64 {strips.index}, 0")
        first = f.value(f"and i1 {first}, {begins}")
        self._multiply(steps, first, a, b, shape, panel)
        following = f.offset(a, strip * self.room.a_step)
        f.close_loop(strips, [following, f.offset(b, f.mul(step, strip))])

    def _multiply(
        self,
        depth: str,
        first: str,
        a: str,
        b: str,
        shape: Tile,
        panel: str | int,
    ) -> None:
        """Run the register tile over the block, from the steps of k at `a` and `b` on.

        Columns of tiles are `panel` bytes apart in B.
        """
        f, t = self.f, self.t
        start = [("ptr", a), ("ptr", self.scratch["c"]), ("ptr", self.scratch["needed"])]
        down = f.open_loop(0, self.rows, shape.rows, start)
        a, c, needed = down.carried
        steps: str | Runs = depth
        if t.skips:
            k = self.left_tables[1]
            steps = Runs(k.rows, f.offset(k.memory, k.width - 8), k.width, needed)
        for begin, end, masked in self._column_parts(shape):
            at = f.offset(b, f.mul(f.udiv(begin, shape.columns), panel))
            across = f.open_loop(begin, end, shape.columns, [("ptr", at)])
            here = replace(shape, b_masks=self._masks(shape, across.index)) if masked else shape
            to = f.offset(c, f.mul(across.index, self.itemsize))
            emit_tile(f, here, a, across.carried[0], to, steps, first)
            f.close_loop(across, [f.offset(across.carried[0], panel)])
        below = shape.rows * self.room.c_row
        following = [
            f.offset(a, self.room.a_panel),
            f.offset(c, below),
            f.offset(needed, t.most.depth),
        ]
        f.close_loop(down, following)

    def _column_parts(self, shape: Tile) -> list[tuple[str, str, bool]]:
        """From where to where the columns of the block are taken, and whether with masks.

        Packed panels need none.  In place only what is left over does: processors do not notice
        where a masked load goes on reading, so nothing would be on its way when it is wanted.
        """
        if not shape.in_place:
            return [("0", self.cols, False)]
        size, width = self.t.cols.size, shape.columns
        if isinstance(size, int) and size < width:
            return [("0", self.cols, True)]
        if self.t.tile_cols % width == 0 and factor(size) % width == 0:
            return [("0", self.cols, False)]
        whole = self.f.mul(self.f.udiv(self.cols, width), width)
        return [("0", whole, False), (whole, self.cols, True)]

    def _masks(self, shape: Tile, column: str) -> tuple[str, ...]:
        """The lanes of the tile at a column of the block that are columns of B."""
        f, lanes = self.f, shape.lanes
        left = f.sub(self.cols, column)
        return tuple([lanes_below(f, shape, f.sub(left, v * lanes)) for v in range(shape.vectors)])

    def _tile_shape(self) -> Tile:
        t = self.t
        return Tile(
            t.tile_rows,
            t.tile_vectors,
            t.lanes,
            self.scalar,
            self.itemsize,
            self.room.a_row,
            self.room.a_step,
            self.room.b_step,
            self.room.c_row,
            half=t.half,
            b_alignment=self.itemsize if t.packed else 0,
        )

    # ---- the epilogue

    def _finish(self) -> None:
        self._finish_rows(self.scratch["c"], self._rows(self.row0, self.rows))

    def _rows(self, first: str, count: str) -> Rows:
        """Rows of C as the epilogue walks them."""
        finished = self.t.finished
        return Rows(finished, coordinates(self.f, finished, first), count, self.batch_coords)

    def _finish_rows(self, c: str, rows: Rows) -> None:
        """Run the epilogue over rows of C."""
        self.epilogue.over(rows, Columns(self.col0, self.cols, *self.t.chunks), c, self.room.c_row)
