"""The user's graph: its nodes by name, scopes, collections, and which graph is the default.

Imports: node, builder, device_names, late_nodes, location, errors.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from graphc.builder import NodeFactory, entered_factories, infer_node, located, making_nodes_in
from graphc.device_names import device_name
from graphc.errors import FinalizedError, GraphcError, GraphError
from graphc.forks import new_lock, new_rlock
from graphc.late_nodes import LateNodes, key_of, warn_of_growth
from graphc.location import user_location
from graphc.node import OPS, Node, Op, Tensor, as_node, describe

# ---- the user's graph -------------------------------------------------------------------------


class GraphKeys:
    """Names of the standard collections."""

    GLOBAL_VARIABLES = "variables"
    TRAINABLE_VARIABLES = "trainable_variables"
    UPDATE_OPS = "update_ops"
    LOSSES = "losses"
    REGULARIZATION_LOSSES = "regularization_losses"
    SUMMARIES = "summaries"


_ALWAYS_KEPT = frozenset(("placeholder", "variable"))


class _Scopes(threading.local):
    """Per-thread building state of one graph."""

    def __init__(self) -> None:
        self.prefix = ""  # of names: the scopes entered, each with a slash
        self.control: tuple[Node, ...] = ()  # one tuple for all the nodes made in a block
        self.gradient_rules: list[dict[str, Callable[..., Any]]] = []
        self.device: str | None = None


class Graph:
    """The nodes a user declares, by name.  Safe to build from several threads.

    `seed` makes every random operator of the graph reproducible.  `strict_dtypes` refuses to mix
    dtypes, as TensorFlow does, instead of promoting as NumPy does.
    """

    def __init__(self, seed: int | None = None, strict_dtypes: bool = False) -> None:
        self._kept: list[Node] = []
        self._late: LateNodes | None = None  # once the graph has been run
        self.nodes_made = 0
        self.seed = seed
        self.strict_dtypes = strict_dtypes
        self.finalized = False
        self._by_name: dict[str, Node] = {}
        self._used: dict[str, int] = {}
        self._collections: dict[str, list[Any]] = {}
        self._lock = new_rlock()
        self._scopes = _Scopes()
        self.random_ops = 0
        self.random_counter: Tensor | None = None
        self.gradient_rules: dict[int, Callable[..., Any]] = {}
        self.function_session: Any = None  # where functions run outside any session
        self.devices: weakref.WeakKeyDictionary[Node, str] = weakref.WeakKeyDictionary()

    @property
    def nodes(self) -> list[Node]:
        """The nodes in the order they were made.

        Those made without a name after the graph was first run are among them only while something
        refers to them.
        """
        late = self._late.all() if self._late is not None else []
        return sorted([*self._kept, *late], key=lambda n: n.id) if late else self._kept

    def has_run(self) -> None:
        """Note that a run of this graph was compiled."""
        with self._lock:
            if self._late is None:
                self._late = LateNodes()
            self._late.runs += 1

    # ---- building

    def make(
        self,
        op: Op,
        inputs: Sequence[Tensor],
        attrs: dict[str, Any],
        name: str | None = None,
        control: Sequence[Node] = (),
    ) -> Node:
        """Add a node; raises the operator's error naming the user's line."""
        loc = user_location()
        for t in inputs:
            if t.node.graph is not self:
                raise GraphError(
                    f"{op.name}: {describe(t)} belongs to another graph than the one being built"
                )
        ordered = self._scopes.control
        if control:
            ordered = tuple(dict.fromkeys((*control, *ordered)))
        key = growth = None
        late = self._late if name is None and op.name not in _ALWAYS_KEPT else None
        if late is not None and not self._scopes.gradient_rules:
            scope = f"{self._scopes.prefix}@{self._scopes.device or ''}"
            key = key_of(op, inputs, attrs, ordered, scope, loc)
            same = late.find(key) if key is not None else None
            if same is not None:
                self.nodes_made += 1
                return same
        try:
            attrs, types, constraints = infer_node(op, inputs, attrs)
        except GraphcError as error:
            raise located(error, op, inputs, loc) from None
        with self._lock:
            if self.finalized:
                raise FinalizedError(f"{op.name}: the graph is finalized ({loc})")
            unique = self.unique_name(name or op.name, late is None)
            node = Node(op, tuple(inputs), attrs, types, loc, unique, ordered, self, constraints)
            self.nodes_made += 1
            if late is None:
                self._kept.append(node)
                self._by_name[unique] = node
            else:
                late.add(node, key)
                growth = late.growth(loc, op)
            if self._scopes.gradient_rules:
                rule = self._scopes.gradient_rules[-1].get(op.name)
                if rule is not None:
                    self.gradient_rules[node.id] = rule
            if self._scopes.device is not None:
                self.devices[node] = self._scopes.device
        if growth is not None:
            warn_of_growth(growth, loc)
        return node

    def unique_name(self, name: str, keep: bool = True) -> str:
        """`name` inside the current scope, made unique by a suffix `_1`, `_2`, ...

        keep  remember it for good, and not only as long as there is a node of this name
        """
        if not isinstance(name, str) or not name or ":" in name:
            raise GraphError(f"a name is text without colons, not {name!r}")
        with self._lock:
            full = self._scopes.prefix + name
            count = self._used.get(full, 0)
            self._used[full] = count + 1
            if count == 0 and not self._is_late(full):
                return full
            while True:
                candidate = f"{full}_{count}"
                if candidate not in self._used and not self._is_late(candidate):
                    if keep:
                        self._used[candidate] = 1
                    return candidate
                count += 1

    def _is_late(self, name: str) -> bool:
        return self._late is not None and self._late.named(name) is not None

    def as_default(self) -> contextlib.AbstractContextManager[Graph]:
        """`with graph.as_default():` nodes made in this thread go to this graph."""
        return self._as_default()

    @contextlib.contextmanager
    def _as_default(self) -> Iterator[Graph]:
        with making_nodes_in(self):
            yield self

    @contextlib.contextmanager
    def name_scope(self, name: str | None) -> Iterator[str]:
        """Prefix the names of nodes made inside with `name/`; None leaves all outer scopes."""
        full = self.unique_name(name) if name else ""
        mine = vars(self._scopes)  # this thread's, whichever thread clears a lost block away
        saved, mine["prefix"] = self._scopes.prefix, full + "/" if full else ""
        try:
            yield self._scopes.prefix
        finally:
            mine["prefix"] = saved

    @contextlib.contextmanager
    def control_dependencies(self, nodes: Iterable[Node | Tensor] | None) -> Iterator[None]:
        """Nodes made inside run after `nodes`; None clears the dependencies of outer blocks."""
        mine = vars(self._scopes)
        saved = self._scopes.control
        if nodes is None:
            mine["control"] = ()
        else:
            wanted = [as_node(n, self) for n in nodes]
            mine["control"] = tuple(dict.fromkeys((*saved, *wanted)))
        try:
            yield
        finally:
            mine["control"] = saved

    def control_inputs(self) -> tuple[Node, ...]:
        return self._scopes.control

    @contextlib.contextmanager
    def gradient_override(self, rules: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
        """Operators made inside use these gradient rules: {operator name: vjp}."""
        unknown = [n for n in rules if n not in OPS]
        if unknown:
            raise GraphError(f"no operator is called {unknown[0]!r}")
        stack = self._scopes.gradient_rules
        stack.append({**(stack[-1] if stack else {}), **rules})
        try:
            yield
        finally:
            stack.pop()

    @contextlib.contextmanager
    def device(self, name: str | None) -> Iterator[None]:
        """Nodes made inside are for this device; None takes outer blocks back.

        See `graphc.placement`.  Raises GraphTypeError for what names no device.
        """
        mine = vars(self._scopes)
        saved = self._scopes.device
        mine["device"] = None if name is None else device_name(name)
        try:
            yield
        finally:
            mine["device"] = saved

    def finalize(self) -> None:
        """Refuse any further node."""
        self.finalized = True

    # ---- looking up

    def get_operation_by_name(self, name: str) -> Node:
        node = self._by_name.get(name)
        if node is None and self._late is not None:
            node = self._late.named(name)
        if node is None:
            raise GraphError(f"no operation in this graph is called {name!r}")
        return node

    def get_tensor_by_name(self, name: str) -> Tensor:
        """The tensor called `scope/op:0`; `:0` may be left out."""
        base, _, index = name.partition(":")
        node = self.get_operation_by_name(base)
        if index and not index.isdigit():
            raise GraphError(f"not a tensor name: {name!r}")
        position = int(index) if index else 0
        if position >= len(node.outputs):
            raise GraphError(f"{name!r}: operation {base!r} has {len(node.outputs)} outputs")
        return node.outputs[position]

    def get_operations(self) -> list[Node]:
        return list(self.nodes)

    # ---- collections

    def add_to_collection(self, key: str, value: Any) -> None:
        with self._lock:
            self._collections.setdefault(key, []).append(value)

    def get_collection(self, key: str, scope: str | None = None) -> list[Any]:
        """The values under `key`, those whose name starts with `scope` if given."""
        values = list(self._collections.get(key, ()))
        if scope is None:
            return values
        return [v for v in values if getattr(v, "name", "").startswith(scope)]

    def collection_keys(self) -> list[str]:
        return list(self._collections)

    def __str__(self) -> str:
        from graphc.text import print_graph

        return print_graph(self)

    def __repr__(self) -> str:
        return f"<Graph of {len(self.nodes)} nodes>"


# ---- the current graph ------------------------------------------------------------------------

_global_graph: list[Graph] = []
_global_lock = new_lock()


def _base_graph() -> Graph:
    with _global_lock:
        if not _global_graph:
            _global_graph.append(Graph())
        return _global_graph[0]


def get_default_graph() -> Graph:
    """The graph that operators called in this thread add to."""
    for factory in reversed(entered_factories()):
        if isinstance(factory, Graph):
            return factory
    return _base_graph()


def reset_default_graph() -> None:
    """Start a new global default graph; graphs entered with `as_default` are not affected."""
    with _global_lock:
        _global_graph[:] = [Graph()]


def current_factory() -> NodeFactory:
    """What makes nodes in this thread now: a builder inside a pass, else the default graph."""
    entered = entered_factories()
    return entered[-1] if entered else _base_graph()


def make(
    op: Op, inputs: Sequence[Tensor], attrs: dict[str, Any] | None = None, name: str | None = None
) -> Node:
    """A node in the current factory: what every operator function ends with."""
    return current_factory().make(op, inputs, attrs or {}, name)
