"""Contractions of f32 on tensor cores: operands rounded to tf32 or bf16, sums in f32.

A tile is cut into rectangles of 16 x 8, which a warp multiplies by 8 words of k at once; a word is
a tf32 or two bfloats, so that both kinds are laid out alike.  Slices in shared memory stay as they
lie in global memory, along k or across it, with rows far enough apart that a warp reads without
conflicts: tf32 is copied there while the tensor cores work, bf16 goes through registers.
Imports: the contract modules beside this one, codegen, kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.backends.codegen.contract_access import Operand
from graphc.backends.codegen.text import Loop, float_literal
from graphc.backends.gpu.contract_epilogue import M, N
from graphc.backends.gpu.contract_finish import Finish, RowOrder
from graphc.backends.gpu.contract_slices import Reader, Shared, Slice
from graphc.backends.gpu.contract_text import DeviceText, groups, indexed, size_of
from graphc.backends.gpu.contract_tiles import Corner, K, batch_part, corner
from graphc.backends.gpu.contract_tiling import Tile, slices
from graphc.kernel import Contraction

WORD = 4

PAIRS = {"tf32": 1, "bf16": 2}
"""Steps of k in a word of shared memory."""

_SUMS = "{ float, float, float, float }"
_WORDS = "{ i32, i32, i32, i32 }"

_PRODUCTS = {
    "tf32": "llvm.nvvm.mma.m16n8k8.row.col.tf32",
    "bf16": "llvm.nvvm.mma.m16n8k16.row.col.bf16",
}


@dataclass(frozen=True)
class Warps:
    """How warps share out a tile: `down` x `across` of them; `words` of k are a slice."""

    down: int
    across: int
    words: int

    @property
    def threads(self) -> int:
        return 32 * self.down * self.across

    def registers(self, simple: bool, precision: str) -> int:
        """The most registers a thread may use; see `Tile.registers`."""
        if not simple or precision == "bf16":  # which has the next slices in registers
            return 255
        return 128 if self.threads == 256 else 168


WARPS = {
    (128, 128): Warps(2, 4, 16),
    (128, 64): Warps(2, 2, 16),
    (64, 128): Warps(1, 4, 16),
    (64, 64): Warps(2, 2, 16),
    (128, 32): Warps(4, 1, 16),
    (32, 128): Warps(1, 4, 16),
    (64, 32): Warps(2, 2, 32),
    (32, 64): Warps(1, 4, 32),
    (32, 32): Warps(2, 2, 32),
    (16, 64): Warps(1, 4, 32),
    (64, 16): Warps(4, 1, 32),
    (64, 8): Warps(4, 1, 32),
}
"""The tiles that tensor cores compute."""


def warps_of(c: Contraction, tile: Tile | None, precision: str) -> Warps | None:
    """How warps compute a contraction on tensor cores; None where they do not."""
    if precision not in PAIRS or tile is None or c.dtype.name != "f32":
        return None
    return WARPS.get((tile.m, tile.n))


class MmaEmitter:
    """One kernel being written."""

    def __init__(
        self, f: DeviceText, c: Contraction, tile: Tile, warps: Warps, precision: str
    ) -> None:
        self.f, self.c, self.tile, self.warps, self.precision = f, c, tile, warps, precision
        self.pair = PAIRS[precision]
        self.depth = warps.words * self.pair
        found = groups(c)
        axes = range(len(c.axes))
        cuts = slices(c, tile, warps.threads, self.depth, self.pair)
        self.readers = [
            Reader(f, Operand(f, access, WORD, axes), cut, found[which], found[K], "float", 0.0)
            for access, cut, which in zip((c.a, c.b), cuts, (M, N), strict=True)
        ]
        self.layouts = [self._layout(cut) for cut in cuts]
        self.rooms = [self._room(cut) for cut in cuts]
        self.high, self.wide = tile.m // warps.down, tile.n // warps.across
        order = RowOrder(self.high // 8, 8 * warps.down, 1, 8, 8, self.high)
        room = 2 * sum(self.rooms)
        self.finish = Finish(f, c, order, tile.n, warps.threads, (8, 1), room)
        count = max(room, self.finish.stage.bytes(WORD)) // WORD
        self.shared = f.share("tile", "float", count)

    def _layout(self, cut: Slice) -> tuple[int, int]:
        """How far rows (or columns) and steps of a slice are apart in shared memory, in words."""
        return (self.warps.words + 4, 1) if cut.along_k else (1, cut.extent + 8)

    def _room(self, cut: Slice) -> int:
        """The bytes of a slice."""
        of_row, of_step = self._layout(cut)
        return (of_row * cut.extent if cut.along_k else of_step * self.warps.words) * WORD

    # ---- the loop over k

    def emit(self) -> None:
        f = self.f
        self._place_lanes()
        at = corner(f, self.c, self.tile)
        for reader, first in zip(self.readers, (at.m, at.n), strict=True):
            reader.prepare(batch_part(f, self.c, reader.operand, at.batch), first)
        zero = float_literal(0.0, "float")
        sums = [("float", zero)] * (self.high * self.wide // 32)
        sums_after = self._copied(sums) if self.precision == "tf32" else self._fetched(sums)
        self._finish(at, sums_after)

    def _copied(self, sums: Sequence[tuple[str, str]]) -> list[str]:
        """The sums, where slices are copied to shared memory while others are multiplied."""
        f = self.f
        self._copy("0", "0")
        loop, buffer = self._open(sums)
        self._wait()
        following = f.add(loop.index, self.depth)
        other = f.sub(sum(self.rooms), buffer)
        self._copy(following, other)
        totals = self._multiply(buffer, loop.carried[1:])
        found = f.close_loop(loop, [other, *totals])[1:]
        self._wait()
        return found

    def _fetched(self, sums: Sequence[tuple[str, str]]) -> list[str]:
        """The sums, where slices go through registers to shared memory."""
        f = self.f
        self._put([reader.fetch("0") for reader in self.readers], "0")
        f.barrier()
        loop, buffer = self._open(sums)
        following = f.add(loop.index, self.depth)
        fetched = [reader.fetch(following) for reader in self.readers]
        totals = self._multiply(buffer, loop.carried[1:])
        other = f.sub(sum(self.rooms), buffer)
        self._put(fetched, other)
        f.barrier()
        return f.close_loop(loop, [other, *totals])[1:]

    def _open(self, sums: Sequence[tuple[str, str]]) -> tuple[Loop, str]:
        """Open the loop over slices; returns it and where the slice to multiply is, in bytes."""
        f, k = self.f, groups(self.c)[K]
        loop = f.open_loop(0, size_of(f, k), self.depth, [("i64", "0"), *sums])
        indexed(f, k, loop.index)
        return loop, f.bound(loop.carried[0], 0, sum(self.rooms))

    def _shared(self, buffer: str) -> list[Shared]:
        """The slices of A and B in a buffer."""
        start = self.f.shared_at(self.shared, buffer)
        return [
            Shared(self.f.shared_at(start, at), *layout)
            for at, layout in zip((0, self.rooms[0]), self.layouts, strict=True)
        ]

    def _copy(self, k0: str, buffer: str) -> None:
        """Have the next slices copied."""
        for reader, shared in zip(self.readers, self._shared(buffer), strict=True):
            reader.copy(k0, shared)
        self.f.call("void", "llvm.nvvm.cp.async.commit.group")

    def _wait(self) -> None:
        """Wait for all copies, and for all threads to be done with what they read."""
        name = "llvm.nvvm.cp.async.wait.group"
        self.f.declarations[name] = f"declare void @{name}(i32 immarg)"
        self.f.emit(f"call void @{name}(i32 0)")
        self.f.barrier()

    def _put(self, fetched: Sequence[Sequence[str]], buffer: str) -> None:
        """Write slices to shared memory."""
        for reader, values, shared in zip(self.readers, fetched, self._shared(buffer), strict=True):
            reader.put(values, shared)

    # ---- the product of two slices

    def _place_lanes(self) -> None:
        """Which part of a rectangle this thread has, and where its warp's begin."""
        f = self.f
        lane, warp = f.urem(f.thread(), 32), f.udiv(f.thread(), 32)
        self.group, self.member = f.udiv(lane, 4), f.urem(lane, 4)
        self.down, self.across = f.udiv(warp, self.warps.across), f.urem(warp, self.warps.across)
        self.at = []
        firsts = f.mul(self.down, self.high), f.mul(self.across, self.wide)
        for which, (first, (of_row, of_step)) in enumerate(zip(firsts, self.layouts, strict=True)):
            row, step = self.group, self.member
            if self._by_matrices(which):  # of four, a lane brings the address of one of 32 rows
                low, far, near = f.urem(lane, 8), f.udiv(lane, 16), f.urem(f.udiv(lane, 8), 2)
                rows, words = (near, far) if which == 0 else (far, near)
                row, step = f.add(low, f.mul(rows, 8)), f.mul(words, 4)
            row = f.mul(f.add(first, row), of_row)
            self.at.append(f.mul(f.add(row, f.mul(step, of_step)), WORD))

    def _by_matrices(self, which: int) -> bool:
        """Whether a warp reads four matrices of 8 rows x 4 words at once: where words of k are next
        to each other, and columns are enough."""
        return self.layouts[which][1] == 1 and (which == 0 or self.wide >= 16)

    def _multiply(self, buffer: str, sums: Sequence[str]) -> list[str]:
        """The sums after another slice."""
        totals = list(sums)
        a, b = (
            self.f.shared_at(shared.address, at)
            for shared, at in zip(self._shared(buffer), self.at, strict=True)
        )
        for word in range(0, self.warps.words, 8):
            left = self._parts(0, a, word, self.high // 16)
            right = self._parts(1, b, word, self.wide // 8)
            for i, x in enumerate(left):
                for j, y in enumerate(right):
                    n = (i * len(right) + j) * 4
                    totals[n : n + 4] = self._product(x, y, totals[n : n + 4])
        return totals

    def _parts(self, which: int, start: str, word: int, count: int) -> list[list[str]]:
        """A thread's parts of `count` rectangles: 16 rows of A or 8 columns of B, 8 words of k."""
        f = self.f
        of_row, of_step = self.layouts[which]
        if not self._by_matrices(which):
            high = 16 if which == 0 else 8
            found = [
                self._word(f.shared_at(start, (row * of_row + at * of_step) * WORD))
                for first in range(0, count * high, high)
                for at in (word, word + 4)
                for row in range(first, first + high, 8)
            ]
            each = high // 4
            return [found[i * each : i * each + each] for i in range(count)]
        found = []
        for rows in range(0, count * (16 if which == 0 else 8), 16):
            address = f.shared_at(start, (rows * of_row + word) * WORD)
            name = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16.p3"
            four = f.call(_WORDS, name, ("ptr addrspace(3)", address))
            found += [
                self._as_word(f.value(f"extractvalue {_WORDS} {four}, {i}")) for i in range(4)
            ]
        each = 4 if which == 0 else 2
        return [found[i * each : i * each + each] for i in range(count)]

    def _as_word(self, bits: str) -> str:
        """What tensor cores take, from what is in shared memory."""
        if self.precision == "bf16":
            return bits
        x = self.f.value(f"bitcast i32 {bits} to float")
        return self.f.call("i32", "llvm.nvvm.f2tf32.rna", ("float", x))

    def _word(self, address: str) -> str:
        return self._as_word(self.f.value(f"load i32, ptr addrspace(3) {address}, align 4"))

    def _product(self, a: Sequence[str], b: Sequence[str], sums: Sequence[str]) -> list[str]:
        """The sums of a rectangle after a product of 16 x 8 x 8 words."""
        f = self.f
        words, floats = [("i32", x) for x in (*a, *b)], [("float", x) for x in sums]
        made = f.call(_SUMS, _PRODUCTS[self.precision], *words, *floats)
        return [f.value(f"extractvalue {_SUMS} {made}, {i}") for i in range(4)]

    # ---- the end

    def _finish(self, at: Corner, sums: Sequence[str]) -> None:
        f, stage = self.f, self.finish.stage
        thread_row = f.add(f.mul(self.down, 8), self.group)
        first = f.add(f.mul(self.across, self.wide), f.mul(self.member, 2))
        columns = self.wide // 8

        def write(rows: range) -> None:
            for row in rows:
                local = f.mul(self.finish.local_row(row, thread_row), stage.stride)
                start = f.shared_at(self.shared, f.mul(f.add(local, first), WORD))
                for j in range(columns):
                    n = (row // 2 * columns + j) * 4 + row % 2 * 2
                    self._write_pair(f.shared_at(start, 8 * j * WORD), sums[n : n + 2])

        self.finish.emit(self.shared, at.batch, (at.m, at.n), write)

    def _write_pair(self, address: str, pair: Sequence[str]) -> None:
        f = self.f
        if not self.finish.vectors:
            for j, x in enumerate(pair):
                place = f.shared_at(address, j * WORD)
                f.emit(f"store float {x}, ptr addrspace(3) {place}, align 4")
            return
        both = f.value(f"insertelement <2 x float> poison, float {pair[0]}, i32 0")
        both = f.value(f"insertelement <2 x float> {both}, float {pair[1]}, i32 1")
        f.emit(f"store <2 x float> {both}, ptr addrspace(3) {address}, align 8")
