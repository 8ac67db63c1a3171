"""Graphs outside the process: native files, frozen graphs, drawings."""

from __future__ import annotations

from graphc.export.dot import to_networkx, write_dot, write_graphml
from graphc.export.freeze import freeze, prune
from graphc.export.graph_file import save_graph
from graphc.export.model import Model, load_graph

__all__ = [
    "Model",
    "freeze",
    "load_graph",
    "prune",
    "save_graph",
    "to_networkx",
    "write_dot",
    "write_graphml",
]
