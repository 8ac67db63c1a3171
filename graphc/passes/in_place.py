"""May an output of a kernel live in the memory of one of its inputs?

Only if every element is read before it is first overwritten.  In an iteration all expressions come
before the stores, and the elements that different iterations write are different, so it suffices
that each element is read by the iteration that overwrites it, and in no later stage.
Imports: kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.kernel import Access, Contraction, Expr, Kernel, LoopKernel, Stage, Store


def may_share(kernel: Kernel, old: int, new: int) -> bool:
    """Whether buffer `new` may be the same memory as `old`: every element is read only in the
    iteration that overwrites it, and never after."""
    if kernel.bufs[old].itemsize != kernel.bufs[new].itemsize:
        return False
    if isinstance(kernel, Contraction):
        if old in (0, 1):
            return False
        return _stores_match(kernel.stores, old, new, set())
    access: Access | None = None
    at = -1
    for k, stage in enumerate(kernel.stages):
        for store in stage.stores:
            if store.access.buf == new:
                if store.index is not None or store.add:
                    return False
                if access is None:
                    access, at = store.access, k
                elif store.access != access:
                    return False
            elif store.access.buf == old:
                return False
    if access is None or any(t.limit is not None for t in access.terms):
        return False
    if not _covers(kernel, access, kernel.stages[at]):
        return False
    for k, stage in enumerate(kernel.stages):
        for load in _loads_of(stage, old):
            if load is None or (load.terms, load.offset) != (access.terms, access.offset):
                return False
            if k > at:
                return False
    return True


def _covers(kernel: LoopKernel, access: Access, stage: Stage) -> bool:
    """Whether each iteration of the store touches an element of its own."""
    used = {axis for term in access.terms for axis, _ in term.axes}
    moving = [a for a in (*kernel.par, *stage.red) if kernel.axes[a] != 1]
    return all(a in used for a in moving)


def _stores_match(stores: Sequence[Store], old: int, new: int, seen: set[int]) -> bool:
    accesses = [s.access for s in stores if s.access.buf == new]
    if len(accesses) != 1 or any(s.access.buf == old for s in stores):
        return False
    (access,) = accesses
    if any(t.limit is not None for t in access.terms):
        return False
    for s in stores:
        for load in _expr_loads(s.expr, old, seen):
            if load is None or (load.terms, load.offset) != (access.terms, access.offset):
                return False
    return True


def _loads_of(stage: Stage, buf: int) -> list[Access | None]:
    """Accesses to a buffer in a stage; None for one whose index is computed."""
    seen: set[int] = set()
    found: list[Access | None] = []
    for acc in stage.accs:
        found.extend(_expr_loads(acc.expr, buf, seen))
    for store in stage.stores:
        found.extend(_expr_loads(store.expr, buf, seen))
        if store.index is not None:
            found.extend(_expr_loads(store.index, buf, seen))
    return found


def _expr_loads(expr: Expr, buf: int, seen: set[int]) -> list[Access | None]:
    found: list[Access | None] = []
    stack = [expr]
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if e.op in ("load", "gather") and e.value[0].buf == buf:
            found.append(e.value[0] if e.op == "load" else None)
        stack.extend(e.args)
    return found
