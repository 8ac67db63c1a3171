"""Sizes guessed for heuristics: which of two orders or slots is smaller when sizes are unknown.

Never decides what is computed, only how cheaply.  Imports: dims, errors.
"""

from __future__ import annotations

from graphc import dims
from graphc.dims import DimLike
from graphc.errors import ShapeError

TYPICAL = 64
"""The size assumed for every unknown dimension."""

_found: dict[DimLike, int] = {}
_LIMIT = 100_000


def typical(size: DimLike) -> int:
    """What a size comes to when every unknown dimension is TYPICAL."""
    if isinstance(size, int):
        return size
    known = _found.get(size)
    if known is None:
        try:
            known = dims.evaluate(size, dict.fromkeys(dims.atoms(size), TYPICAL))
        except ShapeError:  # a division that TYPICAL does not satisfy
            known = TYPICAL * TYPICAL
        if len(_found) > _LIMIT:
            _found.clear()
        _found[size] = known
    return known
