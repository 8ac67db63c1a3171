"""Fetches: the tensors and operations in a nest, and the nest rebuilt from their values.

Imports: graph, errors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from graphc.errors import FetchError, FetchTypeError, GraphError
from graphc.graph import Graph
from graphc.node import Node, Tensor

Fetch = Tensor | Node
Rebuild = Callable[[list[Any]], Any]


def flatten_fetches(fetches: Any, graph: Graph) -> tuple[list[Fetch], Rebuild]:
    """The tensors and operations in a nest, and how to put their values back in its place.

    Raises FetchTypeError for what cannot be fetched, FetchError for what is not in `graph`.
    """
    flat: list[Fetch] = []
    build = _flatten(fetches, graph, flat)
    return flat, build


def _flatten(item: Any, graph: Graph, flat: list[Fetch]) -> Rebuild:
    if isinstance(item, (Tensor, Node, str)):
        position = len(flat)
        flat.append(_resolve_fetch(item, graph))
        return lambda values: values[position]
    if isinstance(item, Mapping):
        keys = list(item)
        parts = [_flatten(item[k], graph, flat) for k in keys]
        kind: Any = type(item) if type(item) in (dict, OrderedDict) else dict
        return lambda values: kind((k, part(values)) for k, part in zip(keys, parts, strict=True))
    if isinstance(item, (list, tuple)):
        parts = [_flatten(x, graph, flat) for x in item]
        if hasattr(item, "_fields"):
            named: Any = type(item)
            return lambda values: named(*[part(values) for part in parts])
        sequence: Any = list if isinstance(item, list) else tuple
        return lambda values: sequence(part(values) for part in parts)
    raise FetchTypeError(
        f"cannot fetch {item!r}: a fetch is a tensor, an operation, a name, or a list, tuple or "
        "dict of them"
    )


def _resolve_fetch(item: Any, graph: Graph) -> Fetch:
    if isinstance(item, str):
        try:
            if ":" in item:
                return graph.get_tensor_by_name(item)
            node = graph.get_operation_by_name(item)
        except GraphError as error:
            raise FetchError(f"fetch {item!r}: {error}") from None
        return node.outputs[0] if len(node.outputs) == 1 else node
    if item.graph is not graph:
        raise FetchError(f"fetch {item!r} belongs to another graph than this session's")
    fetch: Fetch = item
    return fetch
