"""Fetches: the tensors and operations in a nest, and the nest rebuilt from their values; and the
tensors that feeds name.

Imports: feeds, foreign, graph, errors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from graphc import feeds, foreign
from graphc.errors import FeedError, FeedTypeError, FetchError, FetchTypeError, GraphError
from graphc.graph import Graph
from graphc.node import Node, Tensor

Fetch = Tensor | Node
Rebuild = Callable[[list[Any]], Any]


def flatten_fetches(fetches: Any, graph: Graph) -> tuple[list[Fetch], Rebuild]:
    """The tensors and operations in a nest, and how to put their values back in its place.

    Raises FetchTypeError for what cannot be fetched, FetchError for what is not in `graph`.
    """
    flat: list[Fetch] = []
    try:
        build = _flatten(fetches, graph, flat)
    except RecursionError:
        raise FetchTypeError("cannot fetch a structure that contains itself") from None
    return flat, build


def items_of(fetches: Any) -> Iterable[Any]:
    """The fetches one level down in a nest; in a nest that is no deeper, they are all."""
    if isinstance(fetches, (list, tuple)):
        return fetches
    return fetches.values() if type(fetches) is dict else (fetches,)


def put_back(fetches: Any, values: list[Any]) -> Any:
    """The values of `items_of(fetches)` in the form of the nest."""
    kind = type(fetches)
    if kind is list:
        return values
    if kind is tuple:
        return tuple(values)
    if kind is dict:
        return dict(zip(fetches, values, strict=True))
    if isinstance(fetches, (list, tuple)):
        if hasattr(fetches, "_fields"):
            return kind(*values)
        return values if isinstance(fetches, list) else tuple(values)
    return values[0]


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


# ---- results in given arrays -------------------------------------------------------------------


def form_of(fetches: Any) -> str | None:
    """Whether fetches are one tensor ('bare') or a flat 'list' or 'tuple'; None for other nests."""
    if isinstance(fetches, (Tensor, str)):
        return "bare"
    if type(fetches) in (list, tuple) and all(isinstance(f, (Tensor, str)) for f in fetches):
        return type(fetches).__name__
    return None


def require_out(form: str | None) -> None:
    """Raise FetchTypeError unless results of this form can be put in given arrays."""
    if form is None:
        raise FetchTypeError(
            "out= takes the results of a tensor, or of a list or tuple of distinct tensors, "
            "of a program that writes no variables"
        )


def write_out(values: Any, out: Any) -> Any:
    """Copy results, bare or in a list or tuple, into the arrays of `out`, and return `out`."""
    if not isinstance(values, (list, tuple)):
        _write(values, out)
        return out
    if not isinstance(out, (list, tuple)) or len(out) != len(values):
        raise FetchTypeError(f"out= is a list of {len(values)} arrays here, not {out!r:.60}")
    for value, array in zip(values, out, strict=True):
        _write(value, array)
    return out


def _write(value: Any, out: Any) -> None:
    target = foreign.shared_array(out)
    if target is None:
        raise FetchTypeError(f"out= is an array, not {out!r:.60}")
    if target.shape != value.shape or target.dtype != value.dtype or not target.flags.writeable:
        kind = "" if target.flags.writeable else "read-only "
        raise FetchTypeError(
            f"out= is a {kind}array of {target.dtype} {target.shape}; "
            f"the result is {value.dtype} {value.shape}"
        )
    np.copyto(target, value)


# ---- what is fed -------------------------------------------------------------------------------


def feed_keys(feed_dict: Mapping[Any, Any] | None, graph: Graph) -> tuple[Tensor, ...]:
    """The tensors that a feed_dict names, in its order; raises FeedTypeError or FeedError."""
    if feed_dict is None:
        return ()
    if not isinstance(feed_dict, Mapping):
        raise FeedTypeError(f"feed_dict is a dict of values by tensor, not {feed_dict!r:.60}")
    fed = tuple(feed_key(k, graph) for k in feed_dict)
    if len(dict.fromkeys(fed)) != len(fed):
        twice = next(t for i, t in enumerate(fed) if any(t is u for u in fed[:i]))
        raise FeedError(f"feed_dict has {feeds.label(twice)} twice")
    return fed


def feed_key(key: Any, graph: Graph) -> Tensor:
    """The tensor of this graph that a key of a feed_dict names."""
    if isinstance(key, str):
        try:
            key = graph.get_tensor_by_name(key)
        except GraphError as error:
            raise FeedTypeError(f"feed {key!r}: {error}") from None
    if not isinstance(key, Tensor):
        raise FeedTypeError(f"a feed is named by a tensor or a name, not by {key!r}")
    if key.graph is not graph:
        raise FeedError(f"feed {key!r} belongs to another graph than this session's")
    return key


def partial_run(
    run: Callable[..., Any], graph: Graph, given: Mapping[Any, Any]
) -> Callable[..., Any]:
    """A session's `run` with some feeds given; those given at a call take their place."""
    defaults = {feed_key(k, graph): v for k, v in given.items()}

    def partial(
        fetches: Any, feed_dict: Mapping[Any, Any] | None = None, options: Any = None
    ) -> Any:
        given = {feed_key(k, graph): v for k, v in (feed_dict or {}).items()}
        return run(fetches, {**defaults, **given}, options)

    return partial
