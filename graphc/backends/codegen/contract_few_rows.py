"""What is different where C has few rows: they do not repay packing B, and wait for memory.

Imports: contract_access, contract_operands, kernel, dims.
"""

from __future__ import annotations

import math

from graphc.backends.codegen.contract_access import Group, fused_axes, guarded
from graphc.backends.codegen.contract_operands import assumed, assumed_size
from graphc.dims import DimLike
from graphc.kernel import Access, Contraction

IN_PLACE_ROWS = 8
"""Most rows of C for which a vector of B is read where it lies instead of being packed."""

FAR_ROWS, FAR_ELEMENTS = 16, 1 << 22
"""The same where B has so many elements that it comes from memory, which is waited for anyway."""

FEWEST_ROWS = 4
"""Most rows that read B in place where code has to serve any number of rows."""

STREAMED_ROWS = 16
"""Most rows of C that wait for memory rather than compute where B is packed: they read a panel of B
once, while the next is asked for."""

SIDE_BY_SIDE = 4
"""Packed panels of B that a single row reads at the same time."""


def reads_in_place(c: Contraction, right: Access, rows: Group, cols: Group, k: Group) -> bool:
    """Whether vectors of B can be loaded where they lie, and few rows share each."""
    elements = math.prod(map(assumed, c.batch)) * assumed_size(cols) * assumed_size(k)
    most = FAR_ROWS if elements >= FAR_ELEMENTS else IN_PLACE_ROWS
    few = isinstance(rows.size, int) and rows.size <= most
    return few and lies_in_vectors(right, cols, k)


def lies_in_vectors(right: Access, cols: Group, k: Group) -> bool:
    """Whether each step of k finds the columns of B side by side, a constant stride further."""
    moving = [extent for extent in k.extents if extent != 1]
    in_rows = len(moving) <= 1 and fused_axes(right, cols) == len(cols.axes)
    return in_rows and not guarded(right)


def may_be_few(rows: DimLike) -> bool:
    """Whether a number of rows known only at run time may be one to FEWEST_ROWS."""
    if isinstance(rows, int):
        return False
    return len(rows.terms) > 1 or rows.terms[0][1] <= FEWEST_ROWS
