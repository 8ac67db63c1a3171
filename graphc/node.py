"""Operator records, nodes and tensors: what graphs and programs consist of.

A `Node` is an immutable application of an `Op` to tensors; a `Tensor` is one output of a node.
Imports: types, dims, constraints, location, errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from graphc.constraints import Constraint
from graphc.dims import Dim, DimLike
from graphc.errors import GraphError, GraphTypeError, ShapeError
from graphc.location import Location
from graphc.types import DType, Shape, TensorType

if TYPE_CHECKING:
    from graphc.graph import Graph

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

AttrsKey = tuple[tuple[str, Any], ...]


def key_of_attrs(attrs: Attrs) -> AttrsKey:
    """Attributes as something hashable: equal for equal attributes, in whatever order."""
    if len(attrs) < 2:
        return tuple(attrs.items())
    return tuple(sorted(attrs.items(), key=_first))


def _first(item: tuple[str, Any]) -> str:
    return item[0]


class Node:
    """One application of an operator; what TensorFlow calls an operation.  Immutable.

    `id` grows with creation, so it orders any graph topologically.  `attrs_key` is attrs as
    something hashable, the same for equal attrs.
    """

    __slots__ = (
        "__weakref__",
        "_attrs_key",
        "attrs",
        "constraints",
        "control",
        "graph",
        "id",
        "inputs",
        "kind",
        "loc",
        "name",
        "op",
        "outputs",
        "types",
    )

    def __init__(
        self,
        op: Op,
        inputs: tuple[Tensor, ...],
        attrs: Attrs,
        types: tuple[TensorType, ...],
        loc: Location,
        name: str = "",
        control: tuple[Node, ...] = (),
        graph: Graph | None = None,
        constraints: tuple[Constraint, ...] = (),
        attrs_key: AttrsKey | None = None,
    ) -> None:
        self.op: Final = op
        self.kind: Final = op.kind
        self.inputs: Final = inputs
        self.attrs: Final = attrs
        self.types: Final = types
        self.loc: Final = loc
        self.name: Final = name
        self.control: Final = control
        self.graph: Final = graph
        self.constraints: Final = constraints
        self.id: Final = next(_node_ids)
        self.outputs: Final = tuple([Tensor(self, i) for i in range(len(types))])
        self._attrs_key = attrs_key

    @property
    def attrs_key(self) -> AttrsKey:
        found = self._attrs_key
        if found is None:
            found = self._attrs_key = key_of_attrs(self.attrs)
        return found

    @property
    def title(self) -> str:
        """What run-time errors call this node: the function the user called."""
        title: str = self.attrs.get("caller", self.op.name)
        return title

    def __repr__(self) -> str:
        types = ", ".join(str(t) for t in self.types)
        return f"<Node {self.name or self.id} {self.op.name} -> {types or 'none'}>"

    def run(self, feed_dict: Any = None, session: Any = None) -> None:
        """Run this operation in `session` or the default session."""
        session_for(session, self.graph).run(self, feed_dict)


class Tensor:
    """A symbolic array: output `index` of `node`.

    Python operators build nodes with NumPy's meaning.  `==` is elementwise; hashing is by
    identity, so tensors are dictionary keys.
    """

    __slots__ = ("__weakref__", "index", "node", "type")
    __array_priority__ = 1000
    __array_ufunc__ = None

    def __init__(self, node: Node, index: int) -> None:
        self.node: Final = node
        self.index: Final = index
        self.type: Final = node.types[index]

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

    def get_shape(self) -> tuple[int | str | None, ...] | None:
        """The static shape: TensorFlow's spelling of `shape`."""
        return self.shape

    @property
    def ndim(self) -> int | None:
        return self.type.rank

    @property
    def T(self) -> Tensor:
        """This tensor with its axes in reverse order."""
        result: Tensor = OPERATORS["transpose"](self)
        return result

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
        return session_for(session, self.graph).run(self, feed_dict)

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

    def __int__(self) -> int:
        raise GraphTypeError(f"{describe(self)} has no value yet: run it in a session")

    __index__ = __int__

    if TYPE_CHECKING:  # installed by _install_operators

        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __rfloordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __rmod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __rand__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __ror__(self, other: Any) -> Tensor: ...
        def __xor__(self, other: Any) -> Tensor: ...
        def __rxor__(self, other: Any) -> Tensor: ...
        def __lshift__(self, other: Any) -> Tensor: ...
        def __rlshift__(self, other: Any) -> Tensor: ...
        def __rshift__(self, other: Any) -> Tensor: ...
        def __rrshift__(self, other: Any) -> Tensor: ...
        def __eq__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __pos__(self) -> Tensor: ...

    def __getitem__(self, key: Any) -> Tensor:
        result: Tensor = OPERATORS["getitem"](self, key)
        return result

    def __setitem__(self, key: Any, value: Any) -> None:
        raise GraphTypeError(
            f"{describe(self)} cannot be changed in place: build a new tensor with gx.where, "
            "gx.concat or gx.scatter_update"
        )

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            return _BoundMethod(METHODS[name], self)
        raise AttributeError(f"a tensor has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *METHODS})


@dataclass(frozen=True)
class _BoundMethod:
    function: Callable[..., Any]
    tensor: Tensor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.tensor, *args, **kwargs)


OPERATORS: dict[str, Callable[..., Any]] = {}
"""Functions of graphc.ops by name, for Python's operators and for the layers below the function."""

METHODS: dict[str, Callable[..., Any]] = {}
"""The array methods of tensors, `x.sum()`; filled in by graphc.ops.methods."""


def _install_operators() -> None:
    def binary(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        def forward(self: Tensor, other: Any) -> Any:
            return OPERATORS[name](self, other)

        def backward(self: Tensor, other: Any) -> Any:
            return OPERATORS[name](other, self)

        return forward, backward

    def unary(name: str) -> Callable[[Tensor], Any]:
        def function(self: Tensor) -> Any:
            return OPERATORS[name](self)

        return function

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
        "lshift": "left_shift",
        "rshift": "right_shift",
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
    setattr(Tensor, "__pos__", lambda self: self)  # noqa: B010 - declared for type checkers


_install_operators()


def _public_dim(d: DimLike) -> int | str | None:
    if isinstance(d, int):
        return d
    text = repr(d)
    return None if "?" in text else text


def describe(t: Tensor) -> str:
    """A tensor for error messages: name, type and the user's line."""
    return f"{t.node.op.name} {t.node.name!r} {t.type} ({t.node.loc})"


def session_for(session: Any, graph: Graph | None) -> Any:
    if session is not None:
        return session
    found = DEFAULT_SESSION[0]() if DEFAULT_SESSION else None
    if found is None:
        raise GraphError("no default session: enter one with `with gx.Session():`, or pass it")
    return found


DEFAULT_SESSION: list[Callable[[], Any]] = []
"""Set by graphc.session: how to find the default session of this thread."""


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
    entered: set[Node] = set()
    done: set[Node] = set()
    blocks: set[int] = set()
    order: list[Node] = []
    stack = list(roots)
    stack.reverse()
    while stack:
        node = stack[-1]
        if node in entered:
            stack.pop()
            if node not in done:
                done.add(node)
                order.append(node)
            continue
        entered.add(node)
        if node.id in stop:
            continue
        for t in reversed(node.inputs):
            if t.node not in entered:
                stack.append(t.node)
        # the nodes of one block share one tuple: done before the inputs, it is done for them all
        if control and node.control and id(node.control) not in blocks:
            blocks.add(id(node.control))
            stack.extend([n for n in reversed(node.control) if n not in entered])
    return order
