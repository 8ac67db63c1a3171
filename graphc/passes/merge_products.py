"""Products of many matrices with one are one product, where nothing has to be moved for it.

A recurrent network applies one matrix to its input of every step, and its gradient another to every
step's gradient: few rows at a time, for each of which the whole matrix has to be read.  Nothing
waits that did not: pieces of a tensor come from it all, and a concatenation needs all its parts.
Keeps every bit: each element is the same sum in the same order.  Linear in the number of nodes.
Imports: program, rewrite, pieces, estimate, simplify_views, ops.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from graphc import dims
from graphc.builder import Builder
from graphc.dims import DimLike
from graphc.node import Node, Tensor
from graphc.ops.arithmetic import add
from graphc.ops.linalg import matmul_op
from graphc.ops.shape import broadcast_along, reshape
from graphc.passes.estimate import Estimate
from graphc.passes.pieces import (
    Piece,
    are_consecutive,
    cut_out,
    join,
    piece_of,
    runs,
    without,
)
from graphc.passes.simplify_views import VIEW_RULES
from graphc.program import Program, rewrite
from graphc.rewrite import apply_rules
from graphc.types import Shape

MANY_ROWS = 256
"""Rows with which a product is no faster for having more."""


def matrix_below(t: Tensor) -> Tensor | None:
    """The matrix that t is, or repeats along leading axes; None if it is several."""
    if len(t.dims) == 2:
        return t
    node, rank = t.node, len(t.dims)
    if node.op.name != "broadcast_to" or node.attrs["axes"] != (rank - 2, rank - 1):
        return None
    x = node.inputs[0]
    return x if x.dims == t.dims[-2:] else None


def _is_product(t: Tensor) -> bool:
    """Whether t is rows times one matrix."""
    node = t.node
    if node.op is not matmul_op or node.attrs["transpose_a"]:
        return False
    return matrix_below(node.inputs[1]) is not None


def _product(x: Tensor, w: Tensor, transposed: bool, builder: Builder) -> Tensor:
    """The rows of x times a matrix."""
    rank = len(x.dims)
    if rank > 2:
        w = broadcast_along(w, (*x.dims[:-2], *w.dims), (rank - 2, rank - 1))
    attrs = {"transpose_a": False, "transpose_b": transposed}
    return builder.make(matmul_op, (x, w), attrs).outputs[0]


def _rows(shape: Sequence[DimLike], estimate: Estimate) -> int:
    return estimate.of(dims.product(shape[:-1]))


# ---- products of pieces ------------------------------------------------------------------------


@dataclass(eq=False)
class _Run:
    """Consecutive pieces of one tensor, each of which is multiplied by the same matrix."""

    start: DimLike
    size: DimLike
    made: Tensor | None = None


@dataclass(eq=False)
class _Family:
    """Products of pieces of one tensor with one matrix."""

    nodes: list[Node] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)


def merge_products(program: Program) -> Program:
    """Products of pieces of a tensor with one matrix, as pieces of one product.

    before:  %y = matmul(slice(%x: f32[9,4]) {0..3}, %w)    %z = matmul(slice(%x) {3..6}, %w)
    after:   %p = matmul(slice(%x) {0..6}, %w)    %y = slice(%p) {0..3}    %z = slice(%p) {3..6}
    """
    chosen = _choose(program)
    if not chosen:
        return program
    builder = Builder()

    def rule(node: Node, inputs: list[Tensor]) -> Sequence[Tensor] | None:
        found = chosen.get(node.id)
        if found is None:
            return None
        run, piece = found
        here = piece_of(inputs[0])
        w = matrix_below(inputs[1])
        if here is None or w is None:
            return None
        if run.made is None:
            x = cut_out(here.base, here.axis, run.start, run.size)
            run.made = _product(x, w, node.attrs["transpose_b"], builder)
        start = dims.add(piece.start, dims.mul(-1, run.start))
        return (reshape(cut_out(run.made, piece.axis, start, piece.size), node.outputs[0].dims),)

    return apply_rules(rewrite(program, rule, builder), VIEW_RULES)


def _choose(program: Program) -> dict[int, tuple[_Run, Piece]]:
    """The products to merge, by the number of their node: with which others, and which part."""
    families: dict[Hashable, _Family] = {}
    for node in program.order():
        if node.op is not matmul_op or not _is_product(node.outputs[0]):
            continue
        piece = piece_of(node.inputs[0])
        if piece is None or piece.axis == len(piece.base.dims) - 1:
            continue
        key = (id(piece.base), piece.axis, id(matrix_below(node.inputs[1])), node.attrs_key)
        family = families.setdefault(key, _Family())
        family.nodes.append(node)
        family.pieces.append(piece)
    estimate = Estimate()
    chosen: dict[int, tuple[_Run, Piece]] = {}
    for family in families.values():
        for run in runs(family.pieces) if len(family.nodes) > 1 else ():
            nodes, pieces = [family.nodes[i] for i in run], [family.pieces[i] for i in run]
            rows = min(_rows(n.outputs[0].dims, estimate) for n in nodes)
            if len(run) > 1 and rows < MANY_ROWS:
                made = _Run(pieces[0].start, dims.total(p.size for p in pieces))
                chosen.update((n.id, (made, p)) for n, p in zip(nodes, pieces, strict=True))
    return chosen


# ---- products that are concatenated ------------------------------------------------------------


def join_products(program: Program) -> Program:
    """Concatenated products with one matrix, as the product of what is concatenated.

    before:  %c = concat(matmul(%a, %w), matmul(%b, %w)) {axis=0}
    after:   %c = matmul(concat(%a, %b) {axis=0}, %w)

    So are concatenated sums of two products, each with a matrix of its own.
    """
    if not any(n.op.name == "concat" for n in program.order()):
        return program
    return _Joiner(program).run()


class _Joiner:
    """Rewrites concatenations of a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.builder = Builder()
        self.uses = count_uses(program)
        self.estimate = Estimate()
        self.changed = False

    def run(self) -> Program:
        merged = rewrite(self.program, self.rule, self.builder)
        return apply_rules(merged, VIEW_RULES) if self.changed else self.program

    def rule(self, node: Node, inputs: list[Tensor]) -> Sequence[Tensor] | None:
        if node.op.name != "concat":
            return None
        made = self._joined(node, inputs)
        if made is None:
            return None
        self.changed = True
        return (made,)

    def _joined(self, node: Node, inputs: list[Tensor]) -> Tensor | None:
        axis = node.attrs["axis"]
        pieces = [p for p in map(piece_of, inputs) if p is not None]
        if len(pieces) == len(inputs) and are_consecutive(pieces):
            return join(inputs, axis) if pieces[0].axis == axis and not pieces[0].dropped else None
        if axis == len(node.outputs[0].dims) - 1 or not all(map(self._is_passed_on, node.inputs)):
            return None
        parts = [_expanded(t, axis) for t in inputs]
        if len({p is t for p, t in zip(parts, inputs, strict=True)}) > 1:
            return None
        shape = node.outputs[0].dims
        if any(_rows(t.dims, self.estimate) >= MANY_ROWS for t in parts):
            return None
        if any(t.node.op.name != "add" for t in parts):
            return self._product(parts, axis, shape)
        first = [t.node.inputs[0] for t in parts]
        second = [t.node.inputs[1] for t in parts]
        for i in range(1, len(parts)):  # the terms of every sum in the same order
            if _factor(first[i]) != _factor(first[0]):
                first[i], second[i] = second[i], first[i]
        a = self._product(first, axis, shape)
        b = None if a is None else self._product(second, axis, shape)
        return None if a is None or b is None else add(a, b)

    def _is_passed_on(self, t: Tensor) -> bool:
        """Whether t is read once, and so is what it is made of down to products."""
        while self.uses[id(t)] == 1:
            if t.node.op.name == "add":
                return all(self.uses[id(x)] == 1 for x in t.node.inputs)
            if t.node.op.name != "reshape":
                return True
            t = t.node.inputs[0]
        return False

    def _product(self, parts: Sequence[Tensor], axis: int, shape: Shape) -> Tensor | None:
        """Products with one matrix, joined along an axis to what has this shape but for columns."""
        factor = _factor(parts[0])
        if factor is None or any(_factor(t) != factor for t in parts):
            return None
        first = parts[0].node
        w = matrix_below(first.inputs[1])
        assert w is not None
        lefts = [t.node.inputs[0] for t in parts]
        x = join(lefts, axis)
        if len(shape) > len(x.dims):  # the axis is a new one, and the rows within it follow
            x = reshape(x, (*shape[:-1], lefts[0].dims[-1]))
        return _product(x, w, first.attrs["transpose_b"], self.builder)


def _factor(t: Tensor) -> Hashable:
    """What tells by which matrix t is made of rows; None if it is not."""
    if not _is_product(t):
        return None
    return id(matrix_below(t.node.inputs[1])), t.node.attrs["transpose_b"]


def _expanded(t: Tensor, axis: int) -> Tensor:
    """What t is with a further axis of size 1, or t."""
    if t.node.op.name == "reshape":
        x = t.node.inputs[0]
        if t.dims[axis] == 1 and x.dims == without(t.dims, axis):
            return x
    return t


def count_uses(program: Program) -> dict[int, int]:
    """How often each tensor is read by nodes or asked for, by its id."""
    uses: dict[int, int] = {}
    for node in program.order():
        for t in node.inputs:
            uses[id(t)] = uses.get(id(t), 0) + 1
    for t in program.roots:
        uses[id(t)] = uses.get(id(t), 0) + 1
    return uses
