"""The packing of the operands of a block of a contraction, a slice of k at a time.

The left operand goes to rows or to panels one register tile high, the right one to panels one
register tile wide.  Imports: contract_access, contract_packing, contract_scratch, contract_tiling,
contract_transpose, text.
"""

from __future__ import annotations

from graphc.backends.codegen.contract_access import Operand, Record, Table
from graphc.backends.codegen.contract_packing import (
    Packer,
    pack_copies,
    pack_needed,
    pack_panels,
)
from graphc.backends.codegen.contract_scratch import Scratch
from graphc.backends.codegen.contract_tiling import Tiling
from graphc.backends.codegen.contract_transpose import Lanes, pack_transposed
from graphc.backends.codegen.text import FunctionText, scalar_type

Part = tuple[str, str]
"""The first of the rows or columns of a block, and how many there are."""


class BlockPacking:
    """Packs operands into the scratch memory of a block; each comes with its free and k tables."""

    def __init__(
        self,
        f: FunctionText,
        t: Tiling,
        room: Scratch,
        left: tuple[Operand, Table, Table],
        right: tuple[Operand, Table, Table],
    ) -> None:
        self.f, self.t, self.room, self.scratch = f, t, room, room.places
        self.left, self.right = left, right
        self.itemsize = left[0].itemsize

    def _packer(self, operand: Operand, origin: Record) -> Packer:
        zeros, located = self.scratch["zeros"], self.scratch["located"]
        scalar = scalar_type(self.room.dtype)
        return Packer(operand, origin, scalar, self.itemsize, self.t.lanes, zeros, located)

    def pack_left(self, origin: Record, rows: Part, depth: str) -> None:
        """Pack the rows of the block over a slice of k, as the tables of the left operand say."""
        f, t = self.f, self.t
        operand, free, k = self.left
        p = self._packer(operand, origin)
        if t.skips:
            self._pack_needed(p, free, k, rows[1])
            return
        if t.pack_left.mode != "panels":
            pack_copies(f, p, free, ("0", rows[1]), k, self.scratch["a"], self.room.a_row)
            return
        self._pack_panels(p, free, k, depth, rows, t.tile_rows, "a", self.room.a_panel)

    def _pack_needed(self, p: Packer, free: Table, k: Table, count: str) -> None:
        """Pack row by row, noting for each row of tiles which runs of k it needs."""
        f, t = self.f, self.t
        start = [("ptr", self.scratch["a"]), ("ptr", self.scratch["needed"])]
        tiles = f.open_loop(0, count, t.tile_rows, start)
        at, needed = tiles.carried
        rows = (tiles.index, f.smin(f.add(tiles.index, t.tile_rows), count))
        pack_needed(f, p, free, rows, k, at, self.room.a_row, needed)
        f.close_loop(tiles, [f.offset(at, self.room.a_panel), f.offset(needed, t.most.depth)])

    def pack_right(self, origin: Record, cols: Part, depth: str) -> None:
        """Pack the columns of the block over a slice of k, as the right operand's tables say."""
        f, t = self.f, self.t
        operand, free, k = self.right
        p = self._packer(operand, origin)
        if t.pack_right.mode == "panels":
            self._pack_panels(p, free, k, depth, cols, t.tile_cols, "b", self.room.b_panel)
            return
        last = f.sub(cols[1], 1)
        panels = f.open_loop(0, cols[1], t.tile_cols, [("ptr", self.scratch["b"])])
        panel = panels.carried[0]
        parts = f.open_loop(0, t.tile_cols, t.lanes)
        first = f.add(panels.index, parts.index)
        at = f.offset(panel, f.mul(parts.index, self.itemsize))
        pack_transposed(f, p, Lanes(free, first, last), k, at, self.room.b_step)
        f.close_loop(parts)
        f.close_loop(panels, [f.offset(panel, self.room.b_panel)])

    def _pack_panels(
        self,
        p: Packer,
        free: Table,
        k: Table,
        depth: str,
        part: Part,
        width: int,
        scratch: str,
        stride: str,
    ) -> None:
        f = self.f
        start, count = part
        row = width * self.itemsize

        if free.single and not p.operand.guards:
            free.fill(f, start, count)
            pack_panels(f, p, k, depth, free, self.scratch[scratch], stride, width)
            return
        panels = f.open_loop(0, count, width, [("ptr", self.scratch[scratch])])
        here = f.smin(f.sub(count, panels.index), width)
        free.fill(f, f.add(start, panels.index), here)
        pack_copies(f, p, k, ("0", depth), free, panels.carried[0], row)
        f.close_loop(panels, [f.offset(panels.carried[0], stride)])
