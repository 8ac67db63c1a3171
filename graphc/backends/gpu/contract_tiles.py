"""Contractions on a GPU, a tile of C per CTA: registers, shared memory, one barrier a step.

A step multiplies a slice of A by a slice of B from shared memory while the next slices are on their
way from global memory to registers.  Each thread sums a rectangle of C in registers, k ascending,
one fused multiply-add for each product: the bits of every other way.
Imports: the contract modules beside this one, codegen, kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.backends.codegen.contract_access import Operand, Record
from graphc.backends.codegen.text import float_literal, scalar_type
from graphc.backends.gpu.contract_epilogue import BATCH, M, N
from graphc.backends.gpu.contract_finish import Finish, RowOrder
from graphc.backends.gpu.contract_slices import Reader, Shared, Slice
from graphc.backends.gpu.contract_text import SMALL, DeviceText, groups, indexed, part_of, size_of
from graphc.backends.gpu.contract_tiling import Tile, slices
from graphc.kernel import Contraction

GROUP = 8
"""Tiles that follow each other in memory are taken from so many rows of tiles: what they read of A
and B stays in the second cache."""

K = 3


@dataclass(frozen=True)
class Corner:
    """Where a CTA's tile begins: flat indices of batch, m and n."""

    batch: str
    m: str
    n: str


def corner(f: DeviceText, c: Contraction, tile: Tile) -> Corner:
    """The tile of this CTA."""
    found = groups(c)
    down, across = (
        f.bound(f.udiv(f.add(size_of(f, found[which]), length - 1), length), 0, SMALL - 1)
        for which, length in ((M, tile.m), (N, tile.n))
    )
    # an axis of size 0 has no tiles, but the text must not divide by a constant 0
    down, across = ("1" if x == "0" else x for x in (down, across))
    rest = f.cta()
    each = f.bound(f.mul(down, across), 0, SMALL - 1)
    batch = "0" if not found[BATCH].axes else f.udiv(rest, each)
    rest = f.urem(rest, each) if found[BATCH].axes else rest
    wide = f.mul(across, GROUP)
    first = f.mul(f.udiv(rest, wide), GROUP)
    rows = f.bound(f.smin(f.sub(down, first), GROUP), 1, GROUP)
    rest = f.urem(rest, wide)
    row, column = f.add(first, f.urem(rest, rows)), f.udiv(rest, rows)
    m, n = f.mul(row, tile.m), f.mul(column, tile.n)
    return Corner(indexed(f, found[BATCH], batch), indexed(f, found[M], m), indexed(f, found[N], n))


def batch_part(f: DeviceText, c: Contraction, operand: Operand, batch: str) -> Record:
    """What a CTA's batch index adds to the record of an operand."""
    group = groups(c)[BATCH]
    return part_of(f, operand, group, batch)


class Lanes:
    """Which thread row and column of its CTA a thread has: warps are rectangles of threads."""

    def __init__(self, f: DeviceText, down: int, across: int) -> None:
        wide = min(8, across)
        if 32 // wide > down:
            wide = 32 // down
        high = 32 // wide
        thread = f.thread()
        lane, warp = f.urem(thread, 32), f.udiv(thread, 32)
        warps = across // wide
        self.row = f.add(f.mul(f.udiv(warp, warps), high), f.udiv(lane, wide))
        self.column = f.add(f.mul(f.urem(warp, warps), wide), f.urem(lane, wide))


class TileEmitter:
    """One kernel of tiles being written."""

    def __init__(self, f: DeviceText, c: Contraction, tile: Tile) -> None:
        self.f, self.c, self.tile = f, c, tile
        self.scalar, self.size = scalar_type(c.dtype), c.dtype.itemsize
        found = groups(c)
        axes = range(len(c.axes))
        self.a, self.b = (Operand(f, x, self.size, axes) for x in (c.a, c.b))
        cuts = slices(c, tile)
        self.most = 16 // self.size
        self.steps = [
            extent + self._pad(cut) for extent, cut in zip((tile.m, tile.n), cuts, strict=True)
        ]
        self.split = tile.k * self.steps[0]  # where B begins in a buffer
        self.whole = tile.k * sum(self.steps)
        self.readers = (
            Reader(f, self.a, cuts[0], found[M], found[K], self.scalar, 0.0),
            # a step beyond the last adds 0 * -0, which changes nothing, not even a sign
            Reader(f, self.b, cuts[1], found[N], found[K], self.scalar, -0.0),
        )
        run = min(tile.rows, self.most)
        down = tile.m // tile.rows
        order = RowOrder(tile.rows, down, run, down * run, down, 0)
        room = 2 * self.whole * self.size
        pads = self.most, 1
        self.finish = Finish(f, c, order, tile.n, tile.threads, pads, room)
        count = max(room, self.finish.stage.bytes(self.size)) // self.size
        self.shared = f.share("tile", self.scalar, count)
        self.lanes = Lanes(f, down, tile.n // tile.cols)

    def _pad(self, cut: Slice) -> int:
        """Elements between steps of a slice, so that writes fall into different banks."""
        return self.most if cut.along_k else 0

    def emit(self) -> None:
        f, tile = self.f, self.tile
        at = corner(f, self.c, tile)
        for reader, first in zip(self.readers, (at.m, at.n), strict=True):
            reader.prepare(batch_part(f, self.c, reader.operand, at.batch), first)
        self._place_lanes()
        self._put([reader.fetch("0") for reader in self.readers], "0")
        f.barrier()
        k = size_of(f, groups(self.c)[K])
        zero = float_literal(0.0, self.scalar)
        sums = [(self.scalar, zero)] * (tile.rows * tile.cols)
        loop = f.open_loop(0, k, tile.k, [("i64", "0"), *sums])
        buffer = f.bound(loop.carried[0], 0, self.whole * self.size)
        following = f.add(indexed(f, groups(self.c)[K], loop.index), tile.k)
        fetched = [reader.fetch(following) for reader in self.readers]
        totals = self._multiply(buffer, loop.carried[1:])
        other = f.sub(self.whole * self.size, buffer)
        self._put(fetched, other)
        f.barrier()
        sums_after = f.close_loop(loop, [other, *totals])[1:]
        self._finish(at, sums_after)

    def _put(self, fetched: Sequence[Sequence[str]], buffer: str) -> None:
        """Write slices to shared memory, `buffer` bytes on."""
        for i, (reader, values) in enumerate(zip(self.readers, fetched, strict=True)):
            address = self.f.shared_at(self.shared, i * self.split * self.size)
            reader.put(values, Shared(self.f.shared_at(address, buffer), 1, self.steps[i]))

    # ---- the product of two slices

    def _place_lanes(self) -> None:
        """Where a thread's rows of A and columns of B begin in a slice, in bytes."""
        f, tile = self.f, self.tile
        self.wide = min(tile.rows, self.most), min(tile.cols, self.most)
        self.at = (
            f.mul(self.lanes.row, self.wide[0] * self.size),
            f.add(f.mul(self.lanes.column, self.wide[1] * self.size), self.split * self.size),
        )

    def _multiply(self, buffer: str, sums: Sequence[str]) -> list[str]:
        """The sums after another slice."""
        f, tile, totals = self.f, self.tile, list(sums)
        start = f.shared_at(self.shared, buffer)
        for step in range(tile.k):
            a, b = (self._factors(i, f.shared_at(start, self.at[i]), step) for i in range(2))
            for i, x in enumerate(a):
                for j, y in enumerate(b):
                    n = i * tile.cols + j
                    totals[n] = f.intrinsic("fma", self.scalar, x, y, totals[n])
        return totals

    def _factors(self, which: int, start: str, step: int) -> list[str]:
        """A thread's rows of A, or columns of B, at a step of a slice."""
        f, tile, wide = self.f, self.tile, self.wide[which]
        count, extent = ((tile.rows, tile.m), (tile.cols, tile.n))[which]
        runs = count // wide
        found = []
        for run in range(runs):
            at = (step * self.steps[which] + run * (extent // runs)) * self.size
            address = f.shared_at(start, at)
            if wide == 1:
                text = f"load {self.scalar}, ptr addrspace(3) {address}, align {self.size}"
                found.append(f.value(text))
                continue
            kind = f"<{wide} x {self.scalar}>"
            all_ = f.value(f"load {kind}, ptr addrspace(3) {address}, align {wide * self.size}")
            found += [f.value(f"extractelement {kind} {all_}, i32 {j}") for j in range(wide)]
        return found

    # ---- the end

    def _finish(self, at: Corner, sums: Sequence[str]) -> None:
        f, tile, stage = self.f, self.tile, self.finish.stage
        wide = self.wide[1]
        runs = tile.cols // wide

        def write(rows: range) -> None:
            for i in rows:
                local = f.mul(self.finish.local_row(i, self.lanes.row), stage.stride)
                for run in range(runs):
                    column = f.add(f.mul(self.lanes.column, wide), run * (tile.n // runs))
                    address = f.shared_at(self.shared, f.mul(f.add(local, column), self.size))
                    first = i * tile.cols + run * wide
                    self._write_run(address, sums[first : first + wide])

        self.finish.emit(self.shared, at.batch, (at.m, at.n), write)

    def _write_run(self, address: str, values: Sequence[str]) -> None:
        """Write neighbours to shared memory, at once where rows keep them aligned."""
        f, size = self.f, self.size
        if len(values) > 1 and self.finish.vectors:
            kind, all_ = f"<{len(values)} x {self.scalar}>", "poison"
            for j, x in enumerate(values):
                all_ = f.value(f"insertelement {kind} {all_}, {self.scalar} {x}, i32 {j}")
            f.emit(f"store {kind} {all_}, ptr addrspace(3) {address}, align {size * len(values)}")
            return
        for j, x in enumerate(values):
            place = f.shared_at(address, j * size)
            f.emit(f"store {self.scalar} {x}, ptr addrspace(3) {place}, align {size}")
