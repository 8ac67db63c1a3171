"""The graph: operator records, nodes, tensors, and the two things that make nodes.

A `Node` is an immutable application of an `Op` to tensors; a `Tensor` is one output of a node.  A
`Graph` holds the user's nodes, with names, scopes, control dependencies and collections.  A
`Builder` makes the nodes of passes: it interns them, so common subexpressions are one node.
Imports: types, dims, location, errors.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from graphc.dims import Dim, DimLike
from graphc.errors import FinalizedError, GraphcError, GraphError, GraphTypeError, ShapeError
from graphc.location import UNKNOWN, Location, user_location
from graphc.types import DType, Shape, TensorType

Attrs = Mapping[str, Any]

# ---- operator records -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Op:
    """Everything graphc knows about an operator, stated once.

    kind    what passes and lowering see: 'elementwise', 'view', 'reduce', 'contraction', 'nest',
            'leaf', 'state', or 'deferred' (an operator that exists only until ranks are known)
    infer   (input types, attrs) -> output types; raises ShapeError or GraphTypeError.  Called with
            unknown ranks too
    normalize  (input types, attrs) -> attrs in canonical form; called once all ranks are known
    reference  (attrs, *arrays) -> array or tuple of arrays: the meaning, in NumPy
    vjp     (node, cotangents..., ) see `graphc.passes.differentiate`; None: not differentiable
    lower   what lowering needs, by kind: the scalar body of an elementwise operator, the loop
            nest builder of a nest, the operand maps of a contraction
    stateful   never merged, folded or reordered with its like
    """

    name: str
    kind: str
    infer: Callable[[Sequence[TensorType], Attrs], tuple[TensorType, ...]]
    reference: Callable[..., Any] | None = None
    vjp: Callable[..., Any] | None = None
    lower: Any = None
    normalize: Callable[[Sequence[TensorType], Attrs], dict[str, Any]] | None = None
    stateful: bool = False
    commutative: bool = False
    onnx: str = ""
    function: Callable[..., Any] | None = None
    samples: Any = None
    dtypes: tuple[DType, ...] = ()
    note: str = ""

    def __repr__(self) -> str:
        return f"<op {self.name}>"


OPS: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Add an operator record; raises GraphError if the name is taken."""
    if op.name in OPS:
        raise GraphError(f"an operator called {op.name!r} exists already")
    OPS[op.name] = op
    return op


@dataclass(frozen=True)
class Constraint:
    """A relation between sizes that could not be decided when the node was made.

    kind 'equal': a == b.  'multiple': b divides a.  'at_least': a >= b.
    """

    kind: str
    a: DimLike
    b: DimLike
    message: str


class _Pending(threading.local):
    """Constraints raised by the infer function that is running in this thread."""

    def __init__(self) -> None:
        self.constraints: list[Constraint] = []


_pending = _Pending()


def require_equal(a: DimLike, b: DimLike, message: str) -> None:
    """State that two sizes are equal: raises ShapeError now, or constrains the node being made."""
    if a is b or a == b:
        return
    if isinstance(a, int) and isinstance(b, int):
        raise ShapeError(message)
    _pending.constraints.append(Constraint("equal", a, b, message))


def require_multiple(a: DimLike, b: DimLike, message: str) -> None:
    """State that b divides a (both ints: now; otherwise when sizes are bound)."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0 or a % b:
            raise ShapeError(message)
        return
    _pending.constraints.append(Constraint("multiple", a, b, message))


def require_at_least(a: DimLike, b: DimLike, message: str) -> None:
    """State that a >= b (both ints: now; otherwise when sizes are bound)."""
    if isinstance(a, int) and isinstance(b, int):
        if a < b:
            raise ShapeError(message)
        return
    _pending.constraints.append(Constraint("at_least", a, b, message))


# ---- constants --------------------------------------------------------------------------------


class ConstantValue:
    """A read-only array as a node attribute: compared and hashed by its bytes."""

    __slots__ = ("_hash", "array")

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        owned = np.array(array, order="C", copy=True)
        owned.flags.writeable = False
        self.array = owned
        self._hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((self.array.shape, self.array.dtype.str, self.array.tobytes()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, ConstantValue)
            and self.array.shape == other.array.shape
            and self.array.dtype == other.array.dtype
            and self.array.tobytes() == other.array.tobytes()
        )

    def __repr__(self) -> str:
        return f"ConstantValue({self.array!r})"


# ---- nodes and tensors ------------------------------------------------------------------------

_node_ids = itertools.count()


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One application of an operator; what TensorFlow calls an operation.  Immutable.

    `id` grows with creation, so it orders any graph topologically.
    """

    op: Op
    inputs: tuple[Tensor, ...]
    attrs: Attrs
    types: tuple[TensorType, ...]
    loc: Location
    name: str = ""
    control: tuple[Node, ...] = ()
    graph: Graph | None = None
    constraints: tuple[Constraint, ...] = ()
    id: int = field(default_factory=lambda: next(_node_ids))
    outputs: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", tuple(Tensor(self, i) for i in range(len(self.types))))

    @property
    def kind(self) -> str:
        return self.op.kind

    def __repr__(self) -> str:
        types = ", ".join(str(t) for t in self.types)
        return f"<Node {self.name or self.id} {self.op.name} -> {types or 'none'}>"

    def run(self, feed_dict: Any = None, session: Any = None) -> None:
        """Run this operation in `session` or the default session."""
        _session_for(session, self.graph).run(self, feed_dict)


class Tensor:
    """A symbolic array: output `index` of `node`.

    Python operators build nodes with NumPy's meaning.  `==` is elementwise; hashing is by
    identity, so tensors are dictionary keys.
    """

    __slots__ = ("__weakref__", "index", "node")
    __array_priority__ = 1000
    __array_ufunc__ = None

    def __init__(self, node: Node, index: int) -> None:
        self.node = node
        self.index = index

    @property
    def type(self) -> TensorType:
        return self.node.types[self.index]

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def dims(self) -> Shape:
        """The shape with symbolic sizes; raises ShapeError while the rank is unknown."""
        shape = self.type.shape
        if shape is None:
            raise ShapeError(f"{describe(self)} has unknown rank here")
        return shape

    @property
    def shape(self) -> tuple[int | str | None, ...] | None:
        """The static shape: ints, names for named sizes, None where unknown; None: rank unknown."""
        shape = self.type.shape
        return None if shape is None else tuple(_public_dim(d) for d in shape)

    @property
    def ndim(self) -> int | None:
        return self.type.rank

    @property
    def name(self) -> str:
        return f"{self.node.name}:{self.index}"

    @property
    def op(self) -> Node:
        """The node that makes this tensor."""
        return self.node

    @property
    def graph(self) -> Graph | None:
        return self.node.graph

    def eval(self, feed_dict: Any = None, session: Any = None) -> Any:
        """This tensor's value in `session` or the default session."""
        return _session_for(session, self.graph).run(self, feed_dict)

    def __repr__(self) -> str:
        return f"<Tensor {self.name} {self.type}>"

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise GraphTypeError(
            f"the truth value of {describe(self)} is not known while the graph is built; "
            "use gx.where, or compare after running"
        )

    def __len__(self) -> int:
        shape = self.type.shape
        if shape is None or not shape:
            raise GraphTypeError(f"len() of {describe(self)}, which has no first dimension")
        if isinstance(shape[0], Dim):
            raise GraphTypeError(f"len() of {describe(self)}: the size is not known yet")
        return shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[i] for i in range(len(self))])

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise GraphTypeError(f"{describe(self)} has no value yet: run it in a session")

    def __float__(self) -> float:
        raise GraphTypeError(f"{describe(self)} has no value yet: run it in a session")

    __int__ = __index__ = __float__  # type: ignore[assignment]

    def __getitem__(self, key: Any) -> Tensor:
        return _method("getitem", self, key)

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            return _BoundMethod(METHODS[name], self)
        raise AttributeError(f"a tensor has no attribute {name!r}")


@dataclass(frozen=True)
class _BoundMethod:
    function: Callable[..., Any]
    tensor: Tensor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.tensor, *args, **kwargs)


METHODS: dict[str, Callable[..., Any]] = {}
"""Array methods (`x.sum()`) and operators (`add`), filled in by graphc.ops."""


def _method(name: str, *args: Any) -> Tensor:
    result: Tensor = METHODS[name](*args)
    return result


def _install_operators() -> None:
    def binary(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        def forward(self: Tensor, other: Any) -> Any:
            return METHODS[name](self, other)

        def backward(self: Tensor, other: Any) -> Any:
            return METHODS[name](other, self)

        return forward, backward

    def unary(name: str) -> Callable[[Tensor], Any]:
        return lambda self: METHODS[name](self)

    names = {
        "add": "add",
        "sub": "subtract",
        "mul": "multiply",
        "truediv": "divide",
        "floordiv": "floor_divide",
        "mod": "remainder",
        "pow": "power",
        "matmul": "matmul",
        "and": "bitwise_and",
        "or": "bitwise_or",
        "xor": "bitwise_xor",
    }
    for python, ours in names.items():
        forward, backward = binary(ours)
        setattr(Tensor, f"__{python}__", forward)
        setattr(Tensor, f"__r{python}__", backward)
    comparisons = {
        "eq": "equal",
        "ne": "not_equal",
        "lt": "less",
        "le": "less_equal",
        "gt": "greater",
        "ge": "greater_equal",
    }
    for python, ours in comparisons.items():
        setattr(Tensor, f"__{python}__", binary(ours)[0])
    for python, ours in {"neg": "negative", "abs": "abs", "invert": "invert"}.items():
        setattr(Tensor, f"__{python}__", unary(ours))
    Tensor.__pos__ = lambda self: self  # type: ignore[attr-defined]


_install_operators()


def _public_dim(d: DimLike) -> int | str | None:
    if isinstance(d, int):
        return d
    text = repr(d)
    return None if "?" in text else text


def describe(t: Tensor) -> str:
    """A tensor for error messages: name, type and the user's line."""
    return f"{t.node.op.name} {t.node.name!r} {t.type} ({t.node.loc})"


def _session_for(session: Any, graph: Graph | None) -> Any:
    if session is not None:
        return session
    found = DEFAULT_SESSION[0]() if DEFAULT_SESSION else None
    if found is None:
        raise GraphError("no default session: enter one with `with gx.Session():`, or pass it")
    return found


DEFAULT_SESSION: list[Callable[[], Any]] = []
"""Set by graphc.session: how to find the default session of this thread."""


# ---- making nodes -----------------------------------------------------------------------------


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
_global_graph: list[Graph] = []
_global_lock = threading.Lock()


def current_factory() -> NodeFactory:
    """What makes nodes in this thread now: a builder inside a pass, else the default graph."""
    return _factories.stack[-1] if _factories.stack else _base_graph()


def _base_graph() -> Graph:
    with _global_lock:
        if not _global_graph:
            _global_graph.append(Graph())
        return _global_graph[0]


@contextlib.contextmanager
def making_nodes_in(factory: NodeFactory) -> Iterator[None]:
    """Make `factory` this thread's current factory inside the block."""
    _factories.stack.append(factory)
    try:
        yield
    finally:
        _factories.stack.pop()


def make(
    op: Op, inputs: Sequence[Tensor], attrs: dict[str, Any] | None = None, name: str | None = None
) -> Node:
    """A node in the current factory: what every operator function ends with."""
    return current_factory().make(op, inputs, attrs or {}, name)


def infer_node(
    op: Op, inputs: Sequence[Tensor], attrs: dict[str, Any]
) -> tuple[dict[str, Any], tuple[TensorType, ...], tuple[Constraint, ...]]:
    """Canonical attrs, output types and undecided constraints; raises unlocated errors."""
    types = [t.node.types[t.index] for t in inputs]
    outer, _pending.constraints = _pending.constraints, []
    try:
        if op.normalize is not None and not any(t.shape is None for t in types):
            attrs = op.normalize(types, attrs)
        outputs = op.infer(types, attrs)
        return attrs, outputs, tuple(_pending.constraints)
    finally:
        _pending.constraints = outer


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
        try:
            attrs, types, constraints = infer_node(op, inputs, attrs)
        except GraphcError as error:
            raise located(error, op, inputs, self.loc) from None
        inputs = tuple(inputs)
        if op.stateful:
            return Node(op, inputs, attrs, types, self.loc, name or "", tuple(control))
        key = (op.name, tuple(map(id, inputs)), tuple(sorted(attrs.items(), key=_first)))
        node = self._table.get(key)
        if node is None:
            node = Node(op, inputs, attrs, types, self.loc, name or "", (), None, constraints)
            self._table[key] = node
        return node


def _first(item: tuple[str, Any]) -> str:
    return item[0]


# ---- the user's graph -------------------------------------------------------------------------


class GraphKeys:
    """Names of the standard collections."""

    GLOBAL_VARIABLES = "variables"
    TRAINABLE_VARIABLES = "trainable_variables"
    UPDATE_OPS = "update_ops"
    LOSSES = "losses"
    REGULARIZATION_LOSSES = "regularization_losses"
    SUMMARIES = "summaries"


class _Scopes(threading.local):
    """Per-thread building state of one graph."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.control: list[tuple[Node, ...]] = []
        self.gradient_rules: list[dict[str, Callable[..., Any]]] = []


class Graph:
    """The nodes a user declares, by name.  Safe to build from several threads.

    `seed` makes every random operator of the graph reproducible.  `strict_dtypes` refuses to mix
    dtypes, as TensorFlow does, instead of promoting as NumPy does.
    """

    def __init__(self, seed: int | None = None, strict_dtypes: bool = False) -> None:
        self.nodes: list[Node] = []
        self.seed = seed
        self.strict_dtypes = strict_dtypes
        self.finalized = False
        self._by_name: dict[str, Node] = {}
        self._used: dict[str, int] = {}
        self._collections: dict[str, list[Any]] = {}
        self._lock = threading.RLock()
        self._scopes = _Scopes()
        self.random_ops = 0
        self.random_counter: Tensor | None = None
        self.gradient_rules: dict[int, Callable[..., Any]] = {}
        self.function_session: Any = None  # where functions run outside any session

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
        try:
            attrs, types, constraints = infer_node(op, inputs, attrs)
        except GraphcError as error:
            raise located(error, op, inputs, loc) from None
        ordered = tuple(dict.fromkeys((*control, *self.control_inputs())))
        with self._lock:
            if self.finalized:
                raise FinalizedError(f"{op.name}: the graph is finalized ({loc})")
            unique = self.unique_name(name or op.name)
            node = Node(
                op, tuple(inputs), attrs, types, loc, unique, ordered, self, constraints
            )
            self.nodes.append(node)
            self._by_name[unique] = node
            if self._scopes.gradient_rules:
                rule = self._scopes.gradient_rules[-1].get(op.name)
                if rule is not None:
                    self.gradient_rules[node.id] = rule
        return node

    def unique_name(self, name: str) -> str:
        """`name` inside the current scope, made unique by a suffix `_1`, `_2`, ..."""
        with self._lock:
            full = "/".join((*self._scopes.names, name))
            count = self._used.get(full, 0)
            self._used[full] = count + 1
            if count == 0:
                return full
            while True:
                candidate = f"{full}_{count}"
                if candidate not in self._used:
                    self._used[candidate] = 1
                    return candidate
                count += 1

    def as_default(self) -> contextlib.AbstractContextManager[Graph]:
        """`with graph.as_default():` nodes made in this thread go to this graph."""
        return self._as_default()

    @contextlib.contextmanager
    def _as_default(self) -> Iterator[Graph]:
        with making_nodes_in(self):
            yield self

    @contextlib.contextmanager
    def name_scope(self, name: str) -> Iterator[str]:
        """Prefix the names of nodes made inside with `name/`."""
        with self._lock:
            full = self.unique_name(name)
        saved = self._scopes.names
        self._scopes.names = full.split("/")
        try:
            yield full + "/"
        finally:
            self._scopes.names = saved

    @contextlib.contextmanager
    def control_dependencies(self, nodes: Iterable[Node | Tensor] | None) -> Iterator[None]:
        """Nodes made inside run after `nodes`; None clears the dependencies of outer blocks."""
        saved = self._scopes.control
        if nodes is None:
            self._scopes.control = []
        else:
            wanted = tuple(as_node(n, self) for n in nodes)
            self._scopes.control = [*saved, wanted]
        try:
            yield
        finally:
            self._scopes.control = saved

    def control_inputs(self) -> tuple[Node, ...]:
        return tuple(n for block in self._scopes.control for n in block)

    @contextlib.contextmanager
    def gradient_override(self, rules: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
        """Operators made inside use these gradient rules: {operator name: vjp}."""
        unknown = [n for n in rules if n not in OPS]
        if unknown:
            raise GraphError(f"no operator is called {unknown[0]!r}")
        inherited = self._scopes.gradient_rules[-1] if self._scopes.gradient_rules else {}
        self._scopes.gradient_rules.append({**inherited, **rules})
        try:
            yield
        finally:
            self._scopes.gradient_rules.pop()

    def finalize(self) -> None:
        """Refuse any further node."""
        self.finalized = True

    # ---- looking up

    def get_operation_by_name(self, name: str) -> Node:
        node = self._by_name.get(name)
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
            raise GraphError(
                f"{name!r}: operation {base!r} has {len(node.outputs)} outputs"
            )
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


def get_default_graph() -> Graph:
    """The graph that operators called in this thread add to."""
    for factory in reversed(_factories.stack):
        if isinstance(factory, Graph):
            return factory
    return _base_graph()


def reset_default_graph() -> None:
    """Start a new global default graph; graphs entered with `as_default` are not affected."""
    with _global_lock:
        _global_graph[:] = [Graph()]


def as_node(value: Node | Tensor, graph: Graph | None = None) -> Node:
    """The node of a tensor or operation; raises GraphTypeError or GraphError."""
    node = value.node if isinstance(value, Tensor) else value
    if not isinstance(node, Node):
        raise GraphTypeError(f"not a tensor or an operation: {value!r}")
    if graph is not None and node.graph is not graph:
        raise GraphError(f"operation {node.name!r} belongs to another graph")
    return node


# ---- walking ----------------------------------------------------------------------------------


def topological(
    roots: Iterable[Node], stop: frozenset[int] | set[int] = frozenset(), control: bool = True
) -> list[Node]:
    """All nodes the roots depend on, each after its inputs; `stop` holds ids not walked through.

    Iterative: depth is not limited by Python's stack.
    """
    seen: set[int] = set()
    order: list[Node] = []
    stack: list[tuple[Node, bool]] = [(r, False) for r in reversed(list(roots))]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if node.id in seen:
            continue
        seen.add(node.id)
        stack.append((node, True))
        if node.id in stop:
            continue
        if control and node.control:
            stack.extend((n, False) for n in reversed(node.control) if n.id not in seen)
        stack.extend((t.node, False) for t in reversed(node.inputs) if t.node.id not in seen)
    return order
