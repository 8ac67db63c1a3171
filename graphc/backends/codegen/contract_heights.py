"""How tall register tiles may be whose rows are read in place.

Each step of k reads an element of every row.  Where rows lie a multiple of the size of a way of the
L1 cache apart, they share a set of it: a tile of more rows than a set has ways would wait for the
L2 cache at every step.  Imports: contract_access, targets.
"""

from __future__ import annotations

import math

from graphc.backends.codegen.contract_access import Group, linear
from graphc.backends.codegen.targets import Target
from graphc.kernel import Access


def heights_in_place(left: Access, rows: Group, itemsize: int, target: Target) -> tuple[int, ...]:
    """Most rows of tiles of 1, 2, ... vectors: as `Target.rows_in_place`, and none too many for a
    set of the L1 cache."""
    most = _most_rows(left, rows, itemsize, target)
    return tuple([min(height, most) for height in target.rows_in_place])


def _most_rows(left: Access, rows: Group, itemsize: int, target: Target) -> int:
    """Rows that follow each other and leave no set of the L1 cache short of ways."""
    moving = [a for a, n in zip(rows.axes, rows.extents, strict=True) if n != 1]
    step = linear(left, moving[-1]) if moving else 0
    if not isinstance(step, int) or step == 0:
        return max(target.rows_in_place)
    sets_apart = target.way_bytes // math.gcd(step * itemsize, target.way_bytes)
    return sets_apart * target.ways
