"""Bind what feeds alone can tell: ranks, and which side of an unknown broadcast has size 1.

    before:  %y: f32[bc(n?1, m?2)] = add(%a: f32[n?1], %b: f32[m?2])      fed sizes 5 and 1
    after:   %c: f32[n?1] = broadcast_to(%b: f32[1])    %y: f32[n?1] = add(%a, %c)

Sizes themselves stay symbolic: a plan is specialised only by ranks and by the outcome of each
`bc(a, b)`.  Also expands deferred operators and makes broadcasting explicit, which later passes
rely on.  Keeps: values, dtypes.  Imports: graph, program, dims, ops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graphc import dims
from graphc.builder import Builder
from graphc.dims import Atom, Dim, DimLike, Sizes
from graphc.errors import ShapeError
from graphc.node import Node, Tensor
from graphc.ops.define import broadcast_shapes
from graphc.ops.linalg import matmul_op
from graphc.ops.shape import broadcast_along
from graphc.ops.state import placeholder_op
from graphc.program import Program, has_dims, keep, map_dims, rewrite
from graphc.types import Shape

Outcome = tuple[Any, ...]
Known = dict[Atom, DimLike]


def bind_ranks(program: Program, ranks: Sequence[int]) -> Program:
    """Give inputs of unknown rank the rank they were fed with, and expand what waited for it."""
    builder = Builder()
    shaped: dict[int, Tensor] = {}
    for t, rank in zip(program.inputs, ranks, strict=True):
        if t.type.shape is None:
            name = t.node.name
            shape = tuple(dims.symbol(f"{name}?r{rank}.{i}") for i in range(rank))
            builder.loc = t.node.loc
            attrs = {"dtype": t.dtype, "shape": shape}
            made = builder.make(placeholder_op, (), attrs, name).outputs[0]
            shaped[t.node.id] = made

    def rule(node: Node, inputs: list[Tensor]) -> Sequence[Tensor] | None:
        if node.id in shaped:
            return (shaped[node.id],)
        if node.op.kind == "deferred":
            return _expand(node, inputs, builder)
        return None

    bound = rewrite(program, rule, builder)
    inputs = tuple(shaped.get(t.node.id, t) for t in program.inputs)
    return Program(inputs, bound.fetches, bound.updates)


def _expand(node: Node, inputs: list[Tensor], builder: Builder) -> Sequence[Tensor]:
    try:
        return (node.op.lower(*inputs, **node.attrs),)
    except ShapeError:
        if _undecided(inputs):
            return keep(node, inputs, builder)
        raise


def _undecided(inputs: Sequence[Tensor]) -> bool:
    return any(t.type.shape is None or any(isinstance(d, Dim) for d in t.dims) for t in inputs)


Meeting = tuple[Dim, DimLike]
"""A size and the different size it is broadcast to: whether it is 1 is not known."""


def unknown_broadcasts(program: Program) -> list[Meeting]:
    """The sizes that may or may not be 1 where they are broadcast, in topological order."""
    found: dict[Meeting, None] = {}
    for node in program.order():
        found.update(dict.fromkeys(node_broadcasts(node)))
    return list(found)


def node_broadcasts(node: Node) -> list[Meeting]:
    """The sizes that may or may not be 1 where this node broadcasts them."""
    return [(d, to) for d, to in _meetings(node) if isinstance(d, Dim) and d is not to]


def _meetings(node: Node) -> Iterator[tuple[DimLike, DimLike]]:
    """(size, size it is broadcast to) for every broadcast in a node."""
    shapes = [t.type.shape for t in node.inputs]
    if any(s is None for s in shapes) or not node.types or node.types[0].shape is None:
        return
    known = [s for s in shapes if s is not None]
    out = node.types[0].shape
    if node.kind == "elementwise":
        for s in known:
            if s is not out:
                yield from zip(s, out[len(out) - len(s) :], strict=True)
    elif node.op.name == "broadcast_to":
        for d, a in zip(known[0], node.attrs["axes"], strict=True):
            yield d, out[a]
    elif node.op is matmul_op:
        for s in known:
            yield from zip(s[:-2], out[len(out) - len(s) : -2], strict=True)
    elif node.op.name == "sum_to_like":
        wide, narrow = known
        yield from zip(narrow, wide[len(wide) - len(narrow) :], strict=True)
    elif node.op.name == "broadcast_like":
        narrow, wide = known
        yield from zip(narrow, wide[len(wide) - len(narrow) :], strict=True)


def broadcast_outcomes(meetings: Sequence[Meeting], sizes: Sizes) -> Outcome:
    """For each meeting, whether the sizes are equal or the first is 1; raises ShapeError.

    Where that cannot be expressed by fixing one symbol in terms of the others (a product of two
    unknowns that is 1, say), the outcome names the sizes of its symbols too.
    """
    outcome: list[Any] = []
    known: Known = {}
    for d, target in meetings:
        a, b = dims.evaluate(d, sizes), dims.evaluate(target, sizes)
        if a != b and a != 1:
            raise ShapeError(
                f"sizes {dims.dim_text(d)} = {a} and {dims.dim_text(target)} = {b} do not broadcast"
            )
        which = "equal" if a == b else "one"
        if _decide(d, target, which, known):
            outcome.append(which)
            continue
        symbols = dims.atoms(d) | dims.atoms(target)
        fixed = tuple((atom, sizes[atom]) for atom in sorted(symbols))
        known.update(fixed)
        outcome.append(fixed)
    return tuple(outcome)


def substitution(meetings: Sequence[Meeting], outcome: Outcome) -> Known:
    """What the outcomes say about symbols."""
    known: Known = {}
    for (d, target), which in zip(meetings, outcome, strict=True):
        if isinstance(which, str):
            _decide(d, target, which, known)
        else:
            known.update(which)
    return {k: _settle(v, known) for k, v in known.items()}


def _decide(d: DimLike, target: DimLike, which: str, known: Known) -> bool:
    """Add to `known` what makes the outcome true; whether that was possible."""
    a = _settle(d, known)
    b = 1 if which == "one" else _settle(target, known)
    if a is not b and a != b:
        _solve(a, b, known)
    after = 1 if which == "one" else _settle(target, known)
    return _settle(d, known) == after


def _settle(d: DimLike, known: Mapping[Atom, DimLike]) -> DimLike:
    for _ in range(64):
        settled = dims.substitute(d, known)
        if settled is d or settled == d:
            return settled
        d = settled
    return d


def _solve(a: DimLike, b: DimLike, known: Known) -> None:
    """Make a == b true by fixing one atom that occurs linearly."""
    difference = dims.add(a, dims.mul(-1, b))
    if isinstance(difference, int):
        return
    for monomial, c in difference.terms:
        if len(monomial) == 1 and abs(c) == 1 and monomial[0] not in known:
            (atom,) = monomial
            rest = dims.add(difference, dims.of_atom(atom, -c))
            value = dims.mul(-c, rest)
            if atom not in _all_atoms(value):
                known[atom] = value
                return


def _all_atoms(d: DimLike) -> set[Atom]:
    found: set[Atom] = set()
    stack = [d]
    while stack:
        e = stack.pop()
        if isinstance(e, Dim):
            for monomial, _ in e.terms:
                for atom in monomial:
                    found.add(atom)
                    stack.extend(atom.args)
    return found


def specialise(program: Program, known: Mapping[Atom, DimLike]) -> Program:
    """Substitute known sizes, expand deferred operators, make broadcasting explicit."""
    known = _with_equal_sizes(program, known)
    builder = Builder()

    def rule(node: Node, inputs: list[Tensor]) -> Sequence[Tensor] | None:
        attrs = _substituted(node.attrs, known)
        if node.op.kind == "deferred":
            return (node.op.lower(*inputs, **attrs),)
        if node.op.kind == "elementwise" and not node.op.stateful:
            inputs = _explicit(node, inputs, builder, attrs)
        elif node.op is matmul_op:
            inputs = _explicit_batch(inputs)
        elif node.op.name == "placeholder_with_default":
            return inputs
        if attrs is node.attrs and not node.inputs:
            return None
        if node.op.stateful and attrs is node.attrs:
            return None
        if attrs is node.attrs:
            return builder.apply_again(node, inputs).outputs
        return builder.make(node.op, inputs, dict(attrs), node.name).outputs

    return rewrite(program, rule, builder)


def _with_equal_sizes(program: Program, known: Mapping[Atom, DimLike]) -> Known:
    """`known` and what follows from sizes that operators need to be equal: feeds are held to it.

    The columns of x in x @ w are the rows of w, say, and so have the size of w's gradient.
    """
    found = dict(known)
    for constraint, _ in program.constraints():
        if constraint.kind == "equal":
            a, b = _settle(constraint.a, found), _settle(constraint.b, found)
            if a is not b and a != b:
                _solve(a, b, found)
    if len(found) == len(known):
        return found
    return {k: _settle(v, found) for k, v in found.items()}


def _substituted(attrs: Mapping[str, Any], known: Mapping[Atom, DimLike]) -> Mapping[str, Any]:
    if not known or not any(has_dims(v) for v in attrs.values()):
        return attrs
    # settled: substituting inside bc(a, bc(b, c)) may make bc(a, c), which is known too
    new = {k: map_dims(v, lambda d: _settle(d, known)) for k, v in attrs.items()}
    return attrs if new == attrs else new


def _explicit(
    node: Node, inputs: list[Tensor], builder: Builder, attrs: Mapping[str, Any]
) -> list[Tensor]:
    shapes = [t.type.shape for t in inputs]
    if shapes.count(shapes[0]) == len(shapes):
        return inputs
    (out,) = node.op.infer([t.type for t in inputs], attrs)
    assert out.shape is not None
    return [broadcast_trailing(t, out.shape) for t in inputs]


def broadcast_trailing(t: Tensor, shape: Shape) -> Tensor:
    """t repeated to `shape` by NumPy's rule, as an explicit view."""
    extra = len(shape) - len(t.dims)
    return broadcast_along(t, shape, tuple(range(extra, len(shape))))


def _explicit_batch(inputs: list[Tensor]) -> list[Tensor]:
    a, b = (t.dims for t in inputs)
    batch = broadcast_shapes([a[:-2], b[:-2]])
    assert batch is not None
    return [broadcast_trailing(t, (*batch, *t.dims[-2:])) for t in inputs]
