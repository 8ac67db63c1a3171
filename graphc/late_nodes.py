"""Nodes made after their graph was first run, and without a name of the user's.

A loop that builds an expression and runs it would make the graph grow for ever.  So such a node
stays only as long as something refers to it: a Python variable, another node, a compiled call.
Making the same application on the same line again gives the node that is there already.  And a line
that goes on adding nodes from run to run is warned about.
Imports: node, location, errors.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

from graphc.errors import GraphGrowthWarning
from graphc.location import Location
from graphc.node import Node, Op, Tensor, key_of_attrs

GROWING = 256
"""Compiled runs that a line has added nodes for when it is warned about."""

_SHARED_KINDS = frozenset(("elementwise", "view", "reduce", "contraction", "nest"))

_SMALL = 4096
"""Larger constants, in bytes, are not compared with each other."""


class _Reference(weakref.ref[Node]):
    """A node, and what it is found by."""

    __slots__ = ("id", "key", "name")

    id: int
    key: Any
    name: str


class LateNodes:
    """The late nodes of one graph that something still refers to; used under the graph's lock."""

    def __init__(self) -> None:
        self._by_id: dict[int, _Reference] = {}
        self._by_name: dict[str, _Reference] = {}
        self._by_key: dict[Any, _Reference] = {}
        self._lines: dict[Location, tuple[int, int]] = {}  # its last compiled run, how many so far
        self.runs = 1

    def find(self, key: Any) -> Node | None:
        """The node made under this key, if it is there still."""
        reference = self._by_key.get(key)
        return None if reference is None else reference()

    def named(self, name: str) -> Node | None:
        """The node of this name, if it is there still."""
        reference = self._by_name.get(name)
        return None if reference is None else reference()

    def add(self, node: Node, key: Any) -> None:
        """Know this node as long as it lives; under its key too, unless that is None."""
        reference = _Reference(node, self._forget)
        reference.id, reference.key, reference.name = node.id, key, node.name
        self._by_id[node.id] = self._by_name[node.name] = reference
        if key is not None:
            self._by_key[key] = reference

    def _forget(self, reference: Any) -> None:
        for table, key in (
            (self._by_id, reference.id),
            (self._by_name, reference.name),
            (self._by_key, reference.key),
        ):
            if table.get(key) is reference:
                del table[key]

    def all(self) -> list[Node]:
        """The nodes that are there now."""
        found = [reference() for reference in list(self._by_id.values())]
        return [node for node in found if node is not None]

    def growth(self, loc: Location, op: Op) -> str | None:
        """What to warn about now that this line has added a node."""
        last, times = self._lines.get(loc, (0, 0))
        if last == self.runs or op.name == "constant":  # what uses it comes next
            return None
        self._lines[loc] = self.runs, times + 1
        if times + 1 != GROWING:
            return None
        return (
            f"this line has added {op.name!r} to the graph for {GROWING} runs in a row, each of "
            f"which had to be compiled: build the expression once, before the loop, and feed what "
            f"changes ({loc}   {loc.source})"
        )


def warn_of_growth(message: str, loc: Location) -> None:
    """Issue the warning at the user's line."""
    warnings.warn_explicit(message, GraphGrowthWarning, loc.file or "?", loc.line)


def key_of(
    op: Op,
    inputs: Sequence[Tensor],
    attrs: dict[str, Any],
    control: Sequence[Node],
    prefix: str,
    loc: Location,
) -> Any:
    """What tells an application from others; None where it is never shared.

    The inputs of a node that is there are there, so that their identities are theirs.
    """
    if op.stateful or op.name == "identity":  # people make identities to tell tensors apart
        return None
    if op.name == "constant":
        if any(v.array.nbytes > _SMALL for v in attrs.values() if hasattr(v, "array")):
            return None
    elif op.kind not in _SHARED_KINDS:
        return None
    key = (op, tuple(map(id, inputs)), key_of_attrs(attrs), tuple(map(id, control)), prefix, loc)
    try:
        hash(key)
    except TypeError:
        return None
    return key
