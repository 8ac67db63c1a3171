"""Contractions of hardly a matrix each, for many channels or groups of a few of them.

    depthwise   y[n,h,w,c] = sum over i, j of x[n, h+i-1, w+j-1, c] * w[i, j, c]
    groups of   y[n,h,w,4g+o] = sum over i, j, c < 4 of x[n, h+i-1, w+j-1, 4g+c] * w[i, j, c, 4g+o]

What is read is used for few products, so nothing repays packing; but the channels lie side by side,
so they are the vector axis of a loop kernel.  In groups, lanes of one group share an element of x:
their index is lane / 4, rounded down.  Imports: kernel, dims.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from graphc import dims
from graphc.dims import DimLike
from graphc.kernel import (
    Access,
    Accumulator,
    Contraction,
    Expr,
    LoopKernel,
    Stage,
    Store,
    Term,
    expressions_of,
    rebuild,
)

WIDEST = 4
"""Most columns of a group: a matrix kernel is better at more."""

SIDE_BY_SIDE = 4
"""Most sums that share what they read."""

LONG = 64
"""Terms of a sum from which on it pays to take several at once."""


def along_channels(c: Contraction) -> Contraction | None:
    """The contraction with channels along its last batch axis, if loops along them suit it best.

    It is one of few axes (see `contraction_axes`), and remains one, but for loads of A whose index
    is rounded down.
    """
    if not c.batch:
        return None
    if dims.product(c.n) == 1 or dims.product(c.m) == 1:
        vec = len(c.batch) - 1
        accesses = [c.b, *(s.access for s in c.stores)]
        near = _step(c.a, vec) <= WIDEST and all(_step(x, vec) == 1 for x in accesses)
        return c if near else None
    return _merged_groups(c)


def _step(access: Access, axis: int) -> float:
    """By how many elements a step along an axis moves, whatever is inside; without end if that is
    not known, or not so."""
    moves = [(x, t) for t in access.terms for a, x in t.axes if a == axis]
    if len(moves) != 1 or moves[0][1].limit is not None:
        return math.inf
    step = dims.mul(moves[0][0], moves[0][1].stride)
    return abs(step) if isinstance(step, int) else math.inf


# ---- groups ------------------------------------------------------------------------------------


def _merged_groups(c: Contraction) -> Contraction | None:
    """The contraction with the columns of its groups along the last batch axis, n being 1."""
    group = len(c.batch) - 1
    columns = list(range(len(c.batch) + len(c.m), len(c.axes) - len(c.k)))
    width = dims.product(c.n)
    if len(columns) != 1 or not isinstance(width, int) or not 1 < width <= WIDEST:
        return None
    if any(e.op == "axis" and e.value in (group, *columns) for e in expressions_of(c)):
        return None
    wide = [c.b, *(s.access for s in c.stores)]
    if not all(_merges(x, group, columns[0], width) for x in wide):
        return None

    def merged(part: object) -> object:
        return _merged(part, group, columns[0], width) if isinstance(part, Access) else None

    try:
        made = rebuild(c, merged)
    except _Apart:
        return None
    assert isinstance(made, Contraction)
    batch = (*c.batch[:-1], dims.mul(c.batch[-1], width))
    return replace(made, batch=batch, n=(1,))


class _Apart(Exception):
    """An access walks groups and their columns in no order that lanes can."""


def _stride(access: Access, axis: int) -> DimLike:
    found: DimLike = 0
    for term in access.terms:
        for a, x in term.axes:
            if a == axis:
                if term.limit is not None:
                    raise _Apart
                found = dims.add(found, dims.mul(x, term.stride))
    return found


def _merges(access: Access, group: int, column: int, width: int) -> bool:
    """Whether the columns of all groups lie side by side."""
    try:
        one, many = _stride(access, column), _stride(access, group)
    except _Apart:
        return False
    return one == 1 and many == width


def _merged(access: Access, group: int, column: int, width: int) -> Access:
    one, many = _stride(access, column), _stride(access, group)
    rest = tuple(t for t in access.terms if not {a for a, _ in t.axes} & {group, column})
    if many == dims.mul(one, width):
        moved = (Term(((group, 1),), one),) if one != 0 else ()
    elif one == 0:
        moved = (Term(((group, 1),), many, 0, width),)
    else:
        raise _Apart
    return replace(access, terms=(*rest, *moved))


# ---- loops -------------------------------------------------------------------------------------


def loops(c: Contraction) -> LoopKernel:
    """The kernel of a contraction `along_channels`.  Each product is rounded before it is added."""
    return numbered_loops(c)[0]


def numbered_loops(c: Contraction) -> tuple[LoopKernel, Mapping[int, int]]:
    """The kernel, and what numbers the contraction's axes have in it; those of size 1 have none."""
    vec = len(c.batch) - 1
    inner = len(c.axes) - len(c.k)
    par = [a for a in range(inner) if a != vec and c.axes[a] != 1]
    red = [a for a in range(inner, len(c.axes)) if c.axes[a] != 1] or [inner]
    shared = _shared_axis(c, par)
    parts = [c]
    if shared is not None:
        extent = c.axes[shared]
        assert isinstance(extent, int)
        parts = [_fixed(c, shared, i) for i in range(extent)]
        par.remove(shared)
    par.append(vec)
    number = {a: i for i, a in enumerate((*par, *red))}
    parts = [renumbered(part, number) for part in parts]
    accs: list[Accumulator] = []
    stores: list[Store] = []
    for part in parts:
        product = Expr("load", (), (part.a, 0), c.dtype) * Expr("load", (), (part.b, 0), c.dtype)
        accs.append(Accumulator("sum", product, c.dtype))
        stores += part.stores
    stages = (
        Stage(tuple(range(len(par), len(number))), tuple(accs)),
        Stage((), (), tuple(stores)),
    )
    extents = tuple(c.axes[a] for a in number)
    kernel = LoopKernel(extents, tuple(range(len(par))), len(par) - 1, c.bufs, stages)
    return kernel, number


def _shared_axis(c: Contraction, par: Sequence[int]) -> int | None:
    """A short axis whose sums read the same elements of B, if they are long."""
    terms = dims.product(c.k)
    if isinstance(terms, int) and terms < LONG:
        return None
    moving = {a for t in c.b.terms for a, _ in t.axes}
    for a in reversed(par):
        extent = c.axes[a]
        if a not in moving and isinstance(extent, int) and extent <= SIDE_BY_SIDE:
            return a
    return None


def _fixed(c: Contraction, axis: int, index: int) -> Contraction:
    """The contraction at one index of an axis, whose sum has the index as its number."""

    def changed(part: object) -> object:
        if isinstance(part, Access):
            return _access_at(part, axis, index)
        if isinstance(part, Expr) and part.op == "axis" and part.value == axis:
            return Expr("const", (), index, part.dtype)
        if isinstance(part, Expr) and part.op == "acc":
            return Expr("acc", (), index, part.dtype)
        return None

    made = rebuild(c, changed)
    assert isinstance(made, Contraction)
    return made


def _access_at(access: Access, axis: int, index: int) -> Access:
    offset = access.offset
    terms = []
    for t in access.terms:
        moved = dims.total(dims.mul(x, index) for a, x in t.axes if a == axis)
        rest = tuple((a, x) for a, x in t.axes if a != axis)
        if t.limit is not None:
            terms.append(replace(t, axes=rest, shift=dims.add(t.shift, moved)))
            continue
        offset = dims.add(offset, dims.mul(moved, t.stride))
        if rest:
            terms.append(replace(t, axes=rest))
    return Access(access.buf, tuple(terms), offset)


def renumbered(c: Contraction, number: Mapping[int, int]) -> Contraction:
    """The contraction's accesses over axes of other numbers; those without one have size 1."""

    def changed(part: object) -> object:
        if isinstance(part, Access):
            terms = (
                replace(t, axes=tuple((number[a], x) for a, x in t.axes if a in number))
                for t in part.terms
            )
            return replace(part, terms=tuple(t for t in terms if t.axes or t.limit is not None))
        if isinstance(part, Expr) and part.op == "axis":
            if part.value in number:
                return Expr("axis", (), number[part.value], part.dtype)
            return Expr("const", (), 0, part.dtype)
        return None

    made = rebuild(c, changed)
    assert isinstance(made, Contraction)
    return made
