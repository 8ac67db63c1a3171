"""What a well-formed graph or program is, and the check that one is.

A node uses only outputs of nodes before it; its types are what its operator infers; a program's
leaves are its inputs or variables; an update has the type of its variable; a graph's nodes are its
own and have names of their own.  A violation is a bug in graphc: VerifyError shows the lines around
it.  Imports: parse, text, graph, program, types.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

from graphc.builder import infer_node
from graphc.dims import DimLike
from graphc.errors import GraphcError, VerifyError
from graphc.graph import Graph
from graphc.node import OPS, Node, Tensor
from graphc.parse import new_sizes
from graphc.program import Program
from graphc.text import Printer
from graphc.types import TensorType

CONTEXT = 3
"""Lines shown before and after the wrong one."""


def verify(subject: Program | Graph, after: str = "") -> None:
    """Raise VerifyError if `subject` is ill-formed; `after` names the pass that made it."""
    if isinstance(subject, Graph):
        _GraphCheck(subject.nodes, after).graph(subject)
    else:
        _ProgramCheck(_all_nodes(subject), after).program(subject)


def _all_nodes(program: Program) -> list[Node]:
    """Every node of the program, inputs first; ends even when nodes form a cycle."""
    variables = tuple(v for v, _ in program.updates)
    seen: set[int] = set()
    order: list[Node] = []
    roots = [t.node for t in (*program.inputs, *variables, *program.roots)]
    stack = [(n, False) for n in reversed(roots)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((t.node, False) for t in reversed(node.inputs))
    return order


class _Check:
    """Checks that hold for the nodes of graphs and programs alike."""

    unique = True

    def __init__(self, nodes: Sequence[Node], after: str) -> None:
        self.nodes = nodes
        self.after = after
        self.before: set[int] = set()
        self.ids: dict[int, Node] = {}

    def node(self, node: Node) -> None:
        if self.ids.setdefault(node.id, node) is not node:
            self.fail(node, "two nodes have one id")
        if OPS.get(node.op.name) is not node.op:
            self.fail(node, f"{node.op.name} is not the registered operator of that name")
        for i, t in enumerate(node.inputs):
            self.operand(node, t, f"operand {i}")
            if id(t.node) not in self.before:
                self.fail(node, f"operand {i} is {t.node.name!r}, which is not defined before it")
        for i, out in enumerate(node.outputs):
            if out.node is not node or out.index != i:
                self.fail(node, f"output {i} is not an output of this node")
        if len(node.outputs) != len(node.types):
            self.fail(node, f"{len(node.outputs)} outputs of {len(node.types)} types")
        self.types(node)
        self.before.add(id(node))

    def operand(self, node: Node, t: Tensor, what: str) -> None:
        """`t` is one of its node's outputs, not a copy of one."""
        if not 0 <= t.index < len(t.node.outputs) or t.node.outputs[t.index] is not t:
            self.fail(node, f"{what} is not an output of {t.node.name!r}")

    def types(self, node: Node) -> None:
        try:
            attrs, inferred, _ = infer_node(node.op, node.inputs, dict(node.attrs))
        except GraphcError as error:
            self.fail(node, f"its types cannot be inferred: {error}")
        if attrs != dict(node.attrs):
            self.fail(node, f"its attributes in canonical form are {attrs}")
        made = new_sizes(inferred, node.inputs, attrs)
        if not _equal(node.types, inferred, made):
            listed = ", ".join(map(str, inferred)) or "nothing"
            self.fail(node, f"its operator infers {listed}")

    def fail(self, node: Node, message: str) -> NoReturn:
        head = f"after pass {self.after}: " if self.after else ""
        raise VerifyError(f"{head}{message}\n{excerpt(self.nodes, node, self.unique)}")


class _GraphCheck(_Check):
    unique = False

    def graph(self, graph: Graph) -> None:
        names: set[str] = set()
        for node in self.nodes:
            if node.graph is not graph:
                self.fail(node, "the node belongs to another graph")
            if not node.name:
                self.fail(node, "the node has no name")
            if node.name in names:
                self.fail(node, f"the name {node.name!r} is taken by an earlier node")
            names.add(node.name)
            for c in node.control:
                if id(c) not in self.before:
                    self.fail(node, f"it is ordered after {c.name!r}, which is not before it")
            self.node(node)


class _ProgramCheck(_Check):
    def program(self, program: Program) -> None:
        fed = {id(t) for t in program.inputs}
        owner: Graph | None = None
        for node in self.nodes:
            self.node(node)
            if node.graph is not None:
                if owner is not None and node.graph is not owner:
                    self.fail(node, "the node belongs to another graph than those before it")
                owner = node.graph
            if node.op.name == "placeholder" and id(node.outputs[0]) not in fed:
                self.fail(node, "a placeholder that is not an input of the program")
        for t in program.inputs:
            self.operand(t.node, t, "an input of the program")
            if t.node.inputs:
                self.fail(t.node, "an input of the program that is computed")
        self.once(program.inputs, "an input of the program")
        for t in program.fetches:
            self.operand(t.node, t, "a fetch")
        self.updates(program)

    def once(self, tensors: Iterable[Tensor], what: str) -> None:
        seen: set[int] = set()
        for t in tensors:
            if id(t) in seen:
                self.fail(t.node, f"{what} is listed twice")
            seen.add(id(t))

    def updates(self, program: Program) -> None:
        self.once((v for v, _ in program.updates), "an updated variable")
        for variable, value in program.updates:
            self.operand(variable.node, variable, "an updated variable")
            self.operand(value.node, value, "the value of an update")
            if variable.node.op.name != "variable":
                self.fail(variable.node, "an update of what is not a variable")
            if value.type != variable.type:
                self.fail(
                    value.node,
                    f"an update of type {value.type} for {variable.node.name!r} {variable.type}",
                )


def _equal(given: Sequence[TensorType], inferred: Sequence[TensorType], made: set[DimLike]) -> bool:
    """Equal types, up to sizes that inference makes anew each time."""
    if len(given) != len(inferred):
        return False
    for a, b in zip(given, inferred, strict=True):
        if a.dtype is not b.dtype or (a.shape is None) != (b.shape is None) or a.rank != b.rank:
            return False
        for d, e in zip(a.shape or (), b.shape or (), strict=True):
            if d != e and e not in made:
                return False
    return True


def excerpt(nodes: Sequence[Node], wrong: Node, unique: bool = True) -> str:
    """The lines around `wrong`, which is marked."""
    printer = Printer(unique)
    rows: list[str] = []
    at = 0
    for node in nodes:
        mark = " "
        if node is wrong:
            mark = ">"
            at = len(rows)
        rows.append(f"{mark} {printer.node(node)}")
    return "\n".join(rows[max(0, at - CONTEXT) : at + CONTEXT + 1])
