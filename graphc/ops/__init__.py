"""Operators.  Importing this package registers every operator record."""

from __future__ import annotations

from graphc.ops import arithmetic, linalg, reduce, shape, state

__all__ = ["arithmetic", "linalg", "reduce", "shape", "state"]
