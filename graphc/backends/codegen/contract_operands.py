"""How the operands of a contraction are packed, judged by the runs they have in memory.

Imports: contract_access, dims, errors, kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from graphc.backends.codegen.contract_access import Group, fused_axes, run_length
from graphc.dims import DimLike, atoms, evaluate
from graphc.errors import ShapeError
from graphc.kernel import Access

UNKNOWN_SIZE = 256
"""What tiling assumes of a size known only at run time."""


@dataclass(frozen=True)
class Packing:
    """How one operand is packed.  Of the left one 'direct' means that rows are read in place.

    'rows'       [row][k], copied along k
    'panels'     [panel][k][row of panel], copied along the rows
    'transpose'  the same layout, from runs along k
    'direct'     not packed: vectors are read in place (few rows would not repay a copy)
    'packed'     packed by an earlier step, see `kernel.Contraction`
    `fused` trailing axes of the copied group form one contiguous run.
    """

    mode: str
    fused: int


def assumed(size: DimLike) -> int:
    """A size as tiling takes it: every symbol in it stands for UNKNOWN_SIZE."""
    if isinstance(size, int):
        return size
    try:
        return max(evaluate(size, dict.fromkeys(atoms(size), UNKNOWN_SIZE)), 0)
    except ShapeError:
        return UNKNOWN_SIZE


def assumed_size(group: Group) -> int:
    """The product of a group's extents, each assumed where it is unknown."""
    return math.prod(assumed(extent) for extent in group.extents)


def packing_of(access: Access, free: Group, k: Group, *, broadcast: bool) -> Packing:
    """How an operand with these rows or columns is packed; `broadcast` if it is the left one."""
    along_free, along_k = _run_score(access, free), _run_score(access, k)
    copied, mode = (k, "rows") if broadcast else (free, "panels")
    if broadcast and along_free > along_k:
        copied, mode = free, "panels"
    if not broadcast and along_k > along_free:
        copied, mode = k, "transpose"
    if max(along_free, along_k) < 4:
        return Packing("rows" if broadcast else "panels", 0)
    return Packing(mode, fused_axes(access, copied))


def _run_score(access: Access, group: Group) -> int:
    """Elements a vector copy along a group moves at once (at most 16)."""
    fused = fused_axes(access, group)
    if fused == 0:
        return 1
    if fused == len(group.axes):
        return max(4, min(assumed_size(group), 16))
    return min(assumed(run_length(access, group)), 16)


PACK_CYCLES = {"rows": 0.1, "panels": 0.3, "transpose": 0.7, "direct": 0.0}
"""Cycles per element packed, runs being long."""


def run_cycles(access: Access, free: Group, k: Group) -> float:
    """Cycles per element that go to finding short runs."""
    score = max(_run_score(access, free), _run_score(access, k))
    return 6.0 if score < 4 else 12 / score - 0.75
