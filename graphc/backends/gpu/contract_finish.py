"""The end of a tile: sums go from registers to shared memory, from there through the epilogue.

Each thread's sums are scattered over the tile; in shared memory the threads share them out anew, so
that neighbours read and write what is next to each other, and the epilogue is written out once.
Where shared memory holds a part of the tile only, parts follow each other.
Imports: contract_text, contract_epilogue, contract_tiling, codegen.text, kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from graphc.backends.codegen.contract_access import both
from graphc.backends.codegen.text import scalar_type
from graphc.backends.gpu.contract_epilogue import (
    Epilogue,
    M,
    N,
    Spot,
    fast_group,
    is_light,
    neighbours,
    reads_along,
)
from graphc.backends.gpu.contract_text import DeviceText, groups, indexed, size_of
from graphc.dims import factor
from graphc.kernel import Contraction


@dataclass(frozen=True)
class RowOrder:
    """Which rows of the tile a thread's register rows are.

    Register row i of thread row y is tile row `i // run * apart + y // lanes * warp + y % lanes *
    run + i % run`: runs of `run` rows, side by side for `lanes` thread rows.
    """

    count: int  # register rows of a thread
    threads: int  # thread rows
    run: int
    apart: int
    lanes: int
    warp: int


@dataclass(frozen=True)
class Stage:
    """The part of a tile that is in shared memory at once: one of `parts`, rows `stride` apart."""

    parts: int
    rows: int
    stride: int
    run: int  # register rows next to each other

    def bytes(self, itemsize: int) -> int:
        return self.rows * self.stride * itemsize


def stage_of(order: RowOrder, cols: int, pad: int, itemsize: int, room: int) -> Stage:
    """The largest part of a tile that leaves shared memory as small as the room slices need."""
    parts = 1
    while True:
        rows = order.count * order.threads // parts
        stage = Stage(parts, rows, cols + pad, min(order.run, order.count // parts))
        if stage.bytes(itemsize) <= room or parts == order.count:
            return stage
        parts *= 2


class Finish:
    """Emits the end of a tile."""

    def __init__(
        self,
        f: DeviceText,
        c: Contraction,
        order: RowOrder,
        cols: int,
        threads: int,
        pads: tuple[int, int],
        room: int,
    ) -> None:
        """`pads` are the columns between rows in shared memory where threads are next to each other
        along n and along m."""
        self.f, self.c, self.order = f, c, order
        self.cols, self.threads = cols, threads
        self.fast = fast_group(c)
        self.scalar, self.size = scalar_type(c.dtype), c.dtype.itemsize
        pad = pads[0] if self.fast == N else pads[1]
        self.stage = stage_of(order, cols, pad, self.size, room)
        width = min(neighbours(c, self.fast), 16 // self.size)
        if self.fast == M:
            width = min(width, self.stage.run)
        self.width = width
        self.vectors = pad % 2 == 0
        self.together = is_light(c) and reads_along(c, M + N - self.fast)

    def emit(
        self,
        shared: str,
        batch: str,
        first: tuple[str, str],
        write: Callable[[range], None],
    ) -> None:
        """`write` puts the given register rows of a thread into the stage at `shared`, row
        `local_row` of it each; `first` are the tile's first row and column."""
        f, parts = self.f, self.stage.parts
        self.epilogue = Epilogue(f, self.c, self.fast, self.width)  # its strides: not before
        each = self.order.count // parts
        if parts == 1:
            write(range(each))
            f.barrier()
            self._share_out(shared, batch, first, "0")
            return
        loop = f.open_loop(0, parts, 1)
        f.bound(loop.index, 0, parts)
        after = f.fresh("written")
        for part in range(parts):
            yes, no = f.fresh("part"), f.fresh("next")
            f.branch_if(f.value(f"icmp eq i64 {loop.index}, {part}"), yes, no)
            f.label(yes)
            write(range(part * each, (part + 1) * each))
            f.branch(after)
            f.label(no)
        f.branch(after)
        f.label(after)
        f.barrier()
        self._share_out(shared, batch, first, loop.index)
        f.barrier()
        f.close_loop(loop)

    def local_row(self, register: int, thread_row: str) -> str:
        """The row of the stage that a register row of a thread is."""
        stage, f = self.stage, self.f
        within = register % (self.order.count // stage.parts)
        x, w = divmod(within, stage.run)
        return f.add(f.mul(f.add(x * self.order.threads, thread_row), stage.run), w)

    def _tile_row(self, local: str, part: str) -> str:
        """The row of the tile that a row of the stage is."""
        f, order, stage = self.f, self.order, self.stage
        w = f.urem(local, stage.run)
        rest = f.udiv(local, stage.run)
        y = f.urem(rest, order.threads)
        i = f.add(f.mul(f.udiv(rest, order.threads), stage.run), w)
        i = f.add(i, f.mul(part, order.count // stage.parts))
        row = f.mul(f.udiv(i, order.run), order.apart)
        row = f.add(row, f.mul(f.udiv(y, order.lanes), order.warp))
        row = f.add(row, f.mul(f.urem(y, order.lanes), order.run))
        return f.add(row, f.urem(i, order.run))

    def _share_out(self, shared: str, batch: str, first: tuple[str, str], part: str) -> None:
        """The epilogue over the rows in the stage."""
        f, stage, width = self.f, self.stage, self.width
        fast, slow = (self.cols, stage.rows) if self.fast == N else (stage.rows, self.cols)
        thread = f.thread()
        near, far = f.mul(f.urem(thread, fast // width), width), f.udiv(thread, fast // width)
        step = self.threads // (fast // width)
        assert step > 0, "fewer threads than neighbours in a tile"
        if self.fast == N:
            column = near
            self._known_column(first[1], column)
        else:
            row = self._tile_row(near, part)
        # what is read comes late: two spots ask for it at once
        spots = 2 if self.together and slow % (2 * step) == 0 else 1
        loop = f.open_loop(far, slow, spots * step)
        f.bound(loop.index, 0, slow)
        found = []
        for i in range(spots):
            moved = f.add(loop.index, i * step)
            if self.fast == N:
                local, row = moved, self._tile_row(moved, part)
            else:
                local, column = near, moved
            at = f.mul(f.add(f.mul(local, stage.stride), column), self.size)
            found.append(self._spot(f.shared_at(shared, at), batch, first, row, column))
        if spots == 1:
            (spot,) = found
            f.where(spot.exists, partial(self.epilogue.emit, [replace(spot, exists="")]))
        else:
            self.epilogue.emit(found)
        f.close_loop(loop)

    def _known_column(self, first: str, column: str) -> None:
        self.epilogue.know(N, self._flat(N, first, column))

    def _flat(self, which: int, first: str, moved: str) -> str:
        return indexed(self.f, groups(self.c)[which], self.f.add(first, moved))

    def _spot(
        self, address: str, batch: str, first: tuple[str, str], row: str, column: str
    ) -> Spot:
        """The neighbours whose sums begin at an address."""
        m, n = self._flat(M, first[0], row), self._flat(N, first[1], column)
        exists = both(self.f, self._exists(M, m), self._exists(N, n))
        return Spot((batch, m, n), self._sums(address), exists)

    def _exists(self, which: int, flat: str) -> str:
        """Whether a row or column of the tile is one of C's; '' if all are."""
        group = groups(self.c)[which]
        whole = self.order.count * self.order.threads if which == M else self.cols
        if factor(group.size) % whole == 0:
            return ""
        return self.f.below(flat, size_of(self.f, group))

    def _sums(self, address: str) -> list[str]:
        f, width, size = self.f, self.width, self.size
        if self.fast == N and width > 1:
            kind = f"<{width} x {self.scalar}>"
            all_ = f.value(f"load {kind}, ptr addrspace(3) {address}, align {size * width}")
            return [f.value(f"extractelement {kind} {all_}, i32 {j}") for j in range(width)]
        return [
            f.value(
                f"load {self.scalar}, ptr addrspace(3) "
                f"{f.shared_at(address, j * self.stage.stride * size)}, align {size}"
            )
            for j in range(width)
        ]
