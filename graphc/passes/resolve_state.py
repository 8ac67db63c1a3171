"""From the user's graph to a pure program: cut at feeds, drop what no fetch needs, order state.

    before:  %v = variable()  %a = assign(%v, %x)  %r = read_variable(%v) after %a   fetch %r
    after:   fetch %x, update %v := %x

Within a run a variable's value is the one at the start, except for `read_variable` nodes ordered
behind assignments.  Assignments take effect in the order their nodes were made; several
`assign_add` all count.  Random operators become pure functions of a counter that is state.
Keeps: values.  Imports: graph, program, ops.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphc import dims
from graphc.builder import Builder, making_nodes_in
from graphc.node import Node, Tensor, topological
from graphc.ops.arithmetic import add, subtract
from graphc.ops.check import assert_op
from graphc.ops.define import constant
from graphc.ops.state import ensure_shape, placeholder_op, read_op
from graphc.program import Program, keep
from graphc.types import Shape

Assignments = int
"""A set of assignments, as bits: those a node is ordered behind."""


def resolve_state(
    fetches: Sequence[Tensor],
    targets: Iterable[Node],
    feeds: Sequence[Tensor],
    givens: Sequence[tuple[Tensor, Tensor]] = (),
    updates: Sequence[tuple[Tensor, Tensor]] = (),
) -> Program:
    """The program that computes `fetches` and runs `targets` when `feeds` are given.

    givens   (tensor, replacement): every use of the tensor sees the replacement instead, except
             inside the replacements themselves
    updates  (variable, new value) to commit besides what assignments write
    The program's fetches are those asked for, then the assertions that the run must check.
    """
    return _Resolver(fetches, targets, feeds, givens, updates).program()


class _Resolver:
    def __init__(
        self,
        fetches: Sequence[Tensor],
        targets: Iterable[Node],
        feeds: Sequence[Tensor],
        givens: Sequence[tuple[Tensor, Tensor]],
        updates: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        self.fetches = fetches
        self.givens = givens
        self.updates = updates
        self.builder = Builder()
        self.new: dict[int, Tensor] = {}
        self.read: set[int] = set()  # variables (by node id) that a node reads behind others
        self.assigned: dict[int, list[tuple[Assignments, Tensor]]] = {}  # and what they are set to
        self.done: dict[int, Tensor] = {}  # what assignments wrote: a second walk finds it done
        self.behind: dict[int, Assignments] = {}  # by node id, where there are any
        self.blocks: dict[int, Assignments] = {}  # by the tuple of nodes that a block waits for
        self.bits = 0
        self.latest: dict[int, Tensor] = {}
        self.written: dict[int, Tensor] = {}
        self.assertions: dict[int, Tensor] = {}
        self.roots = [t.node for t in fetches] + list(targets) + [t.node for _, t in updates]
        self.cut = {id(t): t for t in feeds}
        self.inputs = tuple(self._input(t) for t in feeds)

    def _order(self, roots: Iterable[Node]) -> list[Node]:
        """What the roots need, down to where the graph is cut, in the order it was made.

        Creation order is a topological order, and the order in which assignments take effect.
        """
        cut = self.cut
        stop = {t.node.id for t in cut.values() if all(id(o) in cut for o in t.node.outputs)}
        order = topological(roots, stop=stop)
        return sorted((n for n in order if n.id not in stop), key=lambda n: n.id)

    def _input(self, t: Tensor) -> Tensor:
        if t.node.op is placeholder_op:
            made = t
        else:
            attrs = {"dtype": t.dtype, "shape": _input_shape(t)}
            self.builder.loc = t.node.loc
            made = self.builder.make(placeholder_op, (), attrs, t.node.name).outputs[0]
        self.new[id(t)] = made
        return made

    def program(self) -> Program:
        with making_nodes_in(self.builder):
            self._replace_givens()
            self._walk(self._order(self.roots))
            for variable, value in self.updates:
                self._write(variable, self.new[id(value)])
        fetches = (*(self.new[id(t)] for t in self.fetches), *self.assertions.values())
        updates = tuple((v, self.latest[i]) for i, v in self.written.items())
        return Program(self.inputs, fetches, updates)

    def _replace_givens(self) -> None:
        """Compute the replacements in the graph as it is, then cut the graph at what they replace.

        What both halves compute alike is one node, for the builder interns.
        """
        if not self.givens:
            return
        inputs = dict(self.new)
        self._walk(self._order([r.node for _, r in self.givens]))
        replaced = {id(t): self.new[id(r)] for t, r in self.givens}
        self.new = inputs | replaced
        self.cut.update((id(t), t) for t, _ in self.givens)

    def _walk(self, order: Sequence[Node]) -> None:
        self.read.update(n.inputs[0].node.id for n in order if n.op is read_op)
        self.assigned.clear()
        self.blocks.clear()
        for node in order:
            self.builder.loc = node.loc
            behind = self._ordered_behind(node) if self.read else 0
            if behind:
                self.behind[node.id] = behind
            outputs = self._outputs(node, behind)
            for old, made in zip(node.outputs, outputs, strict=True):
                self.new.setdefault(id(old), made)
            if node.op is assert_op:
                self.assertions[node.id] = self.new[id(node.outputs[0])]

    def _ordered_behind(self, node: Node) -> Assignments:
        """The assignments to variables in `read` that this node is ordered behind."""
        found = self._union([t.node for t in node.inputs])
        if node.control:
            key = id(node.control)  # one tuple for all nodes of the block
            if key not in self.blocks:
                self.blocks[key] = self._union(node.control)
            found |= self.blocks[key]
        return found

    def _union(self, nodes: Sequence[Node]) -> Assignments:
        found = 0
        for node in nodes:
            more = self.behind.get(node.id, 0)
            if more and more != found:
                found = found | more if found else more  # the same int where it can be
        return found

    def _outputs(self, node: Node, behind: Assignments) -> Sequence[Tensor]:
        name = node.op.name
        if name == "group":
            return ()
        if name == "read_variable":
            return (self._version(node.inputs[0], behind),)
        if name == "assign":
            return (self._assign(node, behind),)
        if name == "custom_gradient":
            return [self.new[id(t)] for t in node.inputs[: len(node.outputs)]]
        if node.op.kind == "random":
            return (self._random(node),)
        return keep(node, [self.new[id(t)] for t in node.inputs], self.builder)

    def _version(self, variable: Tensor, behind: Assignments) -> Tensor:
        """What the last of these assignments set the variable to; else its value at the start."""
        for bit, value in reversed(self.assigned.get(variable.node.id, ())):
            if bit & behind:
                return value
        return self.new[id(variable)]

    def _assign(self, node: Node, behind: Assignments) -> Tensor:
        variable = node.inputs[0]
        key = variable.node.id
        if node.id not in self.done:
            self.done[node.id] = self._write(variable, self._value_assigned(node))
        made = self.done[node.id]
        if key in self.read:
            bit = 1 << self.bits
            self.bits += 1
            self.assigned.setdefault(key, []).append((bit, made))
            self.behind[node.id] = behind | bit
        return made

    def _value_assigned(self, node: Node) -> Tensor:
        variable, value = node.inputs
        made = self.new[id(value)]
        if node.attrs["how"] == "set":
            return made
        base = self.latest.get(variable.node.id, self.new[id(variable)])
        result: Tensor = (add if node.attrs["how"] == "add" else subtract)(base, made)
        return result

    def _write(self, variable: Tensor, value: Tensor) -> Tensor:
        if value.type.shape != variable.type.shape:  # sizes known only at run time
            value = ensure_shape(value, variable.type.shape)
        self.latest[variable.node.id] = value
        self.written[variable.node.id] = variable
        return value

    def _random(self, node: Node) -> Tensor:
        """Random bits as a function of the run counter, which every such run advances by one."""
        assert node.graph is not None and node.graph.random_counter is not None
        counter = node.graph.random_counter
        if counter.node.id not in self.latest:
            self.latest[counter.node.id] = add(counter, constant(1, counter.dtype))
            self.written[counter.node.id] = counter
        made: Tensor = node.op.lower(counter, **node.attrs)
        return made


def _input_shape(t: Tensor) -> Shape | None:
    """The declared shape of a fed intermediate: sizes that are not plain symbols become free."""
    shape = t.type.shape
    if shape is None:
        return None
    return tuple(
        d if isinstance(d, int) or is_symbol(d) else dims.symbol(f"{t.node.name}?{t.index}.{i}")
        for i, d in enumerate(shape)
    )


def is_symbol(d: dims.DimLike) -> bool:
    """Whether d is one symbol and nothing else."""
    if isinstance(d, int) or len(d.terms) != 1:
        return False
    monomial, coefficient = d.terms[0]
    return coefficient == 1 and len(monomial) == 1 and monomial[0].kind == "symbol"
