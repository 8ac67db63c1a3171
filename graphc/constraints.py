"""Relations between sizes that are not known yet, stated by an operator's infer function.

Infer functions call `require_equal` and its like: sizes that are known are compared at once, the
rest become `Constraint`s of the node being made and are checked when sizes are bound.
Imports: dims, errors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from graphc.dims import DimLike
from graphc.errors import ShapeError


@dataclass(frozen=True)
class Constraint:
    """A relation between sizes that could not be decided when the node was made.

    kind 'equal': a == b.  'multiple': b divides a.  'at_least': a >= b.
    """

    kind: str
    a: DimLike
    b: DimLike
    message: str


class _Pending(threading.local):
    """Constraints raised by the infer function that is running in this thread."""

    def __init__(self) -> None:
        self.constraints: list[Constraint] = []


_pending = _Pending()


Inferred = TypeVar("Inferred")


def collected(
    infer: Callable[..., Inferred], *args: Any
) -> tuple[Inferred, tuple[Constraint, ...]]:
    """What an infer function says of its arguments, and the constraints it states meanwhile."""
    outer, _pending.constraints = _pending.constraints, []
    try:
        return infer(*args), tuple(_pending.constraints)
    finally:
        _pending.constraints = outer


def require_equal(a: DimLike, b: DimLike, message: str) -> None:
    """State that two sizes are equal: raises ShapeError now, or constrains the node being made."""
    if a is b or a == b:
        return
    if isinstance(a, int) and isinstance(b, int):
        raise ShapeError(message)
    _pending.constraints.append(Constraint("equal", a, b, message))


def require_multiple(a: DimLike, b: DimLike, message: str) -> None:
    """State that b divides a (both ints: now; otherwise when sizes are bound)."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0 or a % b:
            raise ShapeError(message)
        return
    _pending.constraints.append(Constraint("multiple", a, b, message))


def require_at_least(a: DimLike, b: DimLike, message: str) -> None:
    """State that a >= b (both ints: now; otherwise when sizes are bound)."""
    if isinstance(a, int) and isinstance(b, int):
        if a < b:
            raise ShapeError(message)
        return
    _pending.constraints.append(Constraint("at_least", a, b, message))
