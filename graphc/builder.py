"""Making nodes: inference with located errors, and the interning builder that passes use.

Imports: node, constraints, location, errors.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from graphc.constraints import Constraint, collected
from graphc.errors import GraphcError
from graphc.location import UNKNOWN, Location
from graphc.node import AttrsKey, Node, Op, Tensor, key_of_attrs
from graphc.types import TensorType

# ---- factories -----------------------------------------------------------------------------


class NodeFactory(Protocol):
    """Something that makes nodes: the user's graph, or a pass's builder."""

    def make(
        self,
        op: Op,
        inputs: Sequence[Tensor],
        attrs: dict[str, Any],
        name: str | None = None,
        control: Sequence[Node] = (),
    ) -> Node: ...


class _Factories(threading.local):
    def __init__(self) -> None:
        self.stack: list[NodeFactory] = []


_factories = _Factories()


def entered_factories() -> list[NodeFactory]:
    """The factories whose blocks this thread is in, innermost last."""
    return _factories.stack


@contextlib.contextmanager
def making_nodes_in(factory: NodeFactory) -> Iterator[None]:
    """Make `factory` this thread's current factory inside the block.

    A signal handler may raise just when the block is left, and so keep it from being left: what
    compiles takes back by itself what is entered then, as `Entry.bind` does.
    """
    stack = _factories.stack  # also when a forked child clears away the block of a lost thread
    stack.append(factory)
    try:
        yield
    finally:
        for place in range(len(stack) - 1, -1, -1):  # it may have been taken back
            if stack[place] is factory:
                del stack[place]
                break


# ---- inference ---------------------------------------------------------------------------------

_REMEMBERED_KINDS = frozenset(("elementwise", "view", "reduce", "contraction", "nest"))
"""Operators whose types are few however many nodes there are; attributes of others hold arrays
and functions, which nothing should keep alive."""

_LIMIT = 1 << 14

_inferred: dict[Any, tuple[tuple[TensorType, ...], tuple[Constraint, ...]]] = {}
"""(operator, input types, attributes) -> output types and constraints: what an infer function
said, which depends on nothing else."""


def infer_node(
    op: Op, inputs: Sequence[Tensor], attrs: dict[str, Any]
) -> tuple[dict[str, Any], tuple[TensorType, ...], tuple[Constraint, ...]]:
    """Canonical attrs, output types and undecided constraints; raises unlocated errors."""
    types = tuple([t.type for t in inputs])
    if op.normalize is not None and not any(t.shape is None for t in types):
        attrs = op.normalize(types, attrs)
    if op.kind not in _REMEMBERED_KINDS:
        return attrs, *collected(op.infer, types, attrs)
    key = (op, types, tuple(attrs.items()))
    found = _inferred.get(key)
    if found is None:
        found = collected(op.infer, types, attrs)
        if len(_inferred) >= _LIMIT:
            _inferred.clear()
        _inferred[key] = found
    return attrs, *found


def located(error: GraphcError, op: Op, inputs: Sequence[Tensor], loc: Location) -> GraphcError:
    """The same error with the user's line and the operands' origins."""
    rows = [f"{op.name}: {error}", f"  at {loc}   {loc.source}"]
    for i, t in enumerate(inputs):
        made = t.node.loc
        rows.append(
            f"  operand {i}: {t.type!s:<14} {t.node.op.name} {t.node.name!r} created at {made}   "
            f"{made.source}".rstrip()
        )
    return type(error)("\n".join(rows))


class Builder:
    """Makes the nodes of passes, interned: equal stateless applications are one node.

    New nodes take the location that `loc` holds when they are made.
    """

    def __init__(self) -> None:
        self._table: dict[Any, Node] = {}
        self.loc: Location = UNKNOWN

    def make(
        self,
        op: Op,
        inputs: Sequence[Tensor],
        attrs: dict[str, Any],
        name: str | None = None,
        control: Sequence[Node] = (),
    ) -> Node:
        inputs = tuple(inputs)
        key = None
        if not op.stateful:
            key = _key(op, inputs, key_of_attrs(attrs))
            node = self._table.get(key)
            if node is not None:
                return node
        try:
            canonical, types, constraints = infer_node(op, inputs, attrs)
        except GraphcError as error:
            raise located(error, op, inputs, self.loc) from None
        if op.stateful:
            return Node(op, inputs, canonical, types, self.loc, name or "", tuple(control))
        given = key
        if canonical is not attrs:
            key = _key(op, inputs, key_of_attrs(canonical))
        node = self._table.get(key)
        if node is None:
            node = Node(op, inputs, canonical, types, self.loc, name or "", (), None, constraints)
            self._table[key] = node
        self._table[given] = node
        return node

    def apply_again(self, node: Node, inputs: Sequence[Tensor]) -> Node:
        """The application of a node's operator to other inputs.

        Where they are of the same types nothing is inferred again.
        """
        op = node.op
        if op.stateful or [t.type for t in inputs] != [t.type for t in node.inputs]:
            return self.make(op, inputs, dict(node.attrs), node.name)
        inputs = tuple(inputs)
        key = _key(op, inputs, node.attrs_key)
        found = self._table.get(key)
        if found is None:
            found = self._table[key] = Node(
                op,
                inputs,
                node.attrs,
                node.types,
                self.loc,
                node.name,
                (),
                None,
                node.constraints,
                node.attrs_key,
            )
        return found

    def adopt(self, node: Node) -> Node:
        """An existing node, or the equal one this builder has already."""
        if node.op.stateful:
            return node
        return self._table.setdefault(_key(node.op, node.inputs, node.attrs_key), node)


def _key(op: Op, inputs: tuple[Tensor, ...], attrs: AttrsKey) -> Any:
    return op.name, attrs, *map(id, inputs)
