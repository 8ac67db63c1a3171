"""Making nodes: inference with located errors, and the interning builder that passes use.

Imports: node, constraints, location, errors.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from graphc.constraints import Constraint, collecting
from graphc.errors import GraphcError
from graphc.location import UNKNOWN, Location
from graphc.node import Attrs, Node, Op, Tensor
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
    """Make `factory` this thread's current factory inside the block."""
    _factories.stack.append(factory)
    try:
        yield
    finally:
        _factories.stack.pop()


# ---- inference ---------------------------------------------------------------------------------


def infer_node(
    op: Op, inputs: Sequence[Tensor], attrs: dict[str, Any]
) -> tuple[dict[str, Any], tuple[TensorType, ...], tuple[Constraint, ...]]:
    """Canonical attrs, output types and undecided constraints; raises unlocated errors."""
    types = [t.node.types[t.index] for t in inputs]
    with collecting() as constraints:
        if op.normalize is not None and not any(t.shape is None for t in types):
            attrs = op.normalize(types, attrs)
        outputs = op.infer(types, attrs)
    return attrs, outputs, tuple(constraints)


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
        given = _key(op, inputs, attrs)
        if not op.stateful:
            node = self._table.get(given)
            if node is not None:
                return node
        try:
            attrs, types, constraints = infer_node(op, inputs, attrs)
        except GraphcError as error:
            raise located(error, op, inputs, self.loc) from None
        if op.stateful:
            return Node(op, inputs, attrs, types, self.loc, name or "", tuple(control))
        key = _key(op, inputs, attrs)
        node = self._table.get(key)
        if node is None:
            node = Node(op, inputs, attrs, types, self.loc, name or "", (), None, constraints)
            self._table[key] = node
        self._table[given] = node
        return node

    def adopt(self, node: Node) -> Node:
        """An existing node, or the equal one this builder has already."""
        if node.op.stateful:
            return node
        return self._table.setdefault(_key(node.op, node.inputs, node.attrs), node)


def _key(op: Op, inputs: tuple[Tensor, ...], attrs: Attrs) -> Any:
    items = tuple(sorted(attrs.items(), key=_first)) if len(attrs) > 1 else tuple(attrs.items())
    return op.name, tuple(map(id, inputs)), items


def _first(item: tuple[str, Any]) -> str:
    return item[0]
