"""The left operand of a contraction read where it lies, instead of being packed.

Along k a row of a register tile walks contiguous runs of the operand: one for each tap of a
window, a single one in a matrix product.  Before the tiles of a row of them are summed, the address
at which each run begins is tabulated for each row.  A row that lies outside the guards reads zeros
there, and a run that lies outside for all rows is left out of the table: a branch around it in the
loop over runs would make LLVM keep all sums in memory.
Imports: contract_access, contract_microkernel, text.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from graphc.backends.codegen.contract_access import (
    Group,
    Guard,
    Operand,
    Record,
    Table,
    sum_records,
)
from graphc.backends.codegen.contract_microkernel import (
    Tile,
    add_products,
    initial_sums,
    lanes_below,
    masked_load,
    store_sums,
    typed_sums,
    vector_type,
)
from graphc.backends.codegen.text import FunctionText, float_literal

_SHIFT_BITS = struct.unpack("<q", struct.pack("<d", 3.0 * 2**51))[0]

LINE_BYTES = 64

RUN_BYTES = 16
"""A run that is needed in memory, i64 each: byte offset in a panel of B, number of steps."""


@dataclass(frozen=True)
class RowScratch:
    """Memory of the tables: addresses by run; RUN_BYTES for each run that some row needs; as many
    zeros as a run may have elements; and runs that are cut."""

    addresses: str
    needed: str
    zeros: str
    cut: str


def table_slots(tile_rows: int) -> int:
    """Addresses kept for a run: one for each row, rounded up to a power of two."""
    return 1 << (tile_rows - 1).bit_length()


class RowsInPlace:
    """The rows of register tiles as they lie in memory; `k` tabulates the runs of a slice."""

    def __init__(
        self,
        operand: Operand,
        rows: Group,
        k: Table,
        memory: RowScratch,
        window: int | None,
        unroll: int,
    ) -> None:
        self.operand, self.rows, self.k, self.memory = operand, rows, k, memory
        self.unroll = unroll  # steps of k between two tests of the inner loop
        self.guards = operand.guards
        # the guard that may cut a run, being of its first axis
        self.cutting = next((g for g in self.guards if window in g.coefs), None)
        self.count = ""  # of the runs in the table

    def locate(self, f: FunctionText, t: Tile, origin: Record, first: str, left: str) -> None:
        """Tabulate the rows of a tile from the row numbered `first` on, `left` of which exist."""
        n = table_slots(t.rows)
        wide, base = f"<{n} x i64>", self.operand.base
        words = self._words(f, n, first)
        # negative where a row does not exist, then where it lies outside
        missing = f.value(f"sub {wide} {f.splat('i64', f.sub(left, 1), n)}, {_numbers(n, 'i64')}")
        ends = [f.splat("i64", f.sub(g.limit, self._length(g)), n) for g in self.guards]
        zeros = f.splat("ptr", self.memory.zeros, n)
        starts = [self.memory.addresses, self.memory.needed, self.memory.cut]
        carried = [*(("ptr", p) for p in starts), ("i64", "0"), ("i64", "0")]
        runs = f.open_loop(0, self.k.rows, 1, carried)
        addresses, needed, cut, count, b = runs.carried
        record, length = self.k.read(f, runs.index)
        record = sum_records(f, origin, record)
        outside, edges = missing, []
        for guard, word, moved, end in zip(self.guards, words[1:], record[1:], ends, strict=True):
            at = f.value(f"add {wide} {word}, {f.splat('i64', moved, n)}")
            beyond = f.value(f"sub {wide} {end}, {at}")
            either = f.value(f"or {wide} {at}, {beyond}")
            if guard is self.cutting:
                edges = [at, either]
            else:
                outside = f.value(f"or {wide} {outside}, {either}")
        moved = f.splat("i64", f.mul(record[0], self.operand.itemsize), n)
        offsets = f.value(f"add {wide} {words[0]}, {moved}")
        found = f.value(f"getelementptr i8, ptr {base}, {wide} {offsets}")
        inside = f.value(f"icmp sgt {wide} {outside}, splat (i64 -1)")
        found = f.value(f"select <{n} x i1> {inside}, <{n} x ptr> {found}, <{n} x ptr> {zeros}")
        f.emit(f"store <{n} x ptr> {found}, ptr {addresses}, align {min(8 * n, 64)}")
        some = "1"
        if self.guards:
            none = f.call("i64", f"llvm.vector.reduce.and.v{n}i64", (wide, outside))
            some = f.value(f"zext i1 {f.value(f'icmp sgt i64 {none}, -1')} to i64")
            for i, word in enumerate((b, length)):
                f.emit(f"store i64 {word}, ptr {f.offset(needed, 8 * i)}, align 8")
            b = f.add(b, f.mul(length, t.b_step))
        if edges:
            exists = f.value(f"xor {wide} {outside}, splat (i64 -1)")
            edges[1] = f.value(f"and {wide} {edges[1]}, {exists}")
            cut = self._cut(f, t, addresses, edges[0], edges[1], cut)
        addresses = f.offset(addresses, f.mul(some, 8 * n))
        needed = f.offset(needed, f.mul(some, RUN_BYTES))
        done = f.close_loop(runs, [addresses, needed, cut, f.add(count, some), b])
        self.count = done[3] if self.guards else self.k.rows

    def _length(self, guard: Guard) -> str:
        """How many steps of what is guarded a run covers."""
        return self.k.extent if guard is self.cutting else "1"

    def _cut(
        self, f: FunctionText, t: Tile, addresses: str, at: str, edges: str, memory: str
    ) -> str:
        """Copy the runs of the rows that a guard cuts, with zeros where they lie outside.

        Of each row of the tile `at` is the first index along the guarded axis, and `edges` is
        negative where it is to be copied.  Returns where the next run goes.
        """
        n, run = table_slots(t.rows), self.k.run
        wide = f"<{n} x i64>"
        pitch = f.mul(f.add(run, t.lanes), t.itemsize)
        some = f.call("i64", f"llvm.vector.reduce.or.v{n}i64", (wide, edges))
        copy, after = f.fresh("copy"), f.fresh("after")
        f.branch_if(f.value(f"icmp slt i64 {some}, 0"), copy, after)
        f.label(copy)
        unit = f.udiv(run, self.k.extent)
        limit = self.cutting.limit if self.cutting else "0"
        loop = f.open_loop(0, t.rows, 1, [("ptr", addresses), ("ptr", memory)])
        slot, to = loop.carried
        first, edge = (f.value(f"extractelement {wide} {x}, i64 {loop.index}") for x in (at, edges))
        yes, no = f.fresh("yes"), f.fresh("no")
        f.branch_if(f.value(f"icmp slt i64 {edge}, 0"), yes, no)
        f.label(yes)
        source = f.value(f"load ptr, ptr {slot}, align 8")
        f.emit(f"store ptr {to}, ptr {slot}, align 8")
        begin = f.mul(f.smax(f.sub("0", first), 0), unit)
        end = f.mul(f.smin(f.sub(limit, first), self.k.extent), unit)
        part = f.open_loop(0, run, t.lanes)
        low, high = (lanes_below(f, t, f.sub(x, part.index)) for x in (begin, end))
        none = f"<{t.lanes} x i1> zeroinitializer"
        mask = f.value(f"select <{t.lanes} x i1> {low}, {none}, <{t.lanes} x i1> {high}")
        moved = f.mul(part.index, t.itemsize)
        x = masked_load(f, t, f.offset(source, moved), mask)
        f.emit(f"store {vector_type(t)} {x}, ptr {f.offset(to, moved)}, align {t.itemsize}")
        f.close_loop(part)
        f.branch(no)
        f.label(no)
        f.close_loop(loop, [f.offset(slot, 8), f.offset(to, pitch)])
        f.branch(after)
        f.label(after)
        return f.offset(memory, f.mul(pitch, t.rows))

    def _words(self, f: FunctionText, n: int, first: str) -> list[str]:
        """What n rows from one on add to records, a vector for each word, the first in bytes.

        Coordinates are worked out as numbers of floating point: whole numbers below 2**51 are the
        low bits of their sum with 3 * 2**51.
        """
        doubles, wide = f"<{n} x double>", f"<{n} x i64>"

        def op(name: str, a: str, b: str) -> str:
            return f.value(f"{name} {doubles} {a}, {b}")

        def number(x: str) -> str:
            return f.splat("double", f.known(f"sitofp i64 {x} to double"), n)

        rest = op("fadd", number(first), _numbers(n, "double"))
        coords: dict[int, str] = {}
        for axis, extent in list(zip(self.rows.axes, self.rows.extents, strict=True))[:0:-1]:
            size = f.known(f"sitofp i64 {f.smax(f.dim(extent), 1)} to double")
            inverse = f.splat("double", f.known(f"fdiv double {_double(1.0)}, {size}"), n)
            middle = op("fadd", rest, f"splat (double {_double(0.5)})")
            quotient = f.intrinsic("floor", "double", op("fmul", middle, inverse), lanes=n)
            covered = op("fmul", quotient, f.splat("double", size, n))
            coords[axis] = op("fsub", rest, covered)
            rest = quotient
        if self.rows.axes:
            coords[self.rows.axes[0]] = rest
        shift = f"splat (double {_double(3.0 * 2**51)})"
        words = []
        for i in range(1 + len(self.guards)):
            total = shift
            for axis, at in coords.items():
                if i == 0:
                    step = f.mul(self.operand.strides[axis], self.operand.itemsize)
                else:
                    step = self.guards[i - 1].coefs.get(axis, "0")
                if step != "0":
                    moved = at if step == "1" else op("fmul", at, number(step))
                    total = op("fadd", total, moved)
            bits = f.value(f"bitcast {doubles} {total} to {wide}")
            words.append(f.value(f"sub {wide} {bits}, splat (i64 {_SHIFT_BITS})"))
        return words

    def fetch_ahead(self, f: FunctionText, t: Tile, part: str, parts: str) -> None:
        """Ask for one of several parts of the rows of the next tile, where those lie in one
        unguarded run each, a constant stride apart: they may come from far."""
        if not self.k.single or self.guards or len(self.rows.axes) != 1:
            return
        step = f.mul(self.operand.strides[self.rows.axes[0]], t.rows * t.itemsize)
        length = f.value(f"load i64, ptr {f.offset(self.k.memory, self.k.width - 8)}, align 8")
        size = f.mul(length, t.itemsize)
        lines = f.udiv(f.add(f.udiv(size, LINE_BYTES), parts), parts)
        begin = f.mul(f.mul(part, lines), LINE_BYTES)
        end = f.smin(f.add(begin, f.mul(lines, LINE_BYTES)), size)
        loop = f.open_loop(begin, end, LINE_BYTES)
        for r in range(t.rows):
            slot = f.offset(self.memory.addresses, 8 * r)
            row = f.value(f"load ptr, ptr {slot}, align 8")
            f.prefetch(f.offset(f.offset(row, step), loop.index), 2)
        f.close_loop(loop)

    def multiply(
        self, f: FunctionText, t: Tile, b: str, c: str, first: str, moved: str = "0"
    ) -> None:
        """C tile = (0 if `first` else C tile) + sum over the located runs of A rows * B panel.

        A is read so many bytes behind what was located as `moved` says.
        """
        n = table_slots(t.rows)
        before = initial_sums(f, t, c, first)
        lengths, width = f.offset(self.k.memory, self.k.width - 8), self.k.width
        if self.guards:
            lengths, width = f.offset(self.memory.needed, 8), RUN_BYTES
        ahead = t.stream[0] if t.stream else b
        pointers = [("ptr", p) for p in (self.memory.addresses, b, lengths, ahead)]
        loop = f.open_loop(0, self.count, 1, [*pointers, *typed_sums(t, before)])
        addresses, here, lengths, ahead = loop.carried[:4]
        length = f.value(f"load i64, ptr {lengths}, align 8")
        following = f.offset(here, f.mul(length, t.b_step))
        if self.guards:
            following, begin = here, f.offset(lengths, -8)
            here = f.offset(here, f.value(f"load i64, ptr {begin}, align 8"))
        rows = [
            f.value(f"load ptr, ptr {f.offset(addresses, 8 * r)}, align 8") for r in range(t.rows)
        ]
        rows = [f.offset(row, moved) for row in rows]
        added, ahead = self._add_run(f, t, rows, here, length, (loop.carried[4:], ahead))
        pointers_then = [f.offset(addresses, 8 * n), following, f.offset(lengths, width), ahead]
        store_sums(f, t, c, f.close_loop(loop, [*pointers_then, *added])[4:])

    def _add_run(
        self,
        f: FunctionText,
        t: Tile,
        rows: list[str],
        b: str,
        length: str,
        before: tuple[list[str], str],
    ) -> tuple[list[str], str]:
        """Add the products of one run, whose rows begin at given addresses, to sums; with these
        goes where memory is to be fetched next."""
        sums, ahead = before
        parts = [("0", length, 1)]
        if self.unroll > 1:
            unrolled = f.value(f"and i64 {length}, {-self.unroll}")
            parts = [("0", unrolled, self.unroll), (unrolled, length, 1)]
        for begin, end, unroll in parts:
            carried = [("ptr", b), ("ptr", ahead), *typed_sums(t, sums)]
            loop = f.open_loop(begin, end, unroll, carried)
            b, ahead, sums = loop.carried[0], loop.carried[1], loop.carried[2:]
            moved = f.mul(loop.index, t.itemsize)
            starts = [f.offset(row, moved) for row in rows]
            following, then = f.offset(b, f.mul(unroll, t.b_step)), ahead
            if t.stream and unroll == self.unroll:
                f.prefetch(ahead, 2)
                then = f.offset(ahead, t.stream[1])
            for u in range(unroll):
                here = [f.offset(start, u * t.itemsize) for start in starts]
                sums = add_products(f, t, here, f.offset(b, f.mul(u, t.b_step)), sums)
            b, ahead, *sums = f.close_loop(loop, [following, then, *sums])
        return sums, ahead


def _numbers(n: int, kind: str) -> str:
    """The constant 0, 1, ... n - 1."""
    return "<" + ", ".join(f"{kind} {float(i) if kind == 'double' else i}" for i in range(n)) + ">"


def _double(x: float) -> str:
    return float_literal(x, "double")
