"""Sums of many terms as one: of products as one product, of placed tensors as one tensor.

    before:  %g = add(matmul(%a, %b), matmul(%c, %d))
    after:   %g = matmul(concat(%a, %c), concat(%b, %d))

    before:  %g = add(unslice(%a) {0..3}, unslice(%b) {3..6})
    after:   %g = concat(%a, %b)

    before:  %g = sum(matmul(%a: f32[n,9,4], %b: f32[n,9,5]) {transpose_a=True}) {axes=(0,)}
    after:   %g = matmul(reshape(%a): f32[9*n,4], reshape(%b): f32[9*n,5]) {transpose_a=True}

What is used several times has a gradient that is a sum.  A matrix that a recurrent network applies
at every step gets one product from each, with few rows to sum over: written, read and added they
take longer than to compute.  What was cut in parts gets one tensor of its own size from each part.

Changes the order of summation: the elements of a merged product are summed over the terms in the
order in which they are joined, and within each term as before, one rounding for each number that is
added.  Adding zeros is left out, so that -0 stays -0.  Which terms are merged depends on sizes
alone.  Linear in the number of nodes.  Imports: program, pieces, merge_products, estimate, ops.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from graphc import dims
from graphc.builder import Builder
from graphc.dims import DimLike
from graphc.node import Node, Tensor
from graphc.ops.arithmetic import add
from graphc.ops.create import zeros
from graphc.ops.join import concat
from graphc.ops.linalg import matmul_op
from graphc.ops.shape import reshape
from graphc.passes.estimate import Estimate
from graphc.passes.merge_products import count_uses
from graphc.passes.pieces import cut_out, join, piece_of, runs, with_size, without
from graphc.program import Program, rewrite

SHORT = 64
"""Terms to a sum with which a product takes as long to add or store its elements as to move them
otherwise."""


def merge_sums(program: Program) -> Program:
    """Merge the terms of every sum, and the products of every batch that is summed."""
    return _merge_terms(_merge_batches(program))


# ---- batches that are summed -------------------------------------------------------------------


def _merge_batches(program: Program) -> Program:
    """The sum of transpose(a[i]) @ b[i] over a batch is one product of all rows of a and b."""
    sums = (n for n in program.order() if n.op.name == "sum")
    if not any(n.inputs[0].node.op is matmul_op for n in sums):
        return program
    builder, uses = Builder(), count_uses(program)

    def rule(node: Node, inputs: list[Tensor]) -> Sequence[Tensor] | None:
        if node.op.name != "sum" or uses[id(node.inputs[0])] != 1:
            return None
        product = inputs[0].node
        rank = len(inputs[0].dims)
        if product.op is not matmul_op or node.attrs["axes"] != tuple(range(rank - 2)):
            return None
        attrs = product.attrs
        if not attrs["transpose_a"] or attrs["transpose_b"] or node.attrs["keepdims"]:
            return None
        if not inputs[0].dtype.is_float or any(_repeats(t) for t in product.inputs):
            return None
        rows = [reshape(t, (dims.product(t.dims[:-1]), t.dims[-1])) for t in product.inputs]
        return builder.make(matmul_op, rows, dict(attrs)).outputs

    return rewrite(program, rule, builder)


def _repeats(t: Tensor) -> bool:
    return t.node.op.name == "broadcast_to"


# ---- sums of terms -----------------------------------------------------------------------------


@dataclass(eq=False)
class _Terms:
    """Terms of one sum that become one.

    kind    'place', 'product' or 'sum'
    nodes   what makes the terms, in the order in which they are joined
    axes    what parts are joined along: for products in each operand
    """

    kind: str
    nodes: list[Node]
    axes: tuple[int, ...]


@dataclass(eq=False)
class _Sum:
    """A tree of additions: its root, what it adds, and what of that is merged."""

    root: Node
    terms: list[Tensor] = field(default_factory=list)
    merged: list[_Terms] = field(default_factory=list)


def _merge_terms(program: Program) -> Program:
    uses, lists = count_uses(program), _Lists()
    sums = _sums(program, uses)
    for found in sums:
        _find_places(found, uses)
        _find_products(found, uses)
    products = [m for s in sums for m in s.merged if m.kind == "product"]
    kept = {id(m) for m in _arrange(products, lists)}
    for found in sums:
        found.merged = [m for m in found.merged if m.kind != "product" or id(m) in kept]
        _find_reductions(found, uses, lists)
    merged = {s.root.id: s for s in sums if s.merged}
    return _Merger(merged, lists).run(program) if merged else program


def _sums(program: Program, uses: dict[int, int]) -> list[_Sum]:
    """The trees of additions whose inner nodes nobody else reads."""
    nodes = [n for n in program.order() if n.op.name == "add"]
    inside = {
        id(t) for n in nodes for t in n.inputs if t.node.op.name == "add" and uses[id(t)] == 1
    }
    found = []
    for node in nodes:
        if id(node.outputs[0]) in inside:
            continue
        made = _Sum(node)
        stack = list(reversed(node.inputs))
        while stack:
            t = stack.pop()
            if id(t) in inside:
                stack.extend(reversed(t.node.inputs))
            else:
                made.terms.append(t)
        found.append(made)
    return found


def _grouped(terms: Iterable[tuple[Hashable, Node]]) -> list[list[Node]]:
    groups: dict[Hashable, dict[int, Node]] = {}
    for key, node in terms:
        groups.setdefault(key, {})[node.id] = node
    return [list(g.values()) for g in groups.values() if len(g) > 1]


def _find_places(found: _Sum, uses: dict[int, int]) -> None:
    """Terms that are zero but for a stretch along one axis, where the stretches are disjoint."""
    terms = []
    for t in found.terms:
        axis = _placed_along(t.node) if uses[id(t)] == 1 else None
        if axis is not None:
            terms.append((axis, t.node))
    for group in _grouped(terms):
        axis = _placed_along(group[0])
        assert axis is not None
        kept = _tiled(group, axis) or _disjoint(group, axis)
        if len(kept) > 1:
            found.merged.append(_Terms("place", kept, (axis,)))


def _placed_along(node: Node) -> int | None:
    if node.op.name != "unslice" or any(s != 1 for s in node.attrs["steps"]):
        return None
    starts, sizes, shape = (node.attrs[k] for k in ("starts", "sizes", "shape"))
    cut = [a for a, d in enumerate(shape) if starts[a] != 0 or sizes[a] != d]
    return cut[0] if len(cut) == 1 else None


def _stretch(node: Node, axis: int) -> tuple[DimLike, DimLike]:
    """Where a term begins, and where it ends."""
    start = node.attrs["starts"][axis]
    return start, dims.add(start, node.attrs["sizes"][axis])


def _tiled(nodes: Sequence[Node], axis: int) -> list[Node]:
    """The terms in order, if they follow one another from the start of the axis to its end."""
    starting = {_stretch(n, axis)[0]: n for n in nodes}
    ordered: list[Node] = []
    at: DimLike = 0
    while at in starting and len(ordered) <= len(nodes):
        ordered.append(starting[at])
        at = _stretch(ordered[-1], axis)[1]
    complete = len(ordered) == len(nodes) and at == nodes[0].attrs["shape"][axis]
    return ordered if complete else []


def _disjoint(nodes: Sequence[Node], axis: int) -> list[Node]:
    """Terms in order of which none touches another, where that is known."""
    known = []
    for n in nodes:
        start, end = _stretch(n, axis)
        if isinstance(start, int) and isinstance(end, int):
            known.append((start, end, n))
    kept: list[Node] = []
    reached = 0
    for start, end, node in sorted(known, key=lambda k: (k[0], k[1], k[2].id)):
        if start >= reached:
            kept.append(node)
            reached = end
    return kept


# ---- products ----------------------------------------------------------------------------------


def _summed_axes(node: Node) -> tuple[int, int]:
    """The axis over which a product sums, in each of its operands."""
    rank = len(node.outputs[0].dims)
    a = rank - 2 if node.attrs["transpose_a"] else rank - 1
    b = rank - 1 if node.attrs["transpose_b"] else rank - 2
    return a, b


def _find_products(found: _Sum, uses: dict[int, int]) -> None:
    """Terms that are products alike in all but the length of their sums."""
    terms = []
    for t in found.terms:
        node = t.node
        if node.op is matmul_op and uses[id(t)] == 1 and t.dtype.is_float:
            sides = zip(node.inputs, _summed_axes(node), strict=True)
            key = (node.attrs_key, tuple(without(x.dims, k) for x, k in sides))
            terms.append((key, node))
    for group in _grouped(terms):
        found.merged.append(_Terms("product", group, _summed_axes(group[0])))


def _pays(terms: _Terms, lists: _Lists, estimate: Estimate) -> bool:
    """Whether joining the operands moves fewer numbers than adding the products would."""
    moved = 0
    for side, axis in enumerate(terms.axes):
        parts = [n.inputs[side] for n in terms.nodes]
        if _order_of_pieces(parts, axis) is None and lists.positions(parts, axis) is None:
            moved += sum(estimate.of(dims.product(t.dims)) for t in parts)
    first, axis = terms.nodes[0], terms.axes[0]
    length = max(1, estimate.of(first.inputs[0].dims[axis]))
    out = estimate.of(dims.product(first.outputs[0].dims))
    return moved * length <= (len(terms.nodes) - 1) * out * (length + SHORT)


def _order_of_pieces(parts: Sequence[Tensor], axis: int) -> list[int] | None:
    """The positions of parts in the order in which they lie in a tensor to be joined along an
    axis; None if they are not all the pieces of a stretch of one."""
    pieces = [p for p in map(piece_of, parts) if p is not None]
    if len(pieces) < len(parts):
        return None
    first = pieces[0]
    if any((p.base, p.axis, p.dropped) != (first.base, first.axis, first.dropped) for p in pieces):
        return None
    if not first.dropped and first.axis != axis:
        return None
    found = runs(pieces)
    return found[0] if len(found) == 1 and len(found[0]) == len(parts) else None


class _Lists:
    """Tensors that are joined as operands of products: the same ones always in the same order.

    The gradients of several matrices used at the same steps share one operand then.
    """

    def __init__(self) -> None:
        self.members: list[tuple[int, list[Tensor]]] = []
        self.place: dict[tuple[int, int], tuple[int, int]] = {}
        """(tensor, axis) -> which list it is in, and at which position"""

    def note(self, parts: Sequence[Tensor], axis: int) -> None:
        """Make a list of the parts, unless some are in one."""
        keys = [(id(t), axis) for t in parts]
        if len(set(keys)) < len(keys) or any(k in self.place for k in keys):
            return
        for i, key in enumerate(keys):
            self.place[key] = len(self.members), i
        self.members.append((axis, list(parts)))

    def positions(self, parts: Sequence[Tensor], axis: int) -> tuple[int, list[int]] | None:
        """The list that has all the parts, and their positions in it."""
        places = [self.place.get((id(t), axis)) for t in parts]
        known = [p for p in places if p is not None]
        if not known or len(known) < len(places) or len({number for number, _ in known}) > 1:
            return None
        return known[0][0], [position for _, position in known]


def _arrange(found: Iterable[_Terms], lists: _Lists) -> list[_Terms]:
    """The products that it pays to merge.  Terms come in the order of the tensor that their
    operands are pieces of; others with the same operands in that order too."""
    estimate = Estimate()
    pending: list[_Terms] = []
    kept: list[_Terms] = []
    for terms in found:
        sides = [([n.inputs[i] for n in terms.nodes], axis) for i, axis in enumerate(terms.axes)]
        order = next(filter(None, (_order_of_pieces(*side) for side in sides)), None)
        if order is None:
            pending.append(terms)
        elif _pays(terms, lists, estimate):
            _reorder(terms, order, lists)
            kept.append(terms)
    for terms in pending:
        sides = [([n.inputs[i] for n in terms.nodes], axis) for i, axis in enumerate(terms.axes)]
        places = next(filter(None, (lists.positions(*side) for side in sides)), None)
        if _pays(terms, lists, estimate):
            order = list(range(len(terms.nodes)))
            if places is not None:
                order.sort(key=places[1].__getitem__)
            _reorder(terms, order, lists)
            kept.append(terms)
    return kept


def _reorder(terms: _Terms, order: Sequence[int], lists: _Lists) -> None:
    terms.nodes[:] = [terms.nodes[i] for i in order]
    for side, axis in enumerate(terms.axes):
        parts = [n.inputs[side] for n in terms.nodes]
        if _order_of_pieces(parts, axis) is None:
            lists.note(parts, axis)


# ---- reductions --------------------------------------------------------------------------------


def _find_reductions(found: _Sum, uses: dict[int, int], lists: _Lists) -> None:
    """Terms that are sums over tensors which are joined anyway, along an axis summed over."""
    terms = []
    for t in found.terms:
        node = t.node
        if node.op.name != "sum" or uses[id(t)] != 1 or node.attrs["keepdims"]:
            continue
        for axis in node.attrs["axes"]:
            place = lists.place.get((id(node.inputs[0]), axis))
            if place is not None:
                terms.append(((node.attrs["axes"], axis, place[0]), node))
                break
    for group in _grouped(terms):
        x = group[0].inputs[0]
        axis = next(a for a in group[0].attrs["axes"] if (id(x), a) in lists.place)
        group.sort(key=lambda n: lists.place[id(n.inputs[0]), axis])
        found.merged.append(_Terms("sum", group, (axis,)))


# ---- merging -----------------------------------------------------------------------------------


class _Merger:
    """Builds the program with merged terms."""

    def __init__(self, sums: dict[int, _Sum], lists: _Lists) -> None:
        self.sums = sums
        self.lists = lists
        self.builder = Builder()
        self.made: dict[int, Tensor] = {}
        self.whole: dict[int, Tensor] = {}

    def run(self, program: Program) -> Program:
        return rewrite(program, self.rule, self.builder)

    def rule(self, node: Node, inputs: list[Tensor]) -> Sequence[Tensor] | None:
        for old, new in zip(node.inputs, inputs, strict=True):
            self.made[id(old)] = new
        found = self.sums.get(node.id)
        return None if found is None else (self._sum(found),)

    def _sum(self, found: _Sum) -> Tensor:
        """What is not merged, and each merged term in the place of the first of its parts."""
        which = {n.id: m for m in found.merged for n in m.nodes}
        total: Tensor | None = None
        done: set[int] = set()
        for t in found.terms:
            merged = which.get(t.node.id)
            if merged is None:
                term = self.made[id(t)]
            elif id(merged) in done:
                continue
            else:
                done.add(id(merged))
                term = self._merged(merged)
            total = term if total is None else add(total, term)
        assert total is not None
        return total

    def _merged(self, terms: _Terms) -> Tensor:
        if terms.kind == "place":
            return self._placed(terms.nodes, terms.axes[0])
        sides = [
            self._join([n.inputs[side] for n in terms.nodes], axis)
            for side, axis in enumerate(terms.axes)
        ]
        attrs = dict(terms.nodes[0].attrs)
        return self.builder.make(terms.nodes[0].op, sides, attrs).outputs[0]

    def _join(self, parts: list[Tensor], axis: int) -> Tensor:
        """The parts after one another: a stretch of a list of them that is joined once."""
        new = [self.made[id(t)] for t in parts]
        found = self.lists.positions(parts, axis)
        if found is None:
            return join(new, axis)
        number, at = found
        members = self.lists.members[number][1]
        if at != list(range(at[0], at[-1] + 1)) or any(id(t) not in self.made for t in members):
            return join(new, axis)
        whole = self.whole.get(number)
        if whole is None:
            whole = self.whole[number] = join([self.made[id(t)] for t in members], axis)
        start = dims.total(t.dims[axis] for t in members[: at[0]])
        return cut_out(whole, axis, start, dims.total(t.dims[axis] for t in parts))

    def _placed(self, nodes: Sequence[Node], axis: int) -> Tensor:
        """What nodes place into zeros, in order, with zeros in the gaps."""
        shape, dtype = nodes[0].attrs["shape"], nodes[0].types[0].dtype
        parts: list[Tensor] = []
        at: DimLike = 0
        for node in nodes:
            start, end = _stretch(node, axis)
            if start != at:
                gap = dims.add(start, dims.mul(-1, at))
                parts.append(zeros(with_size(shape, axis, gap), dtype))
            parts.append(self.made[id(node.inputs[0])])
            at = end
        if at != shape[axis]:
            gap = dims.add(shape[axis], dims.mul(-1, at))
            parts.append(zeros(with_size(shape, axis, gap), dtype))
        return concat(parts, axis)
