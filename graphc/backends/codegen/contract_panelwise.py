"""A block of a contraction multiplied by packed panels of B, all rows by one panel after the other.

A panel then stays in the first cache, and A, of which a step needs less, comes from the second.  A
single row computes so little that it only waits for B: it reads several panels at the same time,
because processors ask memory for each stretch they see being read.
Imports: contract_microkernel, contract_scratch, contract_tiling, text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphc.backends.codegen.contract_microkernel import Tile, emit_tile
from graphc.backends.codegen.contract_scratch import Scratch
from graphc.backends.codegen.contract_tiling import Tiling
from graphc.backends.codegen.text import FunctionText


@dataclass(frozen=True)
class Panels:
    """The panels of a block: where the first one begins at the slice of k that is multiplied, bytes
    from one to the next, steps in the slice, and an i1: whether it is the first one."""

    first: str
    apart: str
    depth: str
    begins: str


def multiply_few(
    f: FunctionText,
    t: Tiling,
    room: Scratch,
    shape: Tile,
    panels: Panels,
    size: tuple[str, str],
    vectors: int,
) -> None:
    """Multiply few rows, by tiles `vectors` wide where so many panels are left.

    `size`: rows and columns of the block.
    """
    rows, cols = size
    done = "0"
    if vectors > shape.vectors:
        side_by_side = vectors // shape.vectors
        wide = replace(shape, vectors=vectors, panels=side_by_side, panel=panels.apart)
        done = f.mul(f.udiv(cols, wide.columns), wide.columns)
        multiply_panels(f, t, room, wide, panels, (rows, "0", done))
    multiply_panels(f, t, room, shape, panels, (rows, done, cols), ahead=True)


def multiply_panels(
    f: FunctionText,
    t: Tiling,
    room: Scratch,
    shape: Tile,
    panels: Panels,
    part: tuple[str, str, str],
    ahead: bool = False,
) -> None:
    """Run the register tile over a part of the block: rows, first column, end of the columns.

    With `ahead` the next panel is asked for meanwhile: few rows wait for memory.
    """
    rows, begin, end = part
    width = shape.columns
    b = f.offset(panels.first, f.mul(f.udiv(begin, t.tile_cols), panels.apart))
    c = f.offset(room.places["c"], f.mul(begin, shape.itemsize))
    across = f.open_loop(begin, end, width, [("ptr", b), ("ptr", c)])
    done, (b, c) = across.index, across.carried
    if ahead:
        back = f.mul(f.udiv(done, width), panels.apart)
        following = f.sub(f.mul(panels.depth, room.b_step), back)  # the next slice begins there
        last = f.value(f"icmp sge i64 {f.add(done, width)}, {end}")
        step = f.value(f"select i1 {last}, i64 {following}, i64 {panels.apart}")
        shape = replace(shape, b_ahead=step)
    down = f.open_loop(0, rows, shape.rows, [("ptr", room.places["a"]), ("ptr", c)])
    emit_tile(f, shape, down.carried[0], b, down.carried[1], panels.depth, panels.begins)
    in_panels = t.pack_left.mode == "panels"
    next_a = room.a_panel if in_panels else str(shape.rows * room.a_row)
    below = f.offset(down.carried[1], shape.rows * room.c_row)
    f.close_loop(down, [f.offset(down.carried[0], next_a), below])
    beyond = f.offset(b, f.mul(panels.apart, shape.panels))
    f.close_loop(across, [beyond, f.offset(c, width * shape.itemsize)])
