"""Contractions without a matrix in them: a matrix times a vector for each of many channels.

    depthwise convolution    y[n,h,w,c] = sum over i, j of x[n, h+i-1, w+j-1, c] * w[i, j, c]

Nothing of either operand is used for two columns of a channel's product, so nothing repays packing;
the channels lie side by side, so they are the vector axis of a loop kernel.
Imports: kernel, dims.
"""

from __future__ import annotations

from dataclasses import replace

from graphc import dims
from graphc.kernel import Access, Accumulator, Contraction, Expr, LoopKernel, Stage, rebuild


def by_channels(c: Contraction) -> LoopKernel | None:
    """A loop kernel along the last batch axis, if that is what a contraction should be.

    It is one of few axes (see `contraction_axes`).  Each product is rounded before it is added.
    """
    if not c.batch or (dims.product(c.m) != 1 and dims.product(c.n) != 1):
        return None
    vec = len(c.batch) - 1
    accesses = [c.a, c.b, *(s.access for s in c.stores)]
    if not all(_side_by_side(access, vec) for access in accesses):
        return None
    outer = [a for a in range(len(c.axes) - len(c.k)) if a != vec and c.axes[a] != 1]
    red = [a for a in range(len(c.axes) - len(c.k), len(c.axes)) if c.axes[a] != 1]
    if not red:
        red = [len(c.axes) - 1]
    return _loops(c, [*outer, vec], red)


def _side_by_side(access: Access, axis: int) -> bool:
    """Whether steps along an axis move by one element, whatever is inside."""
    moves = [(x, t) for t in access.terms for a, x in t.axes if a == axis]
    return len(moves) == 1 and all(x == 1 and t.stride == 1 and t.limit is None for x, t in moves)


def _loops(c: Contraction, par: list[int], red: list[int]) -> LoopKernel:
    """The kernel over parallel and summed axes, the vector axis last of the parallel ones."""
    number = {a: i for i, a in enumerate((*par, *red))}

    def renumbered(part: object) -> object:
        if isinstance(part, Access):
            return _over(part, number)
        if isinstance(part, Expr) and part.op == "axis":
            if part.value in number:
                return Expr("axis", (), number[part.value], part.dtype)
            return Expr("const", (), 0, part.dtype)
        return None

    made = rebuild(c, renumbered)
    assert isinstance(made, Contraction)
    product = Expr("load", (), (made.a, 0), c.dtype) * Expr("load", (), (made.b, 0), c.dtype)
    first = len(par)
    return LoopKernel(
        tuple(c.axes[a] for a in number),
        tuple(range(first)),
        first - 1,
        c.bufs,
        (
            Stage(tuple(range(first, len(number))), (Accumulator("sum", product, c.dtype),)),
            Stage((), (), made.stores),
        ),
    )


def _over(access: Access, number: dict[int, int]) -> Access:
    """The access over axes of other numbers; those without a number have size 1."""
    terms = (
        replace(t, axes=tuple((number[a], x) for a, x in t.axes if a in number))
        for t in access.terms
    )
    return replace(access, terms=tuple(t for t in terms if t.axes or t.limit is not None))
