"""Symbolic differentiation, graph to graph: reverse mode, and forward mode from it.

Every cotangent is built with graph operators, so gradients differentiate again, to any order.

Safe gradients: a VJP rule is linear in the cotangent.  Where a cotangent is `where(c, g, 0)` the
rule is applied to g and its results are wrapped in the same select, so the untaken branch stays an
exact zero: 0 * inf in the next rule would be NaN.  Imports: graph, ops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from graphc.errors import GradientError
from graphc.graph import Graph, Node, Tensor, describe, get_default_graph, topological
from graphc.ops.arithmetic import add, where
from graphc.ops.define import as_tensor, constant
from graphc.ops.shape import broadcast_like, sum_to_like
from graphc.ops.state import identity

Cotangents = list[Tensor | None]

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
        raise GradientError(f"unconnected_gradients is 'none' or 'zero', not "
                            f"{unconnected_gradients!r}")
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
    cotangents: dict[int, list[Tensor]] = {}
    for y, g in seeds:
        cotangents.setdefault(id(y), []).append(g)
    for node in reversed(order):
        if node.id not in reaches:
            continue
        gs = [_total(cotangents, t) for t in node.outputs]
        if all(g is None for g in gs):
            continue
        for t, c in zip(node.inputs, _apply_rule(node, gs, graph), strict=True):
            if c is None or id(t) in stopped:
                continue
            if t.node.id in reaches or id(t) in wanted:
                cotangents.setdefault(id(t), []).append(c)
    return [_total(cotangents, x) for x in xs]


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


def _total(cotangents: dict[int, list[Tensor]], t: Tensor) -> Tensor | None:
    parts = cotangents.get(id(t))
    if not parts:
        return None
    while len(parts) > 1:  # pairwise, so that a tensor used n times costs a tree of depth log n
        paired = [add(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = paired + ([parts[-1]] if len(parts) % 2 else [])
    cotangents[id(t)] = parts
    return parts[0]


def _apply_rule(node: Node, gs: Cotangents, graph: Graph | None) -> Cotangents:
    rule = graph.gradient_rules.get(node.id) if graph is not None else None
    rule = rule or node.op.vjp
    if rule is None:
        return [None] * len(node.inputs)
    if len(node.outputs) > 1:
        results: Cotangents = list(rule(node.outputs, tuple(gs), *node.inputs))
        return _fit(node, results)
    (g,) = gs
    assert g is not None
    if node.op.name == "where":
        return _fit(node, list(rule(node.outputs[0], g, *node.inputs)))
    masks, inner = _strip_selects(g)
    results = list(rule(node.outputs[0], inner, *node.inputs))
    if masks and node.kind in ("elementwise", "view"):
        results = _rewrap(node, results, masks, g, rule)
    elif masks:
        results = list(rule(node.outputs[0], g, *node.inputs))
    return _fit(node, results)


Mask = tuple[Tensor, bool]  # (condition, whether the cotangent lives where it is true)


def _strip_selects(g: Tensor) -> tuple[list[Mask], Tensor]:
    """Peel `where(c, g, 0)` and `where(c, 0, g)` off a cotangent."""
    masks: list[Mask] = []
    while g.node.op.name == "where":
        condition, a, b = g.node.inputs
        if _is_zero(b) and _same_shape(a, g):
            masks.append((condition, True))
            g = a
        elif _is_zero(a) and _same_shape(b, g):
            masks.append((condition, False))
            g = b
        else:
            break
    return masks, g


def _same_shape(a: Tensor, b: Tensor) -> bool:
    return a.type.shape is not None and a.type.shape == b.type.shape


def _is_zero(t: Tensor) -> bool:
    node = t.node
    while node.op.name in ("broadcast_to", "broadcast_like", "reshape", "cast"):
        node = node.inputs[0].node
    if node.op.name != "constant":
        return False
    array = node.attrs["value"].array
    return bool(array.size and not array.any())


def _rewrap(
    node: Node,
    results: Cotangents,
    masks: Sequence[Mask],
    g: Tensor,
    rule: Callable[..., Any],
) -> Cotangents:
    """Put the selects back around each result; through a view, the mask is viewed likewise."""
    if node.kind == "view" and node.op.name not in ("reshape", "transpose"):
        # adding up exact zeros cannot make a NaN
        return list(rule(node.outputs[0], g, *node.inputs))
    if node.kind == "view":
        masks = [(rule(node.outputs[0], m, *node.inputs)[0], when) for m, when in masks]
    wrapped: Cotangents = []
    for c in results:
        if c is not None:
            for condition, when in reversed(masks):
                zero = constant(0, c.dtype)
                c = where(condition, c, zero) if when else where(condition, zero, c)
        wrapped.append(c)
    return wrapped


def _fit(node: Node, results: Cotangents) -> Cotangents:
    """Undo broadcasting: each cotangent gets the shape and dtype of its operand."""
    if len(results) != len(node.inputs):
        raise GradientError(
            f"the gradient rule of {node.op.name} gave {len(results)} cotangents for "
            f"{len(node.inputs)} inputs ({node.loc})"
        )
    fitted: Cotangents = []
    for c, x in zip(results, node.inputs, strict=True):
        if c is None or not x.dtype.is_float:
            fitted.append(None)
        elif c.type.shape is not None and c.type.shape == x.type.shape:
            fitted.append(c)
        else:
            fitted.append(sum_to_like(c, x))
    return fitted


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
