"""What a block of a Winograd convolution asks for before it needs it: large images come from
memory, along rows too short for processors to see where they go on.

Images follow each other in memory as tiles do: an address some tiles further is right for nearly
all of them, and where it is not, another tile asks for what this one misses.
Imports: contract_access, contract_epilogue, text, winograd.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.backends.codegen.contract_access import Operand, Record, sum_records
from graphc.backends.codegen.contract_epilogue import Epilogue
from graphc.backends.codegen.text import FunctionText
from graphc.winograd import TAPS, Filtering


def inputs_ahead(
    f: FunctionText, rule: Filtering, x: Operand, corner: Record, tiles: str
) -> list[str]:
    """Where the inputs lie that are `tiles` tiles further than those of the tile at this corner
    which no tile before it reads."""
    pixel = f.mul(x.strides[2], x.itemsize)
    far = f.mul(f.mul(tiles, pixel), rule.tile**2)
    new = range(TAPS - 1, rule.span)
    places = [sum_records(f, corner, x.part(f, {4: str(i), 5: str(j)})) for i in new for j in new]
    return [f.offset(x.locate(f, place)[0], far) for place in places]


def fetch_outputs(
    f: FunctionText, rule: Filtering, epilogue: Epilogue, place: Mapping[int, str], filter_: str
) -> None:
    """Ask for what the epilogue of the tile below that at a place reads and writes at a filter."""
    for operand, written in epilogue.along_rows(1):
        here = sum_records(f, operand.origin(), operand.part(f, place))
        here[0] = f.add(here[0], filter_)
        for i in range(rule.tile):
            for j in range(rule.tile):
                moved = operand.part(f, {1: str(rule.tile + i), 2: str(j)})
                address, _ = operand.locate(f, sum_records(f, here, moved))
                f.prefetch(address, 2, write=written)
