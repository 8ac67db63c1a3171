"""The share of the left operand that lies outside its guards, and whether runs there are skipped.

Imports: contract_access, contract_operands, dims, kernel.
"""

from __future__ import annotations

import itertools
import math

from graphc.backends.codegen.contract_access import Group, guarded, guards_axis
from graphc.backends.codegen.contract_operands import assumed, packing_of
from graphc.dims import product
from graphc.kernel import Access, Contraction, Term

SKIPPED_RUN = 8
"""Fewest steps of k in a run worth a test whether to skip it."""

SKIPPED_SHARE = 0.1
"""Share of A that must lie outside its guards before runs are tested."""


def needed_share(c: Contraction, left: Access, rows: Group, k: Group) -> float:
    """The share of A inside its guards if runs outside are skipped, 1 if they are not: they are
    where enough lies outside, in runs long enough, for testing them to pay."""
    packing = packing_of(left, rows, k, broadcast=True)
    run = product(k.extents[len(k.extents) - packing.fused :])
    if packing.mode != "rows" or not guarded(left) or assumed(run) < SKIPPED_RUN:
        return 1.0
    share = math.prod(_inside(c, term) for term in guarded(left))
    return share if share < 1 - SKIPPED_SHARE else 1.0


def _inside(c: Contraction, term: Term) -> float:
    """The share of index combinations for which a guarded index is inside (1 where unknown)."""
    extents = [c.axes[axis] for axis, _ in term.axes]
    known = [n for n in (*extents, term.limit, term.shift) if isinstance(n, int)]
    if len(known) < len(extents) + 2 or math.prod(assumed(n) for n in extents) > 1 << 14:
        return 1.0
    assert isinstance(term.limit, int)
    total = inside = 0
    for index in itertools.product(*(range(assumed(n)) for n in extents)):
        numerator = assumed(term.shift)
        for i, (_, coef) in zip(index, term.axes, strict=True):
            numerator += i * assumed(coef)
        total += 1
        inside += numerator % term.div == 0 and 0 <= numerator // term.div < term.limit
    return inside / max(total, 1)


def guards_first(left: Access, rows: Group) -> Group:
    """The row axes that guards depend on outside the others: then rows of a tile, which follow
    each other along the last axis, are mostly inside or outside together."""
    order = sorted(
        zip(rows.axes, rows.extents, strict=True), key=lambda pair: not guards_axis(left, pair[0])
    )
    return Group(tuple(a for a, _ in order), tuple(e for _, e in order))
