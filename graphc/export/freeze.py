"""Smaller graphs from a graph: what some outputs need, and variables turned into constants.

Imports: graph, ops, parse, session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.errors import GraphError, GraphTypeError
from graphc.graph import Graph
from graphc.node import OPS, ConstantValue, Node, Tensor, as_node, topological
from graphc.ops.state import Variable
from graphc.parse import insert_node

Array = np.ndarray[Any, Any]
Outputs = Tensor | Node | str | Sequence[Tensor | Node | str]


def prune(graph: Graph, outputs: Outputs) -> Graph:
    """A new graph of only the nodes that `outputs` need, under the same names.

    A variable that is needed keeps its initializer and so can be initialized or restored.
    """
    roots = _roots(graph, outputs)
    for node in topological(roots):
        for t in node.outputs:
            if isinstance(t, Variable):
                roots.append(t.initializer)
    needed = {n.id for n in topological(roots)}
    return _copy(graph, [n for n in graph.nodes if n.id in needed], {})


def freeze(graph: Graph, outputs: Outputs, session: Any) -> Graph:
    """A new graph of what `outputs` need, with variables as constants of their values in `session`.

    Raises GraphError if the outputs assign to a variable, UninitializedError if one has no value.
    """
    needed = {n.id for n in topological(_roots(graph, outputs))}
    nodes = [n for n in graph.nodes if n.id in needed]
    values: dict[int, Array] = {}
    counter = graph.random_counter
    for node in nodes:
        if node.op.name == "assign":
            raise GraphError(
                f"freeze: the outputs need {node.name!r} ({node.loc}), which assigns to a variable"
            )
        if node.op.name == "variable" and (counter is None or node is not counter.node):
            values[node.id] = session.get_value(node.outputs[0])
    random = any(n.kind == "random" for n in nodes)
    if random and counter is not None and counter.node.id not in needed:
        nodes = [counter.node, *nodes]
    return _copy(graph, nodes, values)


def _roots(graph: Graph, outputs: Outputs) -> list[Node]:
    listed = [outputs] if isinstance(outputs, (str, Tensor, Node)) else list(outputs)
    roots: list[Node] = []
    for item in listed:
        if isinstance(item, str):
            item = graph.get_operation_by_name(item.partition(":")[0])
        roots.append(as_node(item, graph))
    if not roots:
        raise GraphTypeError("no outputs were given")
    return roots


def _copy(graph: Graph, nodes: Sequence[Node], constants: Mapping[int, Array]) -> Graph:
    """The nodes in a graph of their own; those in `constants` become constants."""
    made = Graph(graph.seed, graph.strict_dtypes)
    made.random_ops = graph.random_ops
    copies: dict[int, Node] = {}
    for node in nodes:
        if node.id in constants:
            copy = _constant(node, constants[node.id], made)
        else:
            inputs = tuple(copies[t.node.id].outputs[t.index] for t in node.inputs)
            control = tuple(copies[n.id] for n in node.control if n.id in copies)
            copy = Node(
                node.op,
                inputs,
                node.attrs,
                node.types,
                node.loc,
                node.name,
                control,
                made,
                node.constraints,
            )
        copies[node.id] = copy
        insert_node(made, copy)
        if node.id in graph.gradient_rules:
            made.gradient_rules[copy.id] = graph.gradient_rules[node.id]
    _copy_variables(nodes, copies)
    _copy_collections(graph, made, copies)
    return made


def _constant(node: Node, value: Array, graph: Graph) -> Node:
    attrs = {"value": ConstantValue(value)}
    return Node(OPS["constant"], (), attrs, node.types, node.loc, node.name, (), graph)


def _copy_variables(nodes: Sequence[Node], copies: Mapping[int, Node]) -> None:
    for node in nodes:
        old = node.outputs[0] if node.outputs else None
        new = copies[node.id].outputs[0] if node.outputs else None
        if isinstance(old, Variable) and isinstance(new, Variable):
            new.trainable = old.trainable
            new.lr_mult = old.lr_mult
            initial = copies.get(old.initial_value.node.id)
            if initial is not None and old.initializer.id in copies:
                new.initial_value = initial.outputs[old.initial_value.index]
                new.initializer = copies[old.initializer.id]


def _copy_collections(graph: Graph, made: Graph, copies: Mapping[int, Node]) -> None:
    counter = graph.random_counter
    if counter is not None and counter.node.id in copies:
        made.random_counter = copies[counter.node.id].outputs[0]
    for key in graph.collection_keys():
        for value in graph.get_collection(key):
            if isinstance(value, Node):
                if value.id in copies:
                    made.add_to_collection(key, copies[value.id])
            elif not isinstance(value, Tensor):
                made.add_to_collection(key, value)
            elif value.node.id in copies:
                copy = copies[value.node.id].outputs[value.index]
                if isinstance(copy, Variable) or not isinstance(value, Variable):
                    made.add_to_collection(key, copy)
