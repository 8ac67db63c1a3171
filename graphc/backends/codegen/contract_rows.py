"""The left operand of a contraction read where it lies, instead of being packed.

Along k a row of a register tile walks contiguous runs of the operand: one for each tap of a
window, a single one in a matrix product.  Before the tiles of a row of them are summed, the address
at which each run begins is tabulated for each row.  A row that lies outside the guards reads zeros
there, and a run that lies outside for all rows is skipped.
Imports: contract_access, contract_microkernel, text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphc.backends.codegen.contract_access import (
    Group,
    Operand,
    Record,
    Table,
    advanced,
    sum_records,
)
from graphc.backends.codegen.contract_microkernel import (
    Tile,
    add_products,
    initial_sums,
    store_sums,
    typed_sums,
)
from graphc.backends.codegen.text import FunctionText

UNROLL = 4
"""Steps of k between two tests of the inner loop."""


@dataclass(frozen=True)
class RowScratch:
    """Memory of the tables: records of the rows of a tile, addresses by run, runs needed, and as
    many zeros as a run has elements."""

    records: str
    addresses: str
    needed: str
    zeros: str


def table_slots(tile_rows: int) -> int:
    """Addresses kept for a run: one for each row, rounded up to a power of two."""
    return 1 << (tile_rows - 1).bit_length()


class RowsInPlace:
    """The rows of register tiles as they lie in memory; `k` tabulates the runs of a slice."""

    def __init__(
        self, f: FunctionText, operand: Operand, rows: Group, k: Table, memory: RowScratch
    ) -> None:
        self.operand, self.rows, self.k, self.memory = operand, rows, k, memory
        self.guards = operand.guards
        self.plain = len(rows.axes) <= 1 and not self.guards

    def locate(
        self,
        f: FunctionText,
        tile_rows: int,
        origin: Record,
        coords: Mapping[int, str],
        left: str,
    ) -> dict[int, str]:
        """Tabulate the rows of a tile from given coordinates on, of which `left` rows exist.

        Returns the coordinates of the next tile.
        """
        n = table_slots(tile_rows)
        words, following = self._words(f, tile_rows, n, coords)
        wide, mask = f"<{n} x i64>", f"<{n} x i1>"
        numbers = "<" + ", ".join(f"i64 {i}" for i in range(n)) + ">"
        there = f.value(f"icmp slt {wide} {numbers}, {f.splat('i64', left, n)}")
        limits = [f.splat("i64", guard.limit, n) for guard in self.guards]
        zeros = f.splat("ptr", self.memory.zeros, n)
        start = [("ptr", self.memory.addresses), ("ptr", self.memory.needed)]
        runs = f.open_loop(0, self.k.rows, 1, start)
        addresses, needed = runs.carried
        record = sum_records(f, origin, self.k.read(f, runs.index)[0])
        inside = there
        for word, moved, limit in zip(words[1:], record[1:], limits, strict=True):
            at = f.value(f"add {wide} {word}, {f.splat('i64', moved, n)}")
            below = f.value(f"icmp ult {wide} {at}, {limit}")
            inside = f.value(f"and {mask} {inside}, {below}")
        moved = f.splat("i64", f.mul(record[0], self.operand.itemsize), n)
        offsets = f.value(f"add {wide} {words[0]}, {moved}")
        found = f.value(f"getelementptr i8, ptr {self.operand.base}, {wide} {offsets}")
        found = f.value(f"select {mask} {inside}, <{n} x ptr> {found}, <{n} x ptr> {zeros}")
        f.emit(f"store <{n} x ptr> {found}, ptr {addresses}, align {min(8 * n, 64)}")
        if self.guards:
            bits = f.value(f"bitcast {mask} {inside} to i{n}")
            some = f.value(f"icmp ne i{n} {bits}, 0")
            f.emit(f"store i8 {f.value(f'zext i1 {some} to i8')}, ptr {needed}")
        f.close_loop(runs, [f.offset(addresses, 8 * n), f.offset(needed, 1)])
        return following

    def _words(
        self, f: FunctionText, tile_rows: int, n: int, coords: Mapping[int, str]
    ) -> tuple[list[str], dict[int, str]]:
        """What the rows of a tile add to records, a vector per word, the first in bytes; and the
        coordinates of the next tile."""
        wide, size = f"<{n} x i64>", self.operand.itemsize
        if self.plain:
            first = self.operand.part(f, coords)[0]
            step, following = "0", {}
            for axis, at in coords.items():
                step = f.mul(self.operand.strides[axis], size)
                following[axis] = f.add(at, tile_rows)
            numbers = "<" + ", ".join(f"i64 {i}" for i in range(n)) + ">"
            moved = f.value(f"mul {wide} {numbers}, {f.splat('i64', step, n)}")
            begin = f.splat("i64", f.mul(first, size), n)
            return [f.value(f"add {wide} {begin}, {moved}")], following
        order = list(coords)
        start = [("ptr", self.memory.records), *(("i64", coords[a]) for a in order)]
        loop = f.open_loop(0, tile_rows, 1, start)
        here = dict(zip(order, loop.carried[1:], strict=True))
        record = self.operand.part(f, here)
        record[0] = f.mul(record[0], size)
        for i, word in enumerate(record):
            f.emit(f"store i64 {word}, ptr {f.offset(loop.carried[0], 8 * n * i)}, align 8")
        after = advanced(f, self.rows, here)
        ends = f.close_loop(loop, [f.offset(loop.carried[0], 8), *(after[a] for a in order)])
        words = [
            f.value(f"load {wide}, ptr {f.offset(self.memory.records, 8 * n * i)}, align 8")
            for i in range(len(record))
        ]
        return words, dict(zip(order, ends[1:], strict=True))

    def multiply(self, f: FunctionText, t: Tile, b: str, c: str, first: str) -> None:
        """C tile = (0 if `first` else C tile) + sum over the located runs of A rows * B panel."""
        n = table_slots(t.rows)
        before = initial_sums(f, t, c, first)
        lengths = f.offset(self.k.memory, self.k.width - 8)
        pointers = [("ptr", p) for p in (self.memory.addresses, b, lengths, self.memory.needed)]
        loop = f.open_loop(0, self.k.rows, 1, [*pointers, *typed_sums(t, before)])
        addresses, b, lengths, needed = loop.carried[:4]
        sums = loop.carried[4:]
        length = f.value(f"load i64, ptr {lengths}, align 8")
        skipping, run, after = f.block, f.fresh("run"), f.fresh("after")
        if self.guards:
            some = f.value(f"icmp ne i8 {f.value(f'load i8, ptr {needed}')}, 0")
            f.branch_if(some, run, after)
            f.label(run)
        rows = [
            f.value(f"load ptr, ptr {f.offset(addresses, 8 * r)}, align 8") for r in range(t.rows)
        ]
        added = _add_run(f, t, rows, b, length, sums)
        if self.guards:
            end = f.block
            f.branch(after)
            f.label(after)
            added = [
                f.value(f"phi {kind} [ {x}, %{skipping} ], [ {y}, %{end} ]")
                for (kind, x), y in zip(typed_sums(t, sums), added, strict=True)
            ]
        following = [
            f.offset(addresses, 8 * n),
            f.offset(b, f.mul(length, t.b_step)),
            f.offset(lengths, self.k.width),
            f.offset(needed, 1),
        ]
        store_sums(f, t, c, f.close_loop(loop, [*following, *added])[4:])


def _add_run(
    f: FunctionText, t: Tile, rows: list[str], b: str, length: str, sums: list[str]
) -> list[str]:
    """Add the products of one run, whose rows begin at given addresses."""
    unrolled = f.value(f"and i64 {length}, {-UNROLL}")
    for begin, end, unroll in (("0", unrolled, UNROLL), (unrolled, length, 1)):
        loop = f.open_loop(begin, end, unroll, [("ptr", b), *typed_sums(t, sums)])
        b, sums = loop.carried[0], loop.carried[1:]
        moved = f.mul(loop.index, t.itemsize)
        starts = [f.offset(row, moved) for row in rows]
        following = f.offset(b, f.mul(unroll, t.b_step))
        for u in range(unroll):
            here = [f.offset(start, u * t.itemsize) for start in starts]
            sums = add_products(f, t, here, f.offset(b, f.mul(u, t.b_step)), sums)
        b, *sums = f.close_loop(loop, [following, *sums])
    return sums
