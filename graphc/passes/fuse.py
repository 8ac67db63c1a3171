"""Fusion: partition a program into groups, each of which becomes one kernel.

    before:  %m = max(%x) {axes=(1,)}  %e = exp(%x - %m)  %s = sum(%e) {axes=(1,)}  %p = %e / %s
    after:   one loop group over x's shape, reducing axis 1: [max, subtract, exp, sum, divide]

A loop group has a full shape and, once it holds a reduction, reduce axes.  Its members are 'full'
(computed at every element), 'acc' (reductions) or 'reduced' (computed per kept element); a reduced
value broadcast back along the reduced axes may be used by full members, which then run in a later
stage.  Contraction and nest groups take elementwise members of their own shape behind their result.

A node's candidate is the latest group among its inputs: every other input comes earlier, so joining
cannot make a cycle and nothing has to be searched.  What follows from state alone is placed first:
it never keeps the work on fed values apart.  Linear in the number of nodes.
Imports: program, passes.groups, passes.lasting, passes.regroup, passes.store_parts,
passes.views.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc import dims
from graphc.dims import DimLike
from graphc.nest import Nest, contiguous
from graphc.node import OPS, Node, Tensor
from graphc.passes.epilogues import split_epilogues
from graphc.passes.groups import ACC, CHUNK, FULL, MAX_MEMBERS, REDUCED, Fusion, Group
from graphc.passes.lasting import lasting_first
from graphc.passes.regroup import join_readers, merge_siblings, recompute
from graphc.passes.store_parts import store_parts
from graphc.passes.uniform import Uniforms
from graphc.passes.views import View, Views, same_strides
from graphc.program import Program
from graphc.types import Shape


def fuse(program: Program, chunk: int = CHUNK) -> Fusion:
    """Partition the program into groups; long reductions are cut into chunks of `chunk`."""
    uniforms = Uniforms()
    return _Fuser(_own_roots(program, uniforms), uniforms, chunk).run()


def _own_roots(program: Program, uniforms: Uniforms) -> Program:
    """Give every root memory of its own: copy inputs, state, views and values wanted twice."""
    views = Views()
    taken: set[int] = set()
    for node in program.order():  # inputs first, so that no question goes deep
        for t in node.outputs:
            uniforms.of(t, views)

    def own(t: Tensor) -> Tensor:
        view = views.of(t)
        computed = view.base.node.kind not in ("leaf", "state")
        if (
            computed
            and view.is_whole(t.dims)
            and id(view.base) not in taken
            and (t.node.kind == "view" or uniforms.of(t, views) is None)
        ):
            taken.add(id(view.base))
            return t
        copy = Node(OPS["identity"], (t,), {}, (t.type,), t.node.loc, t.node.name)
        return copy.outputs[0]

    return Program(
        program.inputs,
        tuple(own(t) for t in program.fetches),
        tuple((v, own(t)) for v, t in program.updates),
    )


class _Fuser:
    def __init__(self, program: Program, uniforms: Uniforms, chunk: int) -> None:
        self.program = program
        self.chunk = chunk
        self.order = lasting_first(program)
        self.views = Views()
        self.uniforms = uniforms
        self.bases: dict[int, list[Tensor]] = {}
        self.groups: list[Group] = []
        self.group_of: dict[int, Group] = {}
        self.roots = {id(t) for t in program.roots}
        self.users = _users(self.order)
        self.late = _update_only(program, self.users)

    def run(self) -> Fusion:
        self._require_arrays()
        self.in_memory = self._used_in_memory()
        for node in self.order:
            self._place(node)
        self.groups = split_epilogues(
            self.groups, self.group_of, self._bases, self.views, self.uniforms
        )
        merge_siblings(self.groups, self.group_of, self._bases)
        join_readers(self.groups, self.group_of, self._bases, self._fits)
        known = self.group_of, self._bases, self.views, self.uniforms
        recompute(self.groups, *known, self.roots)
        kept = {id(self.views.of(t).base) for t in self.program.roots}
        placed = store_parts(self.groups, self.group_of, self.views, kept)
        stored = self._stored()
        groups = [g for g in self.groups if g.members]
        parts = self.program, groups, self.views, self.uniforms, self.group_of, stored
        return Fusion(*parts, self.chunk, placed)

    # ---- what must be a plain array

    def _require_arrays(self) -> None:
        for node in self.order:
            if node.kind == "nest":
                for t in node.inputs:
                    view = self.views.of(t)
                    if view.base is not t and not self._readable_by_nest(view, t):
                        self.views.require_array(t)
            elif node.kind == "view":
                self.views.of(node.outputs[0])
        self.views.forget()

    def _readable_by_nest(self, view: View, t: Tensor) -> bool:
        """Nests read through contiguous strides; computed leaves have no memory to read."""
        return view.is_whole(t.dims) and not self._is_computed_leaf(view.base)

    def _is_computed_leaf(self, t: Tensor) -> bool:
        return t.node.op.name in ("iota", "sizes")

    # ---- placing nodes

    def _place(self, node: Node) -> None:
        if not node.outputs:
            return
        t = node.outputs[0]
        if node.kind == "view" and id(t) in self.views.arrays:
            self._put(self._new("loop", t.dims, node), t, FULL)
            return
        if node.kind in ("leaf", "state", "view"):
            if self._is_computed_leaf(t) and id(t) in self.in_memory:
                self._put(self._new("loop", t.dims, node), t, FULL)
            return
        wanted = id(t) in self.roots or id(t) in self.in_memory
        if not wanted and self.uniforms.of(t, self.views) is not None:
            return
        if node.kind == "elementwise":
            self._place_elementwise(t)
        elif node.kind == "reduce":
            self._place_reduction(t)
        else:
            group = self._new(node.kind, t.dims, node)
            for out in node.outputs:
                self._put(group, out, FULL)

    def _used_in_memory(self) -> set[int]:
        """Values without memory of their own that a nest or contraction reads from memory."""
        found: set[int] = set()
        for node in self.order:
            if node.kind in ("nest", "contraction"):
                for t in node.inputs:
                    base = self.views.of(t).base
                    if self._is_computed_leaf(base) or base.node.kind == "elementwise":
                        found.add(id(base))
        return found

    def _place_elementwise(self, t: Tensor) -> None:
        group = self._candidate(t)
        if group is not None and not self._waits_for_chunks(t):
            group = self._merge_inputs(t, group)
            level = self._level(t, group)
            if level is not None:
                self._put(group, t, level)
                return
        group = self._new("loop", t.dims, t.node)
        self._put(group, t, FULL)
        for base in self._bases(t):  # maps that only this one reads
            other = self.group_of.get(id(base))
            if other is not None and other is not group:
                self._sink(other, group)

    def _waits_for_chunks(self, t: Tensor) -> bool:
        """Whether t needs at every element what a group knows when all of its chunks are done."""
        for base in self._bases(t):
            group = self.group_of.get(id(base))
            if group is not None and group.split and group.level[id(base)] != FULL:
                return _same_shape(t.dims, group.shape)
        return False

    def _place_reduction(self, t: Tensor) -> None:
        x, axes = t.node.inputs[0], t.node.attrs["axes"]
        group = self._candidate(t)
        if group is None or not self._can_reduce(group, x, axes, _is_search(t)):
            group = self._new("loop", x.dims, t.node)
        if group.red is None:
            group.red = axes
            group.split = not _is_search(t) and _splits(group.shape, axes, self.chunk)
        self._put(group, t, ACC)

    def _can_reduce(self, group: Group, x: Tensor, axes: tuple[int, ...], search: bool) -> bool:
        if group.kind != "loop" or len(group.members) >= MAX_MEMBERS:
            return False
        if group.split and search:
            return False
        if not _same_shape(x.dims, group.shape):
            return False
        if group.red is not None and group.red != axes:
            return False
        view = self.views.of(x)
        if self.group_of.get(id(view.base)) is group:
            return group.level[id(view.base)] == FULL and view.is_whole(x.dims)
        return True

    def _candidate(self, t: Tensor) -> Group | None:
        latest: Group | None = None
        for base in self._bases(t):
            group = self.group_of.get(id(base))
            if group is not None and (latest is None or group.number > latest.number):
                latest = group
        return latest

    def _bases(self, t: Tensor) -> list[Tensor]:
        """The arrays a member reads."""
        found = self.bases.get(id(t))
        if found is None:
            node = t.node
            if node.kind == "view":
                found = [self.views.source(t).base]
            elif node.kind in ("leaf", "state"):
                found = [t]
            else:
                found = [self.views.of(i).base for i in node.inputs]
            self.bases[id(t)] = found
        return found

    def _new(self, kind: str, shape: Shape, head: Node) -> Group:
        group = Group(len(self.groups), kind, shape, head)
        self.groups.append(group)
        return group

    def _put(self, group: Group, t: Tensor, level: str) -> None:
        group.members.append(t)
        group.level[id(t)] = level
        self.group_of[id(t)] = group
        for base in self._bases(t):
            other = self.group_of.get(id(base))
            if other is not None and other is not group:
                other.readers.add(group.number)

    # ---- joining

    def _level(self, t: Tensor, group: Group) -> str | None:
        """At which level elementwise t may join the group, or None."""
        if len(group.members) >= MAX_MEMBERS:
            return None
        if group.kind != "loop":
            return FULL if self._fits_epilogue(t, group) else None
        full = _same_shape(t.dims, group.shape)
        if full and self._fits_full(t, group):
            return FULL
        if group.red is not None and _same_shape(t.dims, group.kept_shape):
            for i in t.node.inputs:
                view = self.views.of(i)
                mine = self.group_of.get(id(view.base)) is group
                if mine and (group.level[id(view.base)] == FULL or not view.is_whole(i.dims)):
                    return None
            return REDUCED
        return None

    def _fits(self, t: Tensor, group: Group) -> str | None:
        """At which level an elementwise value or a reduction may join the group, or None."""
        if t.node.kind == "elementwise":
            return self._level(t, group)
        if t.node.kind != "reduce":
            return None
        reduces = self._can_reduce(group, t.node.inputs[0], t.node.attrs["axes"], _is_search(t))
        return ACC if reduces else None

    def _fits_full(self, t: Tensor, group: Group) -> bool:
        for i in t.node.inputs:
            view = self.views.of(i)
            if self.group_of.get(id(view.base)) is not group:
                continue
            if group.level[id(view.base)] == FULL:
                if not view.is_whole(i.dims):
                    return False
            elif group.split or not self._is_broadcast_back(view, group):
                return False
        return True

    def _is_broadcast_back(self, view: View, group: Group) -> bool:
        """Whether a reduced value is repeated along exactly the reduced axes."""
        inner = iter(contiguous(group.kept_shape))
        red = group.red or ()
        wanted = tuple(0 if a in red else next(inner) for a in range(len(group.shape)))
        return view.offset == 0 and same_strides(view.strides, wanted, group.shape)

    def _fits_epilogue(self, t: Tensor, group: Group) -> bool:
        if not _same_shape(t.dims, group.shape) or not group.head.outputs:
            return False
        if group.kind == "contraction" and id(t) in self.late:
            return False
        if group.kind == "nest" and not has_result(group.head):
            return False
        if self._better_summed_elsewhere(t, group):
            return False
        for i in t.node.inputs:
            view = self.views.of(i)
            if self.group_of.get(id(view.base)) is group and not view.is_whole(i.dims):
                return False
        return True

    def _better_summed_elsewhere(self, t: Tensor, group: Group) -> bool:
        """Whether t is only reduced, which epilogues cannot do, and made of what is stored anyway:
        the kernel that reduces t can make it too, of what it then reads instead of t."""
        users = self.users.get(id(t), ())
        if not users or id(t) in self.roots or any(u.kind != "reduce" for u in users):
            return False
        inside = [b for b in self._bases(t) if self.group_of.get(id(b)) is group]
        return all(
            id(b) in self.roots or any(u.kind != "elementwise" for u in self.users[id(b)])
            for b in inside
        )

    # ---- merging groups

    def _merge_inputs(self, t: Tensor, group: Group) -> Group:
        """Before t joins, bring the groups of its other inputs together where that is safe."""
        numbers = {g.number for b in self._bases(t) if (g := self.group_of.get(id(b))) is not None}
        if len(numbers) == 1:
            return group
        for number in sorted(numbers, reverse=True):
            other = self.groups[number]
            if other is group or not other.members:
                continue
            if self._hoist(group, other):
                group = other
            else:
                self._sink(other, group)
        return group

    def _hoist(self, group: Group, target: Group) -> bool:
        """Move a later map group into an earlier one that comes after all it reads."""
        if group.kind != "loop" or group.red is not None or len(group.members) > 32:
            return False
        if self._last_read(group) > target.number:
            return False
        return self._move(group, target)

    def _sink(self, group: Group, target: Group) -> bool:
        """Move an earlier map group into its only reader."""
        if group.kind != "loop" or group.red is not None or len(group.members) > 32:
            return False
        if not group.readers <= {target.number} or target.kind != "loop":
            return False
        if not self._reads_in_place(target, group):
            return False
        before = list(target.members)
        if not self._move(group, target):
            return False
        moved = target.members[len(before) :]
        target.members[:] = moved + before
        return True

    def _reads_in_place(self, target: Group, source: Group) -> bool:
        """Whether the target's members use the source's values at their own element only."""
        for t in target.members:
            if t.node.kind == "view":
                if self.group_of.get(id(self.views.source(t).base)) is source:
                    return False
                continue
            for i in t.node.inputs:
                view = self.views.of(i)
                reads = self.group_of.get(id(view.base)) is source
                if reads and (target.level[id(t)] == REDUCED or not view.is_whole(i.dims)):
                    return False
        return True

    def _last_read(self, group: Group) -> int:
        last = -1
        for t in group.members:
            for base in self._bases(t):
                other = self.group_of.get(id(base))
                if other is not None and other is not group:
                    last = max(last, other.number)
        return last

    def _move(self, source: Group, target: Group) -> bool:
        if len(source.members) + len(target.members) > MAX_MEMBERS:
            return False
        if any(t.node.kind != "elementwise" for t in source.members):
            return False
        placed: list[Tensor] = []
        for t in source.members:
            level = self._level(t, target)
            if level is None:
                del target.members[len(target.members) - len(placed) :]
                for p in placed:
                    del target.level[id(p)]
                    self.group_of[id(p)] = source
                return False
            target.members.append(t)
            target.level[id(t)] = level
            self.group_of[id(t)] = target
            placed.append(t)
        self._rewire(source, target)
        return True

    def _rewire(self, source: Group, target: Group) -> None:
        source.members = []
        source.level = {}
        target.readers |= source.readers - {target.number}
        for t in target.members:
            for base in self._bases(t):
                other = self.group_of.get(id(base))
                if other is not None and other is not target:
                    other.readers.discard(source.number)
                    other.readers.add(target.number)
        target.readers.discard(source.number)

    # ---- what is written to memory

    def _stored(self) -> set[int]:
        stored = {id(self.views.of(t).base) for t in self.program.roots}
        for group in self.groups:
            for t in group.members:
                for base in self._bases(t):
                    other = self.group_of.get(id(base))
                    if other is not None and other is not group and id(base) not in group.level:
                        stored.add(id(base))
        return stored


def has_result(node: Node) -> bool:
    """Whether a nest yields its elements one by one, so that arithmetic can follow in its kernel;
    otherwise it stores them itself."""
    found = _HAS_RESULT.get(node.op.name)
    if found is None:
        nest = Nest([t.type for t in node.inputs], [t.type for t in node.outputs])
        node.op.lower(nest, **node.attrs)
        found = _HAS_RESULT[node.op.name] = bool(nest.results)
    return found


_HAS_RESULT: dict[str, bool] = {}


def _is_search(t: Tensor) -> bool:
    """Whether a reduction gives a position, which chunks would make local."""
    return t.node.op.name in ("argmax", "argmin")


def _same_shape(a: Shape, b: Shape) -> bool:
    return a is b or a == b


def _splits(shape: Shape, red: tuple[int, ...], chunk: int) -> bool:
    """Whether a reduction has so few kept elements that its first axis must be cut in chunks.

    Depends on which sizes are known to be 1, never on how large an unknown one is; small known
    totals are left whole.
    """
    vec = len(shape) - 1
    kept = [a for a in range(len(shape)) if a not in red and a != vec and shape[a] != 1]
    if kept:
        return False
    total: DimLike = dims.product(shape)
    return not (isinstance(total, int) and total <= chunk)


def _users(order: Sequence[Node]) -> dict[int, list[Node]]:
    """The nodes that read each tensor, by its id."""
    users: dict[int, list[Node]] = {}
    for node in order:
        for t in node.inputs:
            users.setdefault(id(t), []).append(node)
    return users


def _update_only(program: Program, users: dict[int, list[Node]]) -> set[int]:
    """Elementwise tensors used for nothing but new values of variables.

    They stay out of contraction epilogues: there they would have to read and write the variable
    while other readers still need it.
    """
    targets = {id(t) for _, t in program.updates}
    elsewhere = {id(t) for t in program.fetches}
    late: set[int] = set()
    for node in reversed(program.order()):
        if node.kind != "elementwise":
            continue
        t = node.outputs[0]
        if id(t) in elsewhere:
            continue
        readers = users.get(id(t), ())
        if (id(t) in targets or readers) and all(id(r.outputs[0]) in late for r in readers):
            late.add(id(t))
    return late
