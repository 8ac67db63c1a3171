"""Sessions: where variables have values and graphs are run.

`run` never adds nodes to the graph.  Compiled programs are kept per (fetches, feeds) and, within
one, per rank signature and broadcast outcome; a new size compiles nothing.
Imports: feeds, graph, program, passes, backends.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphc import feeds
from graphc.backends.base import Executable
from graphc.backends.reference import ReferenceExecutable
from graphc.dims import Atom
from graphc.errors import (
    FeedError,
    FeedTypeError,
    FetchError,
    FetchTypeError,
    GraphError,
    GraphTypeError,
    RunError,
    SessionClosedError,
    ShapeError,
    UninitializedError,
)
from graphc.graph import DEFAULT_SESSION, Graph, Node, Tensor, get_default_graph, topological
from graphc.ops.state import Variable
from graphc.passes.resolve_state import resolve_state
from graphc.passes.specialise import (
    bind_ranks,
    broadcast_outcomes,
    specialise,
    substitution,
    unknown_broadcasts,
)
from graphc.program import Program

Array = np.ndarray[Any, Any]

PLAN_CACHE_SIZE = 256
"""How many (fetches, feeds) combinations a session keeps compiled."""


# ---- fetches -----------------------------------------------------------------------------------


def flatten_fetches(fetches: Any, graph: Graph) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The tensors and operations in a nest, and how to put their values back in its place."""
    flat: list[Any] = []
    build = _flatten(fetches, graph, flat)
    return flat, build


def _flatten(item: Any, graph: Graph, flat: list[Any]) -> Callable[[list[Any]], Any]:
    if isinstance(item, (Tensor, Node, str)):
        position = len(flat)
        flat.append(_resolve_fetch(item, graph))
        return lambda values: values[position]
    if isinstance(item, Mapping):
        keys = list(item)
        parts = [_flatten(item[k], graph, flat) for k in keys]
        kind: Any = type(item) if type(item) in (dict, OrderedDict) else dict
        return lambda values: kind(
            (k, part(values)) for k, part in zip(keys, parts, strict=True)
        )
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


def _resolve_fetch(item: Any, graph: Graph) -> Any:
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
    return item


# ---- compiled programs -------------------------------------------------------------------------


@dataclass
class _Entry:
    """Everything compiled for one (fetches, feeds): programs per rank, executables per outcome."""

    fetches: tuple[Tensor, ...]
    targets: tuple[Node, ...]
    fed: tuple[Tensor, ...]
    program: Program
    by_rank: dict[tuple[int, ...], _Ranked] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class _Ranked:
    """A program whose ranks are known."""

    program: Program
    atoms: list[Atom]
    constraints: list[Any]
    by_outcome: dict[tuple[str, ...], _Compiled] = field(default_factory=dict)
    bound: OrderedDict[Any, tuple[_Compiled, dict[Atom, int]]] = field(
        default_factory=OrderedDict
    )


@dataclass
class _Compiled:
    executable: Executable
    program: Program
    variables: tuple[Tensor, ...]
    written: frozenset[int]
    checked: tuple[Tensor, ...]


class Session:
    """Runs a graph and holds the values of its variables.

    graph    the graph to run (default: the default graph now)
    threads  how many threads a run may use (default: the machine's cores)
    device   'cpu' (compiled) or 'reference' (NumPy, node by node)
    Any number of Python threads may use one session.
    """

    def __init__(
        self, graph: Graph | None = None, threads: int | None = None, device: str = "cpu"
    ) -> None:
        if graph is not None and not isinstance(graph, Graph):
            raise GraphTypeError(f"Session: graph must be a gx.Graph, not {graph!r}")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise GraphTypeError(f"Session: threads must be a positive int, not {threads!r}")
        if device not in COMPILERS:
            known = ", ".join(repr(d) for d in COMPILERS)
            raise GraphTypeError(f"Session: device must be one of {known}, not {device!r}")
        self.graph = graph or get_default_graph()
        self.threads = threads or _cores()
        self.device = device
        self._values: dict[int, Array] = {}
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._lock = threading.RLock()
        self._state_lock = threading.Lock()
        self._closed = False
        self._entered = threading.local()

    # ---- running

    def run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> Any:
        """Evaluate `fetches` with the given feeds.

        fetches    a tensor, operation, name, or a nested list/tuple/dict/namedtuple of them; the
                   result has the same structure, with None for operations
        feed_dict  values by tensor (any tensor, not only placeholders) or name
        If anything fails no variable changes.  Raises FeedError, FetchError, UninitializedError,
        ShapeError or RunError; every message names the user's line.
        """
        flat, rebuild = flatten_fetches(fetches, self.graph)
        fed = self._named_feeds(feed_dict)
        values = self._run_flat(flat, tuple(fed), list(fed.values()))
        return rebuild(values)

    def _named_feeds(self, feed_dict: Mapping[Any, Any] | None) -> dict[Tensor, Any]:
        named: dict[Tensor, Any] = {}
        for key, value in (feed_dict or {}).items():
            named[self._feed_key(key)] = value
        return named

    def _feed_key(self, key: Any) -> Tensor:
        if isinstance(key, str):
            try:
                key = self.graph.get_tensor_by_name(key)
            except GraphError as error:
                raise FeedTypeError(f"feed {key!r}: {error}") from None
        if not isinstance(key, Tensor):
            raise FeedTypeError(f"a feed is named by a tensor or a name, not by {key!r}")
        if key.graph is not self.graph:
            raise FeedError(f"feed {key!r} belongs to another graph than this session's")
        return key

    def _run_flat(
        self, flat: Sequence[Any], fed: tuple[Tensor, ...], values: Sequence[Any]
    ) -> list[Any]:
        self._check_open()
        if not self.graph.nodes:
            raise RunError("the graph is empty: there is nothing to run")
        arrays = [feeds.convert(t, v) for t, v in zip(fed, values, strict=True)]
        entry = self._entry(flat, fed)
        compiled, sizes = self._bind(entry, arrays)
        results = self._execute(compiled, arrays, sizes)
        by_tensor = dict(zip(map(id, entry.fetches), results, strict=True))
        seen: set[int] = set()
        out: list[Any] = []
        for item in flat:
            if isinstance(item, Node):
                out.append(None)
                continue
            value = by_tensor[id(item)]
            if id(item) in seen:  # the same tensor fetched twice is two arrays
                value = value.copy()
            seen.add(id(item))
            out.append(value if value.ndim else value[()])
        return out

    def _execute(
        self, compiled: _Compiled, arrays: Sequence[Array], sizes: dict[Atom, int]
    ) -> list[Array]:
        state = self._state(compiled)
        if not compiled.written:
            return compiled.executable.run(arrays, state, sizes, self.threads)
        with self._state_lock:  # one writer at a time
            return compiled.executable.run(arrays, state, sizes, self.threads)

    def _state(self, compiled: _Compiled) -> list[Array]:
        values = self._values
        try:
            return [values[v.node.id] for v in compiled.variables]
        except KeyError:
            return self._prepare_state(compiled)

    def _prepare_state(self, compiled: _Compiled) -> list[Array]:
        """Storage for what the run will write; an error for what it reads and nobody set."""
        with self._lock:
            for v in compiled.variables:
                if v.node.id in self._values:
                    continue
                if v is self.graph.random_counter:
                    self._values[v.node.id] = self._initial_counter()
                elif any(v is c for c in compiled.checked):
                    raise UninitializedError(
                        f"variable {v.node.name!r} {v.type} ({v.node.loc}) has no value in this "
                        "session: run gx.global_variables_initializer() first"
                    )
            for v in compiled.variables:
                if v.node.id not in self._values:
                    shape = tuple(int(str(d)) for d in v.dims)
                    self._values[v.node.id] = np.empty(shape, v.dtype.numpy)
            return [self._values[v.node.id] for v in compiled.variables]

    def _initial_counter(self) -> Array:
        """0 for a seeded graph; otherwise a random start, so that unseeded runs differ."""
        start = 0 if self.graph.seed is not None else int.from_bytes(os.urandom(7), "little")
        return np.array(start, np.uint64)

    # ---- compiling

    def _entry(self, flat: Sequence[Any], fed: tuple[Tensor, ...]) -> _Entry:
        key = (tuple(map(id, flat)), tuple(map(id, fed)))
        entry = self._entries.get(key)
        if entry is None:
            with self._lock:
                entry = self._entries.get(key)
                if entry is None:
                    entry = self._build_entry(flat, fed)
                    self._entries[key] = entry
                    while len(self._entries) > PLAN_CACHE_SIZE:
                        self._entries.popitem(last=False)
        return entry

    def _build_entry(self, flat: Sequence[Any], fed: tuple[Tensor, ...]) -> _Entry:
        fetched = tuple(dict.fromkeys(x for x in flat if isinstance(x, Tensor)))
        targets = tuple(x for x in flat if isinstance(x, Node))
        self._check_fed(fetched, targets, fed)
        program = resolve_state(fetched, targets, fed)
        return _Entry(fetched, targets, fed, program)

    def _check_fed(
        self, fetched: Sequence[Tensor], targets: Sequence[Node], fed: Sequence[Tensor]
    ) -> None:
        given = {id(t) for t in fed}
        stop = {t.node.id for t in fed if all(id(o) in given for o in t.node.outputs)}
        for node in topological([t.node for t in fetched] + list(targets), stop=stop):
            if node.op.name == "placeholder" and id(node.outputs[0]) not in given:
                wanted = [repr(t.node.name) for t in fetched] + [repr(n.name) for n in targets]
                has = ", ".join(repr(t.node.name) for t in fed) or "nothing"
                raise FeedError(
                    f"fetch {', '.join(wanted)} needs {feeds.label(node.outputs[0])}; "
                    f"feed_dict has {has}"
                )

    def _bind(
        self, entry: _Entry, arrays: Sequence[Array]
    ) -> tuple[_Compiled, dict[Atom, int]]:
        ranks = tuple(a.ndim for a in arrays)
        ranked = entry.by_rank.get(ranks)
        if ranked is None:
            with entry.lock:
                ranked = entry.by_rank.get(ranks) or self._build_ranked(entry, ranks, arrays)
                entry.by_rank[ranks] = ranked
        shapes = tuple(a.shape for a in arrays)
        found = ranked.bound.get(shapes)
        if found is None:
            with entry.lock:
                found = self._bind_sizes(ranked, shapes)
                ranked.bound[shapes] = found
                while len(ranked.bound) > 1024:
                    ranked.bound.popitem(last=False)
        return found

    def _build_ranked(
        self, entry: _Entry, ranks: tuple[int, ...], arrays: Sequence[Array]
    ) -> _Ranked:
        program = entry.program
        for t, a in zip(program.inputs, arrays, strict=True):
            if t.type.shape is not None and len(t.type.shape) != a.ndim:
                raise FeedError(f"{feeds.label(t)} was fed an array of shape {a.shape}")
        if any(t.type.shape is None for t in program.inputs):
            program = bind_ranks(program, ranks)
        return _Ranked(program, unknown_broadcasts(program), program.constraints())

    def _bind_sizes(
        self, ranked: _Ranked, shapes: Sequence[tuple[int, ...]]
    ) -> tuple[_Compiled, dict[Atom, int]]:
        sizes = feeds.bind_sizes(ranked.program.inputs, shapes)
        feeds.check_constraints(ranked.constraints, sizes)
        outcome = self._outcome(ranked, sizes)
        compiled = ranked.by_outcome.get(outcome)
        if compiled is None:
            program = specialise(ranked.program, substitution(ranked.atoms, outcome))
            compiled = self._compile(program)
            ranked.by_outcome[outcome] = compiled
        return compiled, sizes

    def _outcome(self, ranked: _Ranked, sizes: dict[Atom, int]) -> tuple[str, ...]:
        try:
            return broadcast_outcomes(ranked.atoms, sizes)
        except ShapeError as error:
            for node in ranked.program.order():
                if unknown_broadcasts(Program((), node.outputs)) and node.op.kind == "elementwise":
                    raise ShapeError(
                        f"{node.op.name}: {error}\n  at {node.loc}   {node.loc.source}"
                    ) from None
            raise

    def _compile(self, program: Program) -> _Compiled:
        executable, compiled = COMPILERS[self.device](program)
        read = {n.id for n in compiled.order() if n.op.name == "variable"}
        variables = compiled.variables()
        checked = tuple(v for v in variables if v.node.id in read)
        written = frozenset(v.node.id for v, _ in compiled.updates)
        return _Compiled(executable, compiled, variables, written, checked)

    # ---- state

    def get_value(self, variable: Variable) -> Array:
        """A copy of a variable's value; raises UninitializedError if it has none."""
        self._check_open()
        array = self._values.get(variable.node.id)
        if array is None:
            raise UninitializedError(
                f"variable {variable.node.name!r} ({variable.node.loc}) has no value in this "
                "session"
            )
        with self._state_lock:
            return array.copy()

    def set_value(self, variable: Variable, value: Any) -> None:
        """Set a variable's value; raises FeedError on another shape or dtype."""
        self._check_open()
        array = feeds.convert(variable, value)
        shape = tuple(variable.dims)
        if array.shape != shape:
            raise FeedError(f"{feeds.label(variable)} was given an array of shape {array.shape}")
        with self._state_lock:
            self._values[variable.node.id] = np.array(array, order="C")

    def is_initialized(self, variable: Variable) -> bool:
        return variable.node.id in self._values

    # ---- life cycle

    def close(self) -> None:
        """Release variables and compiled programs; later use raises SessionClosedError."""
        with self._lock:
            self._closed = True
            self._entries.clear()
            self._values.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError("the session is closed")

    def __enter__(self) -> Session:
        if getattr(self._entered, "graph", None) is not None:
            raise RunError("this session is entered already: it is the default session")
        context = self.graph.as_default()
        context.__enter__()
        self._entered.graph = context
        _defaults.stack.append(self)
        return self

    def __exit__(self, *exc: Any) -> None:
        _defaults.stack.remove(self)
        context, self._entered.graph = self._entered.graph, None
        context.__exit__(*exc)
        self.close()

    @contextlib.contextmanager
    def as_default(self) -> Iterator[Session]:
        """Make this the default session of the thread inside the block, without closing it."""
        _defaults.stack.append(self)
        try:
            with self.graph.as_default():
                yield self
        finally:
            _defaults.stack.remove(self)


class _Defaults(threading.local):
    def __init__(self) -> None:
        self.stack: list[Session] = []


_defaults = _Defaults()


def get_default_session() -> Session | None:
    """The session entered last in this thread, or None."""
    return _defaults.stack[-1] if _defaults.stack else None


DEFAULT_SESSION[:] = [get_default_session]


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


# ---- devices -----------------------------------------------------------------------------------


def _reference(program: Program) -> tuple[Executable, Program]:
    return ReferenceExecutable(program), program


COMPILERS: dict[str, Callable[[Program], tuple[Executable, Program]]] = {
    "reference": _reference,
    "cpu": _reference,
}
"""device -> (program -> executable, the program it runs)."""
