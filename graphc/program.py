"""A program: what the passes transform.  Pure functions of inputs and state, plus updates.

Imports: graph, types, dims, location.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import is_
from typing import Any

from graphc import dims
from graphc.builder import Builder, making_nodes_in
from graphc.constraints import Constraint
from graphc.dims import Atom, Dim, DimLike
from graphc.location import Location
from graphc.node import Node, Tensor, topological


@dataclass(frozen=True)
class Program:
    """inputs are leaves fed at run time; updates are (variable, new value); nothing is ordered
    but by data."""

    inputs: tuple[Tensor, ...]
    fetches: tuple[Tensor, ...]
    updates: tuple[tuple[Tensor, Tensor], ...] = ()

    def __str__(self) -> str:
        from graphc.text import print_program

        return print_program(self)

    @property
    def roots(self) -> tuple[Tensor, ...]:
        return self.fetches + tuple(value for _, value in self.updates)

    def order(self) -> list[Node]:
        """Every node the roots need, each after its inputs; found once, not to be changed."""
        found: list[Node] | None = self.__dict__.get("_order")
        if found is None:
            found = topological([t.node for t in self.roots], control=False)
            self.__dict__["_order"] = found
        return found

    def variables(self) -> tuple[Tensor, ...]:
        """The state the program reads or writes, in a fixed order."""
        read = [n.outputs[0] for n in self.order() if n.op.name == "variable"]
        written = [v for v, _ in self.updates]
        return tuple(dict.fromkeys((*read, *written)))

    def constraints(self) -> list[tuple[Constraint, Location]]:
        """Relations between sizes to check when they are known."""
        return [(c, n.loc) for n in self.order() for c in n.constraints]


Rebuild = Callable[[Node, list[Tensor]], "Sequence[Tensor] | None"]
"""(node, new inputs) -> replacement outputs, or None to keep the node on its new inputs."""


class _Watch(threading.local):
    """Who in this thread wants to know what replaces what; nobody but the debug mode does."""

    see: Callable[[str, Sequence[tuple[Tensor, Tensor]]], None] | None = None
    """(name of the rule, "" for a whole pass; pairs of a tensor and what replaces it)"""


WATCH = _Watch()


def rewrite(program: Program, rule: Rebuild, builder: Builder | None = None) -> Program:
    """Walk the program once in topological order, replacing nodes by `rule`.

    Nodes are interned as they are rebuilt, so common subexpressions merge; a replaced node hands
    its source line to what replaces it.
    """
    builder = builder or Builder()
    new: dict[int, Tensor] = {}
    with making_nodes_in(builder):
        for node in program.order():
            builder.loc = node.loc
            inputs = [new[id(t)] for t in node.inputs]
            outputs = rule(node, inputs)
            if outputs is None:
                outputs = keep(node, inputs, builder)
            for old, made in zip(node.outputs, outputs, strict=True):
                new[id(old)] = made
    if WATCH.see is not None:
        WATCH.see("", [(t, new[id(t)]) for node in program.order() for t in node.outputs])
    return replace(
        program,
        fetches=tuple(new[id(t)] for t in program.fetches),
        updates=tuple((v, new[id(t)]) for v, t in program.updates),
        inputs=tuple(new.get(id(t), t) for t in program.inputs),
    )


def keep(node: Node, inputs: Sequence[Tensor], builder: Builder) -> tuple[Tensor, ...]:
    """The node itself if nothing changed, else its application to the new inputs."""
    if len(inputs) == len(node.inputs) and all(map(is_, inputs, node.inputs)):
        return builder.adopt(node).outputs
    return builder.apply_again(node, inputs).outputs


# ---- sizes inside attributes -------------------------------------------------------------------


def map_dims(value: Any, function: Callable[[DimLike], Any]) -> Any:
    """An attribute value with every symbolic size replaced."""
    if isinstance(value, Dim):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_dims(v, function) for v in value)
    return value


def has_dims(value: Any) -> bool:
    """Whether an attribute value holds a symbolic size."""
    if isinstance(value, Dim):
        return True
    return isinstance(value, tuple) and any(has_dims(v) for v in value)


def evaluate_attrs(attrs: Mapping[str, Any], sizes: Mapping[Atom, int]) -> dict[str, Any]:
    """Attributes with every symbolic size as a number."""
    return {k: map_dims(v, lambda d: dims.evaluate(d, sizes)) for k, v in attrs.items()}
