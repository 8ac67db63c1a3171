"""The register tiles beside each other in a row of them: the last ones may be narrower.

Imports: contract_epilogue, contract_microkernel, contract_tiling, text.
"""

from __future__ import annotations

from collections.abc import Callable

from graphc.backends.codegen.contract_epilogue import Epilogue, Rows
from graphc.backends.codegen.contract_microkernel import Tile
from graphc.backends.codegen.contract_tiling import Tiling
from graphc.backends.codegen.text import FunctionText

Multiply = Callable[[Tile, str, str, str], None]
"""Sums a tile, given its panel of B, where it lies in C and its first column in the block."""


def tiles_across(
    f: FunctionText,
    t: Tiling,
    shape: Tile,
    columns: tuple[str, str],
    panels: tuple[str, str],
    c: str,
    multiply: Multiply,
    epilogue: tuple[Epilogue, Rows, str],
) -> None:
    """Sum all tiles of a row of them, which lie at `c`.

    `columns` are the first of the block and how many it has, `panels` where those of B begin and
    the bytes from one to the next.  What the epilogue of these rows touches is asked for if the
    last part, an i1, says so.
    """
    first, count = columns
    b, panel = panels
    unit = t.tile_cols
    whole = f.mul(f.udiv(count, unit), unit) if t.tail[0] else count
    parts = [("0", whole, shape), (whole, count, shape.narrowed(t.tail))]
    ending, rows, wanted = epilogue
    for begin, end, tile in parts if t.tail[0] else parts[:1]:
        across = f.open_loop(begin, end, unit, [("ptr", b)])
        at = f.offset(c, f.mul(across.index, shape.itemsize))
        ending.fetch_ahead(rows, f.add(first, across.index), t.tile_rows, unit, wanted)
        multiply(tile, across.carried[0], at, across.index)
        (b,) = f.close_loop(across, [f.offset(across.carried[0], panel)])
