"""Symbolic differentiation, graph to graph: reverse mode, and forward mode from it.

Every cotangent is built with graph operators, so gradients differentiate again, to any order.

Safe gradients: a VJP rule is linear in the cotangent.  A cotangent that is `where(c, g, 0)` travels
as the pair (g, c): rules are applied to g, and the select is made at the end, so the untaken branch
is an exact zero; 0 * inf in a rule would be NaN.  Graphs without `where` pay nothing.
Imports: graph, ops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graphc.errors import GradientError
from graphc.graph import Graph, get_default_graph
from graphc.node import Node, Tensor, describe, topological
from graphc.ops.arithmetic import add, astype, not_equal, where
from graphc.ops.define import as_tensor, constant
from graphc.ops.logic import bitwise_and, bitwise_or, invert
from graphc.ops.reduce import unreduce
from graphc.ops.shape import broadcast_like, sum_to_like
from graphc.ops.state import identity

UNCONNECTED_NONE = "none"
UNCONNECTED_ZERO = "zero"


def gradients(
    ys: Any,
    xs: Any,
    grad_ys: Any = None,
    stop_gradients: Any = None,
    unconnected_gradients: str = UNCONNECTED_NONE,
    name: str = "gradients",
) -> list[Tensor | None]:
    """d(sum of all elements of ys) / dx for each x, as tensors of the same graph.

    ys, xs            a tensor or a sequence of tensors
    grad_ys           weights, one per y, of the y's shape (None: ones)
    stop_gradients    tensors taken as constants
    unconnected_gradients  'none' (None for an x that no y depends on) or 'zero'
    Returns a list, one entry per x, of the x's shape.
    Raises GradientError where an operator on the path has no gradient.
    """
    y_list, x_list = _listed(ys), _listed(xs)
    for x in x_list:
        if not isinstance(x, Tensor):
            raise GradientError(f"cannot differentiate with respect to {x!r}")
    if unconnected_gradients not in (UNCONNECTED_NONE, UNCONNECTED_ZERO):
        raise GradientError(
            f"unconnected_gradients is 'none' or 'zero', not {unconnected_gradients!r}"
        )
    graph = get_default_graph()
    with graph.name_scope(name), graph.control_dependencies(None):
        seeds = _seeds(y_list, grad_ys)
        stopped = {id(t) for t in _listed(stop_gradients)} if stop_gradients is not None else set()
        found = backpropagate(list(zip(y_list, seeds, strict=True)), x_list, stopped, graph)
        if unconnected_gradients == UNCONNECTED_ZERO:
            return [zeros_for(x) if g is None else g for g, x in zip(found, x_list, strict=True)]
    return found


def zeros_for(x: Tensor) -> Tensor:
    """Zeros of the shape and dtype of x."""
    return broadcast_like(constant(0, x.dtype), x)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _seeds(ys: Sequence[Tensor], grad_ys: Any) -> list[Tensor]:
    given = [None] * len(ys) if grad_ys is None else _listed(grad_ys)
    if len(given) != len(ys):
        raise GradientError(f"{len(given)} grad_ys for {len(ys)} ys")
    seeds = []
    for y, g in zip(ys, given, strict=True):
        if not isinstance(y, Tensor):
            raise GradientError(f"cannot differentiate {y!r}")
        if not y.dtype.is_float:
            raise GradientError(f"cannot differentiate {describe(y)}: its dtype is not a float")
        if g is None:
            seeds.append(broadcast_like(constant(1, y.dtype), y))
            continue
        seed = as_tensor(g, y.dtype)
        if seed.type.shape != y.type.shape and seed.type.shape is not None:
            if y.type.shape is not None and len(seed.type.shape) > len(y.type.shape):
                raise GradientError(f"grad_ys of type {seed.type} for a y of type {y.type}")
            seed = broadcast_like(seed, y)
        seeds.append(seed)
    return seeds


def backpropagate(
    seeds: Sequence[tuple[Tensor, Tensor]],
    xs: Sequence[Tensor],
    stopped: set[int],
    graph: Graph | None,
) -> list[Tensor | None]:
    """Cotangents of xs from cotangents of ys; linear in the number of nodes between them."""
    order = topological([y.node for y, _ in seeds], control=False)
    wanted = {id(x) for x in xs}
    reaches = _reaching(order, wanted, stopped)
    parts: dict[int, list[Cotangent]] = {}
    for y, g in seeds:
        parts.setdefault(id(y), []).append(Cotangent(g))
    for node in reversed(order):
        if node.id not in reaches:
            continue
        gs = [_total(parts, t) for t in node.outputs]
        if all(g is None for g in gs):
            continue
        override = graph.gradient_rules.get(node.id) if graph is not None else None
        for t, c in zip(node.inputs, _pull(node, gs, override), strict=True):
            if c is None or id(t) in stopped:
                continue
            if t.node.id in reaches or id(t) in wanted:
                fitted = _fit(c, node, t, t.node.id in reaches)
                parts.setdefault(id(t), []).append(fitted)
    totals = [_total(parts, x) for x in xs]
    return [None if g is None else g.tensor() for g in totals]


def _reaching(order: Sequence[Node], wanted: set[int], stopped: set[int]) -> set[int]:
    """Ids of nodes that have a wanted tensor among the tensors they are computed from."""
    reaches: set[int] = set()
    for node in order:
        for t in node.inputs:
            if id(t) in stopped or not t.dtype.is_float:
                continue
            if id(t) in wanted or t.node.id in reaches:
                reaches.add(node.id)
                break
    return reaches


# ---- cotangents that know where they are zero --------------------------------------------------


@dataclass(frozen=True)
class Cotangent:
    """`value` where the bool `keep` holds (everywhere if None), and 0 elsewhere.

    Where `keep` is false `value` means nothing and may be NaN.  `keep` broadcasts to `value`.
    """

    value: Tensor
    keep: Tensor | None = None

    def tensor(self) -> Tensor:
        """The cotangent with its zeros in place."""
        if self.keep is None:
            return self.value
        if self.keep.node.op.name == "invert":
            return where(self.keep.node.inputs[0], 0, self.value)
        return where(self.keep, self.value, 0)


def _total(parts: dict[int, list[Cotangent]], t: Tensor) -> Cotangent | None:
    """The sum of what arrived at t, kept for the next who asks."""
    found = parts.get(id(t))
    if not found:
        return None
    by_mask: dict[int, list[Cotangent]] = {}
    for c in found:
        by_mask.setdefault(id(c.keep), []).append(c)
    total = _summed([_summed(group) for group in by_mask.values()])
    parts[id(t)] = [total]
    return total


def _summed(terms: list[Cotangent]) -> Cotangent:
    while len(terms) > 1:  # pairwise, so that a tensor used n times costs a tree of depth log n
        paired = [_plus(a, b) for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = paired + ([terms[-1]] if len(terms) % 2 else [])
    return terms[0]


def _plus(a: Cotangent, b: Cotangent) -> Cotangent:
    if a.keep is b.keep:
        return Cotangent(add(a.value, b.value), a.keep)
    keep = None
    if a.keep is not None and b.keep is not None and not _complementary(a.keep, b.keep):
        keep = bitwise_or(a.keep, b.keep)
    return Cotangent(add(a.tensor(), b.tensor()), keep)


def _complementary(a: Tensor, b: Tensor) -> bool:
    """Whether one is the negation of the other, as for the two branches of a `where`."""
    return any(p.node.op.name == "invert" and p.node.inputs[0] is q for p, q in ((a, b), (b, a)))


# ---- applying rules ----------------------------------------------------------------------------


def _pull(
    node: Node, gs: Sequence[Cotangent | None], override: Callable[..., Any] | None
) -> list[Cotangent | None]:
    """One cotangent per input, before un-broadcasting."""
    rule = override or node.op.vjp
    if rule is None:
        return [None] * len(node.inputs)
    if override is not None or len(node.outputs) > 1:
        # the user's rule need not be linear in g, so it sees g with its zeros
        dense = tuple(None if g is None else g.tensor() for g in gs)
        if len(dense) == 1:
            return _plain(node, rule(node.outputs[0], dense[0], *node.inputs))
        return _plain(node, rule(node.outputs, dense, *node.inputs))
    (g,) = gs
    assert g is not None
    y = node.outputs[0]
    if node.op.name == "where":
        condition = node.inputs[0]
        return [
            None,
            Cotangent(g.value, _both(condition, g.keep)),
            Cotangent(g.value, _both(invert(condition), g.keep)),
        ]
    if node.kind == "elementwise":
        return [
            None if c is None else Cotangent(c.value, g.keep)
            for c in _plain(node, rule(y, g.value, *node.inputs))
        ]
    results = _plain(node, rule(y, g.tensor(), *node.inputs))
    if g.keep is None:
        return results
    return [
        None if c is None else Cotangent(c.value, _moved(node, g.keep, x, rule))
        for c, x in zip(results, node.inputs, strict=True)
    ]


def _plain(node: Node, results: Sequence[Tensor | None]) -> list[Cotangent | None]:
    if len(results) != len(node.inputs):
        raise GradientError(
            f"the gradient rule of {node.op.name} gave {len(results)} cotangents for "
            f"{len(node.inputs)} inputs ({node.loc})"
        )
    return [
        None if c is None or not x.dtype.is_float else Cotangent(c)
        for c, x in zip(results, node.inputs, strict=True)
    ]


def _both(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else bitwise_and(a, b)


MOVES = frozenset(
    {"sum_to_like", "broadcast_like", "reshape_like", "unreduce", "expand_dims", "squeeze"}
)
"""Deferred operators that, like views, only move and add up elements."""


def _moved(node: Node, keep: Tensor, x: Tensor, rule: Callable[..., Any]) -> Tensor | None:
    """Where the cotangent of x may differ from 0, given where that of the node's output may.

    Through a view the mask is pulled back as a cotangent of ones and zeros would be; through a
    reduction each element follows its sum; through anything else nothing is known.
    """
    y = node.outputs[0]
    if node.kind == "reduce":
        attrs = node.attrs
        whole = broadcast_like(keep, y)
        return unreduce(whole, x, axes=attrs["axes"], keepdims=attrs["keepdims"])
    if node.kind != "view" and node.op.name not in MOVES:
        return None
    if x is not node.inputs[0]:
        return None
    ones = broadcast_like(astype(keep, x.dtype), y)
    pulled: Tensor = not_equal(rule(y, ones, *node.inputs)[0], 0)
    return pulled


def _fit(c: Cotangent, node: Node, x: Tensor, continues: bool) -> Cotangent:
    """Undo broadcasting: the cotangent gets the shape of its operand.

    The mask is summed too if a rule will still be applied to the result (`continues`).
    """
    shape = c.value.type.shape
    if shape is not None and shape == x.type.shape:
        return c
    total = sum_to_like(c.tensor(), x)
    if c.keep is None or not continues or node.kind != "elementwise":
        return Cotangent(total)
    counts = sum_to_like(broadcast_like(astype(c.keep, x.dtype), node.outputs[0]), x)
    return Cotangent(total, not_equal(counts, 0))


# ---- what is built from reverse mode -----------------------------------------------------------


def vjp(ys: Any, xs: Any, cotangents: Any) -> list[Tensor | None]:
    """The vector-Jacobian product: cotangents of ys pulled back to xs (Theano's Lop)."""
    return gradients(ys, xs, grad_ys=cotangents)


def jvp(ys: Any, xs: Any, tangents: Any) -> list[Tensor | None]:
    """The Jacobian-vector product: tangents of xs pushed forward to ys (Theano's Rop).

    Built as the transpose of the transpose: vjp is linear in its cotangent u, so differentiating
    it by u and seeding with the tangents gives J·v.
    """
    y_list, x_list = _listed(ys), _listed(xs)
    graph = get_default_graph()
    with graph.name_scope("jvp"):
        dummies = [zeros_for(y) for y in y_list]
        dummies = [identity(d) for d in dummies]  # tensors of their own to differentiate by
        pulled = gradients(y_list, x_list, grad_ys=dummies)
        used = [(p, t) for p, t in zip(pulled, _listed(tangents), strict=True) if p is not None]
        if not used:
            return [None] * len(y_list)
        return gradients([p for p, _ in used], dummies, grad_ys=[t for _, t in used])


def hessian_vector_product(y: Tensor, xs: Any, vectors: Any) -> list[Tensor | None]:
    """H·v of a scalar y, without forming H: the gradient of (gradient · v)."""
    x_list = _listed(xs)
    first = gradients(y, x_list)
    connected = [(g, v) for g, v in zip(first, _listed(vectors), strict=True) if g is not None]
    if not connected:
        return [None] * len(x_list)
    return gradients([g for g, _ in connected], x_list, grad_ys=[v for _, v in connected])
