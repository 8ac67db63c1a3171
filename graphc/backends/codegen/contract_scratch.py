"""The stack memory of a block of a contraction: packed operands, a tile of C, tables.

Imports: contract_access, contract_operands, contract_rows, contract_tiling, text, kernel.
"""

from __future__ import annotations

from graphc.backends.codegen.contract_access import Group, Operand, Table, record_words
from graphc.backends.codegen.contract_operands import Packing
from graphc.backends.codegen.contract_rows import RUN_BYTES, table_slots
from graphc.backends.codegen.contract_tiling import Tiling
from graphc.backends.codegen.text import LANES, FunctionText
from graphc.kernel import Contraction


class Scratch:
    """One stack allocation: `places` by name, and strides in bytes.

    From one row, step of k and panel to the next: of packed A and B, and of the rows of C.
    """

    def __init__(self, f: FunctionText, c: Contraction, t: Tiling) -> None:
        size, pad = c.dtype.itemsize, max(16, t.lanes)
        self.f, self.dtype = f, c.dtype
        self.depth = f.dim(t.depth)
        if t.pack_left.mode == "panels":
            self.a_row, self.a_step = size, t.tile_rows * size
            # room for what the last vector of a panel writes too much
            self.a_panel = f.mul(f.add(self.depth, t.lanes), self.a_step)
            most_a = (t.most.depth + t.lanes) * self.a_step
        else:
            self.a_row, self.a_step = (t.most.depth + pad) * size, size
            self.a_panel = str(t.tile_rows * self.a_row)
            most_a = t.tile_rows * self.a_row
        self.b_step = t.tile_cols * size
        self.b_panel = f.mul(self.depth, self.b_step)
        self.c_row = (-(-t.most.cols // LANES) * LANES + LANES) * size
        slack = pad * max(t.tile_cols, t.tile_rows, LANES) * size
        needed = {**_tables(t, size), **_operands(t, size, most_a, slack)}
        needed["c"] = t.most.sums * self.c_row
        total = sum(-(-n // 64) * 64 for n in needed.values())
        memory = f.value(f"alloca [{total} x i8], align 64")
        self.places: dict[str, str] = {}
        at = 0
        for what, n in needed.items():
            self.places[what] = f.offset(memory, at)
            at += -(-n // 64) * 64
        clear = f.open_loop(0, needed["zeros"], 64)
        zero = f.offset(self.places["zeros"], clear.index)
        f.emit(f"store <64 x i8> zeroinitializer, ptr {zero}, align 64")
        f.close_loop(clear)

    def tables(
        self,
        operand: Operand,
        free: Group,
        k: Group,
        packing: Packing,
        along_free: bool,
        side: str,
    ) -> tuple[Table, Table]:
        """The tables of the free (m or n) and k axes; the one copied along is made of runs."""
        fused_free, fused_k = (packing.fused, 0) if along_free else (0, packing.fused)
        return (
            Table(self.f, operand, free, fused_free, self.places[f"{side} free"]),
            Table(self.f, operand, k, fused_k, self.places[f"{side} k"]),
        )


def _tables(t: Tiling, size: int) -> dict[str, int]:
    """Bytes of what says where elements lie, and of zeros to read where there are none."""
    rows, depth, runs = t.most.rows, t.most.depth, t.most.runs
    left_words, right_words = record_words(t.left), record_words(t.right)
    direct = t.pack_left.mode == "direct"
    needed = RUN_BYTES * runs if direct else rows // t.tile_rows * depth if t.skips else runs
    return {
        "zeros": -(-(depth + t.most.reach) * size // 64) * 64 if direct else 64,
        "runs": 8 * table_slots(t.tile_rows) * runs if direct else 0,
        "located": 16 * t.lanes,
        "left free": 8 * left_words * rows,
        "left k": 8 * left_words * runs,
        "right free": 8 * right_words * t.most.cols,
        "right k": 0 if t.packed else 8 * right_words * depth,
        "needed": needed,
    }


def _operands(t: Tiling, size: int, most_a: int, slack: int) -> dict[str, int]:
    """Bytes of packed slices, a panel of A taking `most_a`."""
    return {
        "a": t.most.rows // t.tile_rows * most_a + slack,
        "b": t.most.packed * size + slack,
        "cut": t.most.cut * size,
    }
