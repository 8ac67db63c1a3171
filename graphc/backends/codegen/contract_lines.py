"""Contractions summed line by line of k, with A read in place: see contract_lines_tiling.

A block is a rectangle of C: some taps, rows and columns.  For a slice of k after the other it packs
B, and for each tap tabulates the runs of steps that lie inside the guards; the register tile then
sums over the runs, reading A where it lies.  Partial sums wait in scratch memory.
Imports: the other contract modules, targets, text, kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graphc.backends.codegen.contract_access import (
    Group,
    Operand,
    Record,
    Table,
    advanced,
    coordinates,
    record_words,
    sum_records,
)
from graphc.backends.codegen.contract_epilogue import Epilogue, Place
from graphc.backends.codegen.contract_lines_copy import (
    RUN_BYTES,
    copied_elements,
    copy_margins,
    copy_rows,
    fetch_rows,
    row_pitch,
)
from graphc.backends.codegen.contract_lines_tiling import LineTiling
from graphc.backends.codegen.contract_microkernel import Lines, Tile, emit_tile, prefetch
from graphc.backends.codegen.contract_packing import Packer, pack_panels
from graphc.backends.codegen.contract_parts import ceildiv, even_part, size_of
from graphc.backends.codegen.contract_tiling import groups
from graphc.backends.codegen.text import (
    LANE_INDEX,
    LANES,
    FunctionText,
    scalar_type,
    splat_literal,
    vector,
)
from graphc.kernel import Contraction

LINE_SIZE = 64
"""Bytes of a line of the caches."""

_LANES32 = LANE_INDEX.replace("i64", "i32")


class LinesEmitter:
    """One kernel being written."""

    def __init__(self, f: FunctionText, c: Contraction, t: LineTiling) -> None:
        self.f, self.c, self.t = f, c, t
        self.batch, _, _, self.k = groups(c)
        self.lines = Group(self.k.axes[:-1], self.k.extents[:-1])
        self.itemsize = c.dtype.itemsize
        self.scalar = scalar_type(c.dtype)
        axes = range(len(c.axes))
        self.left = Operand(f, t.left, self.itemsize, axes)
        self.right = Operand(f, t.right, self.itemsize, axes)
        self.epilogue = Epilogue(f, c, t.cols)
        self._layout()
        memory = self.scratch["right k"]
        self.right_k = Table(f, self.right, self.k, 0, memory)
        self.right_free = Table(f, self.right, t.cols, len(t.cols.axes), self.scratch["right free"])

    def _layout(self) -> None:
        """Place packed B, C and the tables in one stack allocation."""
        t, f, size = self.t, self.f, self.itemsize
        taps, rows, cols, depth, _ = t.most
        self.b_step = t.tile_cols * size
        self.a_step = f.mul(self.left.strides[self.t.along], size)
        self.copy_step = self._copy_step()
        self.c_row = (-(-cols // LANES) + 1) * LANES * size
        panels = -(-cols // t.tile_cols)
        needed = {
            "zeros": 64,
            "located": 16 * t.lanes,
            "b": panels * depth * self.b_step + 2 * LANES * size,
            "c": taps * (-(-rows // t.tile_rows) + 1) * t.tile_rows * self.c_row,
            "lines": (depth + 1) * RUN_BYTES,
            "a": copied_elements(t) * size if t.copies else 0,
            "right k": 8 * record_words(t.right) * depth,
            "right free": 8 * record_words(t.right),
        }
        total = sum(-(-n // 64) * 64 for n in needed.values())
        memory = f.value(f"alloca [{total} x i8], align 64")
        self.scratch: dict[str, str] = {}
        at = 0
        for what, n in needed.items():
            self.scratch[what] = f.offset(memory, at)
            at += -(-n // 64) * 64
        f.emit(f"store <64 x i8> zeroinitializer, ptr {self.scratch['zeros']}, align 64")

    def _copy_step(self) -> str:
        """Bytes from one step of k to the next where the tile reads A."""
        t = self.t
        if t.copies == "rows":
            return str(row_pitch(t) * self.itemsize)
        if t.copies != "pixels":
            return self.a_step
        width = self.f.mul(size_of(self.f, t.rows.extents[1:]), self.itemsize)
        return self.f.mul(self.left.guards[t.margin].coefs[t.along], width)

    # ---- blocks

    def emit(self) -> None:
        f, t = self.f, self.t
        self.k_count = size_of(self.f, self.k.extents)
        sizes = [size_of(self.f, g.extents) for g in (t.taps, t.rows, t.cols)]
        self.row_count = sizes[1]
        self.line = f.smax(f.dim(self.k.extents[-1]), 1)
        limits = (t.block_taps, t.block_rows, t.block_cols)
        units = (1, t.tile_rows, t.tile_cols)
        # along an axis of size 0 no block runs, but the text must not divide by a constant 0
        counts = [
            f.smax(ceildiv(self.f, n, f.dim(b)), 1) for n, b in zip(sizes, limits, strict=True)
        ]
        blocks = f.open_loop("%b0", "%b1", 1)
        rest, parts = blocks.index, []
        for n, unit, count in reversed(list(zip(sizes, units, counts, strict=True))):
            parts.append(even_part(self.f, n, unit, f.urem(rest, count), count))
            rest = f.udiv(rest, count)
        (self.col0, col1), (self.row0, self.row1), (self.tap0, self.tap1) = parts
        self.cols = f.sub(col1, self.col0)
        self.tiles = ceildiv(self.f, f.sub(self.row1, self.row0), t.tile_rows)
        self.tap_bytes = f.mul(self.tiles, t.tile_rows * self.c_row)
        self.batch_coords = coordinates(f, self.batch, rest)
        self._sum()
        self._finish()
        f.close_loop(blocks)

    # ---- the sum over k

    def _sum(self) -> None:
        f, t = self.f, self.t
        left = sum_records(f, self.left.origin(), self.left.part(f, self.batch_coords))
        right = sum_records(f, self.right.origin(), self.right.part(f, self.batch_coords))
        self.right_free.fill(f, self.col0, self.cols)
        # whole lines, where they are no longer than a slice, else even parts
        depth = f.dim(t.depth)
        whole = f.mul(f.udiv(depth, self.line), self.line)
        some = f.value(f"icmp sgt i64 {whole}, 0")
        even = ceildiv(f, self.k_count, f.smax(ceildiv(f, self.k_count, depth), 1))
        depth = f.value(f"select i1 {some}, i64 {whole}, i64 {f.smax(even, 1)}")
        self.ahead = f.mul(self._ahead(depth, some), self.itemsize)
        slices = f.open_loop(0, f.smax(self.k_count, 1), depth)
        steps = f.smin(f.sub(self.k_count, slices.index), depth)
        self._pack_right(right, slices.index, steps)
        self._look_ahead(right, depth)
        first = f.value(f"icmp eq i64 {slices.index}, 0")
        taps = f.open_loop(self.tap0, self.tap1, 1, [("ptr", self.scratch["c"])])
        tap = self.left.part(f, coordinates(f, t.taps, taps.index))
        count = self._tabulate(sum_records(f, left, tap), slices.index, steps)
        self._copy_left(count)
        self._multiply(count, first, taps.carried[0], taps.index)
        f.close_loop(taps, [f.offset(taps.carried[0], self.tap_bytes)])
        f.close_loop(slices)

    def _ahead(self, depth: str, whole: str) -> str:
        """How many elements further in A the next slice of k is, roughly."""
        f, strides = self.f, self.left.strides
        far = f.mul(depth, strides[self.t.along])
        if not self.lines.axes:
            return far
        lines = f.mul(f.udiv(depth, self.line), strides[self.lines.axes[-1]])
        return f.value(f"select i1 {whole}, i64 {lines}, i64 {far}")

    def _look_ahead(self, origin: Record, depth: str) -> None:
        """Where the next slice of B begins, and how many of its steps each row of tiles fetches."""
        f = self.f
        step = self.right.strides[self.t.along]
        here, _ = self.right.locate(f, origin, self.right_k.read(f, "0")[0])
        far = f.add(self.col0, f.mul(depth, step))
        self.next_b = f.offset(here, f.mul(far, self.itemsize))
        self.next_step = f.mul(step, self.itemsize)
        self.depth = depth
        self.share = ceildiv(self.f, depth, f.mul(f.sub(self.tap1, self.tap0), self.tiles))

    def _fetch_next(self, tap: str, row: str, column: str) -> None:
        """Ask for some of the next slice of B while this one is multiplied."""
        f, t = self.f, self.t
        tile = f.udiv(f.sub(row, self.row0), t.tile_rows)
        tile = f.add(f.mul(f.sub(tap, self.tap0), self.tiles), tile)
        start = f.mul(tile, self.share)
        stop = f.smin(f.add(start, self.share), self.depth)
        begin = f.offset(self.next_b, f.mul(start, self.next_step))
        steps = f.open_loop(
            start, stop, 1, [("ptr", f.offset(begin, f.mul(column, self.itemsize)))]
        )
        for at in range(0, self.b_step, LINE_SIZE):
            prefetch(f, f.offset(steps.carried[0], at))
        f.close_loop(steps, [f.offset(steps.carried[0], self.next_step)])

    def _pack_right(self, origin: Record, start: str, steps: str) -> None:
        """Pack a slice of B in panels as wide as a tile."""
        f, t = self.f, self.t
        zeros, located = self.scratch["zeros"], self.scratch["located"]
        p = Packer(self.right, origin, self.scalar, self.itemsize, t.lanes, zeros, located)
        self.right_k.fill(f, start, steps)
        panel = f.mul(f.dim(t.depth), self.b_step)
        to = self.scratch["b"]
        pack_panels(f, p, self.right_k, steps, self.right_free, to, panel, t.tile_cols)

    def _tabulate(self, origin: Record, start: str, steps: str) -> str:
        """Write down the runs of a slice that lie inside at a tap; returns their number.

        A run that goes on where the last one ended, in both operands, prolongs it.
        """
        f, t = self.f, self.t
        if not self.lines.axes and not self.left.guards:
            return self._one_run(origin, start, steps)
        within = f.urem(start, self.line)
        coords = coordinates(f, self.lines, f.udiv(start, self.line))
        order = list(coords)
        count = ceildiv(self.f, f.add(within, steps), self.line)
        slot = f.offset(self.scratch["lines"], -RUN_BYTES)
        run = [("i64", x) for x in ("0", "-1", "-1", "0", "0", "0", "0")]
        carried = [("ptr", slot), ("i64", "0"), ("i64", within), *run]
        loop = f.open_loop(0, count, 1, [*carried, *(("i64", coords[a]) for a in order)])
        slot, done, within, number, a_end, b_end, a_run, b_run, length, index = loop.carried[:10]
        here = dict(zip(order, loop.carried[10:], strict=True))
        line = f.smin(f.sub(self.line, within), f.sub(steps, done))
        record = sum_records(f, origin, self.left.part(f, here))
        low, high = self._inside(record, within, f.add(within, line))
        inside = f.smax(f.sub(high, low), 0)
        a = f.mul(f.add(record[0], f.mul(low, self.left.strides[self.t.along])), self.itemsize)
        b = f.mul(f.add(done, f.sub(low, within)), self.b_step)
        joins = self._both(f"icmp eq i64 {a}, {a_end}", f"icmp eq i64 {b}, {b_end}")
        joins = f.value(f"and i1 {joins}, {f.value(f'icmp ne i64 {number}, 0')}")
        empty = f.value(f"icmp eq i64 {inside}, 0")
        goes_on = f.value(f"or i1 {joins}, {empty}") if not t.margins else empty

        def either(yes: str, no: str, which: str = goes_on) -> str:
            return f.value(f"select i1 {which}, i64 {yes}, i64 {no}")

        a_run, b_run = either(a_run, a), either(b_run, b)
        if t.margins:
            step = self.left.guards[t.margin].coefs[t.along]
            index = either(index, f.add(record[1 + t.margin], f.mul(low, step)))
        length = f.add(inside, either(length, "0"))
        moved = either("0", str(RUN_BYTES))
        slot = f.value(f"getelementptr i8, ptr {slot}, i64 {moved}")
        for i, word in enumerate((a_run, b_run, length, a_run, index)):
            f.emit(f"store i64 {word}, ptr {f.offset(slot, 8 * i)}, align 8")
        following = advanced(f, self.lines, here)
        f.close_loop(
            loop,
            [
                slot,
                f.add(done, line),
                "0",
                f.add(number, either("0", "1")),
                either(a_end, f.add(a, f.mul(inside, self.a_step)), empty),
                either(b_end, f.add(b, f.mul(inside, self.b_step)), empty),
                a_run,
                b_run,
                length,
                index,
                *(following[x] for x in order),
            ],
        )
        return number

    def _one_run(self, origin: Record, start: str, steps: str) -> str:
        f = self.f
        a = f.add(origin[0], f.mul(start, self.left.strides[self.t.along]))
        a = f.mul(a, self.itemsize)
        for i, word in enumerate((a, "0", steps, a, "0")):
            f.emit(f"store i64 {word}, ptr {f.offset(self.scratch['lines'], 8 * i)}, align 8")
        return "1"

    def _both(self, a: str, b: str) -> str:
        return self.f.value(f"and i1 {self.f.value(a)}, {self.f.value(b)}")

    def _inside(self, record: Record, low: str, high: str) -> tuple[str, str]:
        """The part of the steps from low to high of a line that all guards let pass."""
        f = self.f
        for i, (guard, at) in enumerate(zip(self.left.guards, record[1:], strict=True)):
            if self.t.margins and i == self.t.margin:
                continue
            coef = guard.coefs.get(self.t.along)
            if coef is None:
                inside = f.value(f"icmp ult i64 {at}, {guard.limit}")
                high = f.value(f"select i1 {inside}, i64 {high}, i64 {low}")
                continue
            below = f.smax(f.sub("0", at), 0)
            left = f.smax(f.sub(guard.limit, at), 0)
            low = f.smax(low, ceildiv(self.f, below, coef))
            high = f.smin(high, ceildiv(self.f, left, coef))
        return low, high

    def _copy_left(self, count: str) -> None:
        """Copy the runs of a slice, if A is not read in place."""
        f, t = self.f, self.t
        self.low = f.smin(self.row0, f.sub(self.row_count, t.tile_rows))
        if not t.copies:
            return
        zeros, located = self.scratch["zeros"], self.scratch["located"]
        p = Packer(self.left, [], self.scalar, self.itemsize, t.lanes, zeros, located)
        runs = (count, self.scratch["lines"])
        if t.copies == "rows":
            rows = (self.low, f.sub(self.row1, self.low))
            copy_rows(f, p, runs, t, rows, self.scratch["a"])
        else:
            copy_margins(f, p, runs, t, self.scratch["a"])

    def _multiply(self, count: str, first: str, c: str, tap: str) -> None:
        """Run the register tile over the rows and columns of the block, at one tap.

        The last rows begin earlier where fewer are left than a tile has.
        """
        f, t = self.f, self.t
        shape = Tile(
            t.tile_rows,
            t.tile_vectors,
            t.lanes,
            self.scalar,
            self.itemsize,
            self.itemsize,
            self.copy_step,
            self.b_step,
            self.c_row,
            half=t.half,
        )
        lines = Lines(count, self.scratch["lines"], RUN_BYTES)
        panel = f.mul(f.dim(t.depth), self.b_step)
        down = f.open_loop(self.row0, self.row1, t.tile_rows, [("ptr", c)])
        c = down.carried[0]
        row = f.smin(down.index, f.sub(self.row_count, t.tile_rows))
        base, low = self.left.base, "0"
        if t.copies:
            base, low = self.scratch["a"], self.low if t.copies == "rows" else "0"
        a = f.offset(base, f.mul(f.sub(row, low), self.itemsize))
        if t.copies == "rows":
            fetch_rows(f, self.left, (count, self.scratch["lines"]), t, row, self.ahead)
        whole = f.mul(f.udiv(self.cols, t.tile_cols), t.tile_cols) if t.tail[0] else self.cols
        parts = [("0", whole, shape), (whole, self.cols, shape.narrowed(t.tail))]
        b = self.scratch["b"]
        for begin, end, tile in parts if t.tail[0] else parts[:1]:
            across = f.open_loop(begin, end, t.tile_cols, [("ptr", b)])
            at = f.offset(c, f.mul(across.index, self.itemsize))
            self._fetch_next(tap, down.index, across.index)
            if not t.copies:
                begins = f.value(f"icmp eq i64 {across.index}, 0")
                tile = replace(tile, ahead=f.value(f"select i1 {begins}, i64 {self.ahead}, i64 0"))
            emit_tile(f, tile, a, across.carried[0], at, lines, first)
            (b,) = f.close_loop(across, [f.offset(across.carried[0], panel)])
        f.close_loop(down, [f.offset(c, t.tile_rows * self.c_row)])

    # ---- the epilogue

    def _finish(self) -> None:
        f, t = self.f, self.t
        height = f.mul(self.tiles, t.tile_rows)
        last = f.sub(f.add(self.row0, height), t.tile_rows)
        early = f.smax(f.sub(f.add(self.row0, height), self.row_count), 0)
        early = f.mul(early, self.c_row)
        taps = f.open_loop(self.tap0, self.tap1, 1, [("ptr", self.scratch["c"])])
        tap = coordinates(f, t.taps, taps.index)
        row = coordinates(f, t.rows, self.row0)
        start = [("ptr", taps.carried[0]), *(("i64", at) for at in row.values())]
        down = f.open_loop(self.row0, self.row1, 1, start)
        row = dict(zip(row, down.carried[1:], strict=True))
        in_last = f.value(f"icmp sge i64 {down.index}, {last}")
        moved = f.value(f"select i1 {in_last}, i64 {early}, i64 0")
        self._finish_row(f.offset(down.carried[0], moved), {**self.batch_coords, **tap, **row})
        following = advanced(f, t.rows, row)
        f.close_loop(down, [f.offset(down.carried[0], self.c_row), *(following[a] for a in row)])
        f.close_loop(taps, [f.offset(taps.carried[0], self.tap_bytes)])

    def _finish_row(self, c: str, scalars: Mapping[int, str]) -> None:
        """Whole vectors first: processors are slow to store under a mask."""
        f = self.f
        whole = f.value(f"and i64 {self.cols}, {-LANES}")
        across = f.open_loop(0, whole, LANES)
        self._finish_vector(c, scalars, across.index, splat_literal(True, "i1"))
        f.close_loop(across)
        across = f.open_loop(whole, self.cols, LANES)
        left = f.value(f"trunc i64 {f.sub(self.cols, across.index)} to i32")
        mask = f.value(f"icmp slt {vector('i32')} {_LANES32}, {f.splat('i32', left)}")
        self._finish_vector(c, scalars, across.index, mask)
        f.close_loop(across)

    def _finish_vector(self, c: str, scalars: Mapping[int, str], column: str, mask: str) -> None:
        f = self.f
        address = f.offset(c, f.mul(column, self.itemsize))
        kind = vector(self.scalar)
        acc = f.value(f"load {kind}, ptr {address}, align {LANES * self.itemsize // 2}")
        self.epilogue.emit(Place(scalars, f.add(self.col0, column), mask, acc))
