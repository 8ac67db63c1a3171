"""Iterations of a reduction that add nothing: they are skipped rather than computed.

An element outside its guards is a fill value.  Where the fill makes an iteration's value the one
its accumulator began with, as a sum's zero does, a branch around it saves the work; a window of
stride s looks at s times as many neighbours along each axis as it has.  The bits are the same.
Imports: reducers, kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.backends.codegen.reducers import identity, is_arg
from graphc.kernel import Access, Accumulator, Expr

GuardOf = Callable[[Access], "str | None"]
"""What must hold for an access, so far, to be inside: the name of an i1, or None."""


def skipping_guard(accs: Sequence[Accumulator], guard_of: GuardOf) -> str | None:
    """An i1 without which no accumulator changes, if there is one."""
    if not accs:
        return None
    for guard in dict.fromkeys(guard_of(a) for a in _loads(accs[0].expr)):
        if guard is not None and all(_is_neutral(acc, guard, guard_of) for acc in accs):
            return guard
    return None


def _loads(expr: Expr) -> list[Access]:
    """The places an expression of loads and choices reads."""
    if expr.op == "load":
        return [expr.value[0]]
    return [a for x in expr.args for a in _loads(x)] if expr.op in ("select", "eq") else []


def _is_neutral(acc: Accumulator, guard: str, guard_of: GuardOf) -> bool:
    """Whether an iteration without the guard leaves the accumulator as it is."""
    if is_arg(acc) or acc.expr.dtype is not acc.dtype:
        return False
    value = _outside(acc.expr, guard, guard_of)
    return value is not None and value == identity(acc.op, acc.dtype)


def _outside(expr: Expr, guard: str, guard_of: GuardOf) -> float | None:
    """The number an expression is where the guard does not hold; None if it depends."""
    if expr.op == "const":
        return float(expr.value)
    if expr.op == "load":
        access, fill = expr.value
        return float(fill) if guard_of(access) == guard else None
    if expr.op == "select":
        yes, no = (_outside(x, guard, guard_of) for x in expr.args[1:])
        return yes if yes == no else None
    return None
