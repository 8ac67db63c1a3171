"""Sizes guessed for heuristics: which of two orders or places is better when sizes are unknown.

Never decides what is computed, only how cheaply.  Imports: dims, errors.
"""

from __future__ import annotations

from graphc import dims
from graphc.dims import DimLike, Sizes
from graphc.errors import ShapeError

TYPICAL = 64
"""The size assumed for every unknown dimension of which nothing is known."""


class Estimate:
    """What sizes come to when each unknown dimension has the size in `known`, or else TYPICAL."""

    def __init__(self, known: Sizes | None = None) -> None:
        self.known = dict(known or {})
        self._found: dict[DimLike, int] = {}

    def of(self, size: DimLike) -> int:
        """The guess for one size."""
        if isinstance(size, int):
            return size
        found = self._found.get(size)
        if found is None:
            found = self._found[size] = self._evaluate(size)
        return found

    def _evaluate(self, size: DimLike) -> int:
        guess = {**dict.fromkeys(dims.atoms(size), TYPICAL), **self.known}
        try:
            return max(0, dims.evaluate(size, guess))
        except ShapeError:  # a division that TYPICAL does not satisfy
            return TYPICAL * TYPICAL
