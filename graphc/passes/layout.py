"""Transposes move behind elementwise operations until they meet their inverse and vanish.

    before:  %1: f32[C,N] = transpose(%x) {perm=(1,0)}     after:  %1: f32[N,C] = tanh(%x)
             %2: f32[C,N] = tanh(%1)
             %3: f32[N,C] = transpose(%2) {perm=(1,0)}

Moving one that meets nothing would only make a copy, so the result is taken only where it has
fewer transposes than the program had.  Keeps: values.  Imports: rewrite, program, simplify_views.
"""

from __future__ import annotations

from graphc.node import Tensor
from graphc.passes.simplify_views import MATRIX_RULES, VIEW_RULES
from graphc.program import Program
from graphc.rewrite import Match, apply_rules, splat_value

Perm = tuple[int, ...]


def cancel_transposes(program: Program) -> Program:
    """Move transposes towards the outputs where that cancels some of them."""
    before = _transposes(program)
    if before < 2:
        return program
    moved = apply_rules(program, (*VIEW_RULES, *MATRIX_RULES), (push_transposes,))
    return moved if _transposes(moved) < before else program


def _transposes(program: Program) -> int:
    return sum(node.op.name == "transpose" for node in program.order())


def push_transposes(m: Match) -> Tensor | None:
    """elementwise(transpose(x), transpose(y)) as transpose(elementwise(x, y)).

    Every operand is transposed alike, a constant, or a broadcast whose axes stay in order.
    """
    node = m.root.node
    if node.kind != "elementwise" or node.op.stateful:
        return None
    if any(isinstance(v, tuple) for v in node.attrs.values()):
        return None  # ensure_shape names the shape it is applied at
    first = next((t.node for t in node.inputs if t.node.op.name == "transpose"), None)
    if first is None:
        return None
    perm: Perm = first.attrs["perm"]
    operands = [_untransposed(m, t, perm) for t in node.inputs]
    known = [t for t in operands if t is not None]
    if len(known) < len(operands):
        return None
    inner = m.apply(node.op.name, *known, **node.attrs)
    return m.apply("transpose", inner, perm=perm)


def _untransposed(m: Match, t: Tensor, perm: Perm) -> Tensor | None:
    """The tensor whose transpose by `perm` is t, if that takes no work."""
    node = t.node
    if node.op.name == "transpose":
        return node.inputs[0] if node.attrs["perm"] == perm else None
    shape = tuple(t.dims[perm.index(a)] for a in range(len(perm)))
    number = splat_value(t)
    if number is not None:
        return m.splat(number, t.dtype, shape)
    if node.op.name != "broadcast_to":
        return None
    axes = tuple(perm[a] for a in node.attrs["axes"])
    if axes != tuple(sorted(axes)):
        return None
    return m.apply("broadcast_to", node.inputs[0], shape=shape, axes=axes)
