"""Operators.  Importing this package registers every operator record."""

from __future__ import annotations

from graphc.ops import (
    activation,
    arithmetic,
    check,
    linalg,
    logic,
    math,
    reduce,
    shape,
    state,
    statistics,
)

__all__ = [
    "activation",
    "arithmetic",
    "check",
    "linalg",
    "logic",
    "math",
    "reduce",
    "shape",
    "state",
    "statistics",
]
