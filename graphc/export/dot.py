"""Graphs for drawing and for graph algorithms: networkx, DOT and GraphML.

Imports: graph, text, files; networkx only when asked for.
"""

from __future__ import annotations

import json
import os
from typing import Any

from graphc.files import write_all, write_atomically
from graphc.graph import Graph
from graphc.node import Node

_SHAPES = {"leaf": "ellipse", "state": "box3d"}


def to_networkx(graph: Graph) -> Any:
    """The graph as a networkx.MultiDiGraph of node names.

    Nodes carry op, kind, type and location; edges run from producer to consumer and carry output,
    input and control (True for an ordering without data, whose output and input are -1).
    """
    import networkx

    made = networkx.MultiDiGraph()
    for node in graph.nodes:
        made.add_node(
            node.name, op=node.op.name, kind=node.kind, type=_types(node), location=str(node.loc)
        )
    for node in graph.nodes:
        for i, t in enumerate(node.inputs):
            made.add_edge(t.node.name, node.name, output=t.index, input=i, control=False)
        for c in node.control:
            made.add_edge(c.name, node.name, output=-1, input=-1, control=True)
    return made


def _types(node: Node) -> str:
    return ", ".join(map(str, node.types))


def write_graphml(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the graph as GraphML, with the attributes of `to_networkx`."""
    import networkx

    text = "\n".join(networkx.generate_graphml(to_networkx(graph))) + "\n"
    write_atomically(path, lambda file: write_all(file, text.encode()))


def write_dot(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the graph for Graphviz; edges are labelled with types, dashed ones only order."""
    text = dot_text(graph)
    write_atomically(path, lambda file: write_all(file, text.encode()))


def dot_text(graph: Graph) -> str:
    """The graph in the DOT language."""
    number = {node.id: i for i, node in enumerate(graph.nodes)}
    rows = ["digraph graphc {", "  node [shape=box, fontsize=10];"]
    for node in graph.nodes:
        label = json.dumps(f"{node.op.name}\n{node.name}", ensure_ascii=False)
        shape = f", shape={_SHAPES[node.kind]}" if node.kind in _SHAPES else ""
        rows.append(f"  n{number[node.id]} [label={label}{shape}];")
    for node in graph.nodes:
        for t in node.inputs:
            label = json.dumps(str(t.type), ensure_ascii=False)
            rows.append(f"  n{number[t.node.id]} -> n{number[node.id]} [label={label}];")
        for c in node.control:
            rows.append(f"  n{number[c.id]} -> n{number[node.id]} [style=dashed];")
    return "\n".join([*rows, "}", ""])
