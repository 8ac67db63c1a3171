"""Views of views are one view, and work is done before repeating it rather than after.

    before:  %a: f32[n,4] = broadcast_to(%s: f32[n]) {axes=(0,)}   %l: f32[n,4] = log(%a)
    after:   %l: f32[n] = log(%s)     %a: f32[n,4] = broadcast_to(%l) {axes=(0,)}

Broadcasts keep no axis of size 1.  All rules hold bit for bit.
Imports: rewrite, dims, graph, kernel, ops, types.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from graphc import dims
from graphc.kernel import Expr
from graphc.node import Node, Tensor
from graphc.ops.define import ScalarBuilder
from graphc.rewrite import Match, Rule, X, Y, op, splat_value
from graphc.types import DType, Shape

# ---- identity views ----------------------------------------------------------------------------


def _whole(m: Match) -> Tensor | None:
    """The operand, where the view is all of it in order."""
    node, x = m.root.node, m.root.node.inputs[0]
    attrs = node.attrs
    if x.dims != m.root.dims:
        return None
    rank = len(x.dims)
    if node.op.name == "transpose":
        return x if attrs["perm"] == tuple(range(rank)) else None
    if node.op.name == "broadcast_to":
        return x if attrs["axes"] == tuple(range(rank)) else None
    if node.op.name == "slice":
        forward = all(s == 0 for s in attrs["starts"]) and all(s == 1 for s in attrs["steps"])
        return x if forward else None
    return x


def _splat_view(m: Match) -> Tensor | None:
    """Any view of a constant equal everywhere is that constant in another shape."""
    number = splat_value(m.root)
    if number is None:
        return None
    made = m.splat(number, m.root.dtype, m.root.dims)
    return None if made is m.root else made


# ---- views of views ----------------------------------------------------------------------------


def _inner(m: Match) -> tuple[Node, Tensor]:
    """The view below the root, and what it views."""
    node = m.root.node.inputs[0].node
    return node, node.inputs[0]


def _merge_reshapes(m: Match) -> Tensor:
    _, x = _inner(m)
    return x if x.dims == m.root.dims else m.apply("reshape", x, shape=m.root.dims)


def _merge_transposes(m: Match) -> Tensor:
    node, x = _inner(m)
    perm = tuple(node.attrs["perm"][p] for p in m.root.node.attrs["perm"])
    return m.apply("transpose", x, perm=perm)


def _merge_broadcasts(m: Match) -> Tensor:
    node, x = _inner(m)
    outer = m.root.node.attrs["axes"]
    axes = tuple(outer[a] for a in node.attrs["axes"])
    return m.apply("broadcast_to", x, shape=m.root.dims, axes=axes)


def _merge_slices(m: Match) -> Tensor:
    node, x = _inner(m)
    outer, inner = m.root.node.attrs, node.attrs
    starts = tuple(
        dims.add(s, dims.mul(o, step))
        for s, o, step in zip(inner["starts"], outer["starts"], inner["steps"], strict=True)
    )
    steps = tuple(a * b for a, b in zip(inner["steps"], outer["steps"], strict=True))
    return m.apply("slice", x, starts=starts, sizes=outer["sizes"], steps=steps)


def _broadcast_without_units(m: Match) -> Tensor | None:
    """A broadcast of axes of size 1 is a broadcast without them."""
    x, axes = m.root.node.inputs[0], m.root.node.attrs["axes"]
    kept = tuple(i for i, d in enumerate(x.dims) if d != 1)
    if len(kept) == len(axes):
        return None
    small = m.apply("reshape", x, shape=tuple(x.dims[i] for i in kept))
    target = tuple(axes[i] for i in kept)
    return m.apply("broadcast_to", small, shape=m.root.dims, axes=target)


def _broadcast_of_expanded(m: Match) -> Tensor | None:
    """A reshape that only adds axes of size 1 below a broadcast only places the axes."""
    node, x = _inner(m)
    outer = m.root.node.attrs["axes"]
    kept = tuple(i for i, d in enumerate(node.types[0].shape or ()) if d != 1)
    if x.dims != tuple(node.outputs[0].dims[i] for i in kept):
        return None
    axes = tuple(outer[i] for i in kept)
    return m.apply("broadcast_to", x, shape=m.root.dims, axes=axes)


def _transpose_of_units(m: Match) -> Tensor | None:
    """A transpose that moves only axes of size 1 is a reshape."""
    x, perm = m.root.node.inputs[0], m.root.node.attrs["perm"]
    moved = [p for p in perm if x.dims[p] != 1]
    if moved != sorted(moved):
        return None
    return m.apply("reshape", x, shape=m.root.dims)


VIEW_RULES = (
    *(
        Rule(f"{name}_whole", op(name, X), _whole)
        for name in ("reshape", "transpose", "broadcast_to", "slice")
    ),
    *(
        Rule(f"{name}_splat", op(name, X), _splat_view)
        for name in ("reshape", "transpose", "broadcast_to", "slice")
    ),
    Rule("reshape_reshape", op("reshape", op("reshape", X)), _merge_reshapes),
    Rule("transpose_transpose", op("transpose", op("transpose", X)), _merge_transposes),
    Rule("broadcast_broadcast", op("broadcast_to", op("broadcast_to", X)), _merge_broadcasts),
    Rule("slice_slice", op("slice", op("slice", X)), _merge_slices),
    Rule("broadcast_expanded", op("broadcast_to", op("reshape", X)), _broadcast_of_expanded),
    Rule("broadcast_units", op("broadcast_to", X), _broadcast_without_units),
    Rule("transpose_units", op("transpose", X), _transpose_of_units),
)

# ---- repeating after computing -----------------------------------------------------------------


def sink_broadcasts(m: Match) -> Tensor | None:
    """An elementwise operation on broadcasts computes once what they would repeat.

    Every operand is constant everywhere or a broadcast, and the widest one covers the axes of all.
    Not for operations that can fail: an element that is repeated no times must not be computed.
    """
    node = m.root.node
    if node.kind != "elementwise" or node.op.stateful or not node.inputs:
        return None
    widest = _widest(node.inputs)
    if widest is None or may_fail(node):
        return None
    axes = widest.node.attrs["axes"]
    shape = widest.node.inputs[0].dims
    operands = [_narrowed(t, m, shape, axes) for t in node.inputs]
    small = m.apply(node.op.name, *operands, **node.attrs)
    return m.apply("broadcast_to", small, shape=m.root.dims, axes=axes)


def _widest(operands: Sequence[Tensor]) -> Tensor | None:
    """The broadcast whose axes include those of all the others; None if there is none."""
    found: Tensor | None = None
    for t in operands:
        if t.node.op.name == "broadcast_to":
            if found is None or len(t.node.attrs["axes"]) > len(found.node.attrs["axes"]):
                found = t
        elif splat_value(t) is None:
            return None
    if found is None or not _repeats(found):
        return None
    axes = found.node.attrs["axes"]
    views = [t for t in operands if t.node.op.name == "broadcast_to"]
    fits = all(set(t.node.attrs["axes"]) <= set(axes) and _repeats(t) for t in views)
    return found if fits else None


def _repeats(t: Tensor) -> bool:
    """Whether a broadcast keeps every axis of its operand at its size, and adds an axis."""
    source, axes = t.node.inputs[0].dims, t.node.attrs["axes"]
    return len(source) < len(t.dims) and all(
        d == t.dims[a] for d, a in zip(source, axes, strict=True)
    )


def _narrowed(t: Tensor, m: Match, shape: Shape, axes: tuple[int, ...]) -> Tensor:
    """The operand as it is before the repetition along all axes but `axes`."""
    if t.node.op.name != "broadcast_to":
        return m.splat(splat_value(t), t.dtype, shape)
    x = t.node.inputs[0]
    if t.node.attrs["axes"] == axes:
        return x
    inner = tuple(axes.index(a) for a in t.node.attrs["axes"])
    return m.apply("broadcast_to", x, shape=shape, axes=inner)


def may_fail(node: Node) -> bool:
    """Whether an elementwise operation checks its operands when it runs."""
    if any(isinstance(v, (tuple, dims.Dim)) for v in node.attrs.values()):
        return True  # attributes that hold sizes: checked_index and its like
    attrs = tuple(sorted(node.attrs.items(), key=lambda item: item[0]))
    return _checks(node.op.lower, tuple(t.dtype for t in node.inputs), attrs)


@lru_cache(maxsize=4096)
def _checks(
    lower: object, dtypes: tuple[DType, ...], attrs: tuple[tuple[str, object], ...]
) -> bool:
    assert callable(lower)
    scalars = ScalarBuilder()
    lower(scalars, *[Expr("const", (), i, d) for i, d in enumerate(dtypes)], **dict(attrs))
    return bool(scalars.checks)


# ---- contractions, and reductions that any order gives the same bits ---------------------------


def _swaps_last_two(perm: tuple[int, ...]) -> bool:
    rank = len(perm)
    return rank >= 2 and perm == (*range(rank - 2), rank - 1, rank - 2)


def _absorb_transposes(m: Match) -> Tensor | None:
    """A transposed matrix operand becomes a flag of the product."""
    node = m.root.node
    flags = {"transpose_a": node.attrs["transpose_a"], "transpose_b": node.attrs["transpose_b"]}
    operands = list(node.inputs)
    for i, flag in enumerate(flags):
        source = operands[i].node
        if source.op.name == "transpose" and _swaps_last_two(source.attrs["perm"]):
            operands[i] = source.inputs[0]
            flags[flag] = not flags[flag]
    changed = any(a is not b for a, b in zip(operands, node.inputs, strict=True))
    return m.apply("matmul", *operands, **flags) if changed else None


def _reduce_transposed(m: Match) -> Tensor | None:
    """A reduction of a transpose reduces the operand's own axes, if what is left is in order."""
    node = m.root.node
    if node.op.name in ("sum", "prod") and m.root.dtype.is_float:
        return None  # another order of rounding
    inner = node.inputs[0].node
    perm = inner.attrs["perm"]
    reduced = tuple(perm[a] for a in node.attrs["axes"])
    left = [p for p in perm if p not in reduced]
    if left != sorted(left) or node.attrs["keepdims"]:
        return None
    return m.apply(node.op.name, inner.inputs[0], axes=tuple(sorted(reduced)), keepdims=False)


ORDER_FREE = ("max", "min", "any", "all", "sum", "prod")

MATRIX_RULES = (
    Rule("matmul_transposed", op("matmul", X, Y), _absorb_transposes),
    *(
        Rule(f"{name}_transposed", op(name, op("transpose", X)), _reduce_transposed)
        for name in ORDER_FREE
    ),
)
