"""Fewer forms of the same thing, so that later passes need to know only one.

    before:  %s: f32[n,1] = sum(%x: f32[n,1,4]) {axes=(1,2), keepdims=True}
    after:   %t: f32[n] = sum(%x') {axes=(1,), keepdims=False}   %s = reshape(%t)

Reductions drop their axes and never reduce axes of size 1; identity, stop_gradient and defaults
that were not fed vanish; arithmetic on reshaped tensors is done before reshaping.  Keeps: values.
Imports: program, graph, ops.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.builder import Builder
from graphc.node import Node, Tensor
from graphc.ops.create import zeros
from graphc.ops.shape import broadcast_along, broadcast_op, reshape, reshape_op
from graphc.program import Program, rewrite

_TRANSPARENT = ("identity", "stop_gradient", "placeholder_with_default")


def canonicalise(program: Program) -> Program:
    """Rewrite to the forms that fusion knows."""
    builder = Builder()

    def rule(node: Node, inputs: list[Tensor]) -> Sequence[Tensor] | None:
        if node.op.name in _TRANSPARENT:
            return inputs
        if node.kind == "reduce":
            return (_reduction(node, inputs[0], builder),)
        if node.kind == "elementwise" and not node.op.stateful:
            return _before_reshape(node, inputs, builder)
        return None

    return rewrite(program, rule, builder)


def _reduction(node: Node, x: Tensor, builder: Builder) -> Tensor:
    shape = x.dims
    axes = tuple(a for a in node.attrs["axes"] if shape[a] != 1)
    out = node.types[0].shape
    assert out is not None
    if not axes:
        if node.types[0].dtype is not x.dtype:  # the position of the only element
            return zeros(out, node.types[0].dtype)
        return reshape(x, out)
    small = tuple(d for a, d in enumerate(shape) if a in axes or d != 1 or not _dropped(node, a))
    kept = [a for a, d in enumerate(shape) if a in axes or d != 1 or not _dropped(node, a)]
    if len(small) != len(shape):
        x = reshape(x, small)
        axes = tuple(kept.index(a) for a in axes)
    made = builder.make(node.op, (x,), {"axes": axes, "keepdims": False}, node.name).outputs[0]
    return reshape(made, out)


def _before_reshape(node: Node, inputs: list[Tensor], builder: Builder) -> Sequence[Tensor] | None:
    """f(reshape(x), reshape(y), scalar) -> reshape(f(x, y, scalar)).

    A reduction that kept its axes is a reshaped one here; computing before the reshape keeps such
    arithmetic on the reduced shape, where fusion can see it.
    """
    sources = [t.node.inputs[0] if t.node.op is reshape_op else None for t in inputs]
    shapes = [x.dims for x in sources if x is not None]
    if not shapes or any(s != shapes[0] for s in shapes):
        return None
    if any(isinstance(v, tuple) for v in node.attrs.values()):
        return None  # ensure_shape names the shape it is applied at
    moved: list[Tensor] = []
    for t, x in zip(inputs, sources, strict=True):
        if x is not None:
            moved.append(x)
        elif t.node.op is broadcast_op and t.node.inputs[0].dims == ():
            moved.append(broadcast_along(t.node.inputs[0], shapes[0], ()))
        else:
            return None
    made = builder.make(node.op, moved, dict(node.attrs), node.name).outputs[0]
    out = node.types[0].shape
    assert out is not None
    return (reshape(made, out),)


def _dropped(node: Node, axis: int) -> bool:
    return axis in node.attrs["axes"]
