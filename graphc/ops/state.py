"""Leaves and state: placeholders, variables, assignment, grouping, and gradient barriers.

State belongs to a session; a graph only names it.  Within one run every read of a variable sees
the value from the start of the run, unless `control_dependencies` orders it after an assignment.
Imports: ops.define, ops.arithmetic, graph, types.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.constraints import require_equal
from graphc.errors import GraphError, GraphTypeError, RunError, ShapeError
from graphc.graph import Graph, GraphKeys, get_default_graph, make
from graphc.node import OPERATORS, Attrs, Node, Tensor, as_node
from graphc.ops.define import (
    NOT_DIFFERENTIABLE,
    as_tensor,
    bind_function,
    constant,
    elementwise,
    op,
)
from graphc.types import DTYPES, TensorType, as_dtype, float32

Types = Sequence[TensorType]


def _declared(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(attrs["dtype"], attrs["shape"]),)


# ---- placeholder -------------------------------------------------------------------------------
placeholder_op = op(
    "placeholder",
    "leaf",
    infer=_declared,
    reference=None,
    vjp=NOT_DIFFERENTIABLE,
    stateful=True,
    note="an input, fed when the graph is run",
)


def placeholder(dtype: Any = float32, shape: Any = None, name: str | None = None) -> Tensor:
    """An input, given a value when the graph is run.

    shape   a sequence of ints, names of sizes ('batch': equal names are equal sizes) and None (any
            size); None alone: any rank
    """
    label = name or "placeholder"
    return make(
        placeholder_op,
        (),
        {"dtype": as_dtype(dtype), "shape": declared_shape(shape, label)},
        label,
    ).outputs[0]


def declared_shape(shape: Any, label: str) -> tuple[dims.DimLike, ...] | None:
    """A user's shape with names and None turned into symbolic sizes."""
    if shape is None:
        return None
    listed = (shape,) if isinstance(shape, (int, str)) else tuple(shape)
    result: list[dims.DimLike] = []
    for d in listed:
        if d is None:
            result.append(dims.fresh(label.rsplit("/", 1)[-1]))
        elif isinstance(d, str):
            result.append(_named_size(d))
        elif isinstance(d, dims.Dim):
            result.append(d)
        elif isinstance(d, (int, np.integer)) and not isinstance(d, bool) and d >= 0:
            result.append(int(d))
        else:
            raise ShapeError(f"placeholder {label!r}: not a size: {d!r}")
    return tuple(result)


def _named_size(name: str) -> dims.DimLike:
    if not name.replace("_", "a").isalnum() or name[0].isdigit():
        raise ShapeError(f"not the name of a size: {name!r}")
    return dims.symbol(name)


# ---- placeholder_with_default ------------------------------------------------------------------
_default_op = op(
    "placeholder_with_default",
    "elementwise",
    infer=lambda types, attrs: (TensorType(types[0].dtype, attrs["shape"]),),
    reference=lambda attrs, x: x,
    vjp=lambda y, g, x: [g],
    lower=lambda s, x, shape: x,
    stateful=True,
)


def placeholder_with_default(value: Any, shape: Any = None, name: str | None = None) -> Tensor:
    """An input that takes `value` when it is not fed."""
    x = as_tensor(value)
    label = name or "placeholder_with_default"
    declared = x.type.shape if shape is None else declared_shape(shape, label)
    if declared is not None and x.type.shape is not None and len(declared) != len(x.type.shape):
        raise ShapeError(f"{label}: a default of {x.type} for rank {len(declared)}")
    if declared is not None and x.type.shape is not None:
        for d, e in zip(declared, x.type.shape, strict=True):
            if isinstance(d, int) and d != e:
                raise ShapeError(f"{label}: a default of {x.type} for shape {shape}")
    return make(_default_op, (x,), {"shape": declared}, label).outputs[0]


# ---- identity, stop_gradient -------------------------------------------------------------------
identity = elementwise(
    "identity",
    dtypes=DTYPES,
    scalar=lambda s, x: x,
    reference=lambda x: x,
    vjp=lambda y, g, x: [g],
    onnx="Identity",
    doc="x itself, as a node of its own.",
)

stop_gradient = elementwise(
    "stop_gradient",
    dtypes=DTYPES,
    scalar=lambda s, x: x,
    reference=lambda x: x,
    vjp=NOT_DIFFERENTIABLE,
    doc="x, taken as a constant by gradients.",
)

# ---- ensure_shape ------------------------------------------------------------------------------


def _infer_ensured(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    wanted = attrs["shape"]
    if x.shape is not None:
        if len(x.shape) != len(wanted):
            raise ShapeError(f"{x} does not have rank {len(wanted)}")
        for d, e in zip(x.shape, wanted, strict=True):
            require_equal(d, e, f"{x} is not of type {TensorType(x.dtype, wanted)}")
    return (TensorType(x.dtype, wanted),)


def _ensured_reference(attrs: Attrs, x: Any) -> Any:
    if np.shape(x) != tuple(attrs["shape"]):
        raise RunError(f"an array of shape {np.shape(x)} is not of shape {attrs['shape']}")
    return x


_ensure_op = op(
    "ensure_shape",
    "elementwise",
    infer=_infer_ensured,
    reference=_ensured_reference,
    vjp=lambda y, g, x: [g],
    lower=lambda s, x, shape: x,
)


def ensure_shape(x: Any, shape: Any, name: str | None = None) -> Tensor:
    """x, known to have `shape` from here on: a run in which it has not is a ShapeError."""
    tensor = as_tensor(x)
    declared = declared_shape(shape, name or "ensure_shape")
    if declared is None:
        return tensor
    return make(_ensure_op, (tensor,), {"shape": declared}, name).outputs[0]


# ---- group, no_op ------------------------------------------------------------------------------
group_op = op(
    "group",
    "state",
    infer=lambda types, attrs: (),
    reference=None,
    vjp=NOT_DIFFERENTIABLE,
    stateful=True,
)


def group(*operations: Any, name: str | None = None) -> Node:
    """One operation that runs all of `operations` (operations or tensors)."""
    graph = get_default_graph()
    nodes = [as_node(o, graph) for o in operations]
    return graph.make(group_op, (), {}, name or "group", nodes)


def no_op(name: str | None = None) -> Node:
    """An operation that does nothing itself; useful inside control_dependencies."""
    return get_default_graph().make(group_op, (), {}, name or "no_op")


# ---- variables ---------------------------------------------------------------------------------
variable_op = op(
    "variable",
    "state",
    infer=_declared,
    reference=None,
    vjp=NOT_DIFFERENTIABLE,
    stateful=True,
)

read_op = op(
    "read_variable",
    "state",
    infer=lambda types, attrs: (types[0],),
    reference=None,
    vjp=lambda y, g, v: [g],
    stateful=True,
    note="the variable's value after the operations this node is ordered behind",
)


def _infer_assign(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    variable, value = types
    if value is variable:
        return (variable,)
    if value.dtype is not variable.dtype:
        raise GraphTypeError(f"a value of dtype {value.dtype} for a {variable.dtype} variable")
    message = f"a value of type {value} for a variable of type {variable}"
    if value.shape is not None and variable.shape is not None:
        if len(value.shape) != len(variable.shape):
            raise ShapeError(message)
        for d, e in zip(value.shape, variable.shape, strict=True):
            require_equal(d, e, message)
    return (variable,)


assign_op = op(
    "assign",
    "state",
    infer=_infer_assign,
    reference=None,
    vjp=NOT_DIFFERENTIABLE,
    stateful=True,
    note="attribute how: 'set', 'add' or 'sub'",
)


class Variable(Tensor):
    """A tensor whose value a session keeps between runs.

    initial    a tensor, array or number; `initializer` assigns it
    trainable  whether optimizers update it
    lr_mult    factor on the learning rate of this variable (0 freezes it)
    Used as a tensor it is the value at the start of the run.
    """

    __slots__ = ("initial_value", "initializer", "lr_mult", "trainable")

    def __init__(
        self,
        initial: Any,
        name: str | None = None,
        trainable: bool = True,
        lr_mult: float = 1.0,
        dtype: Any = None,
        shape: Any = None,
    ) -> None:
        value = initial() if callable(initial) and not isinstance(initial, Tensor) else initial
        graph = get_default_graph()
        label = name or "Variable"
        with graph.control_dependencies(None):
            if not isinstance(value, Tensor):
                value = constant(value, dtype, name=f"{label}/initial_value")
            elif dtype is not None:
                value = OPERATORS["astype"](value, dtype)
            declared = value.type.shape if shape is None else declared_shape(shape, label)
            if declared is None or any(isinstance(d, dims.Dim) for d in declared):
                raise ShapeError(f"variable {label!r} needs a known shape, got {value.type}")
            node = make(variable_op, (), {"dtype": value.dtype, "shape": declared}, label)
            super().__init__(node, 0)
            object.__setattr__(node, "outputs", (self,))
            self.initial_value = value
            self.initializer: Node = _assign(self, value, "set", f"{label}/assign").node
        self.trainable = bool(trainable)
        self.lr_mult = float(lr_mult)
        graph.add_to_collection(GraphKeys.GLOBAL_VARIABLES, self)
        if trainable:
            graph.add_to_collection(GraphKeys.TRAINABLE_VARIABLES, self)

    def current(self) -> Tensor:
        """The value a node made now would read: ordered behind the open control dependencies."""
        graph = self.node.graph
        if graph is None or not graph.control_inputs():
            return self
        return make(read_op, (self,), {}, f"{self.node.name}/read").outputs[0]

    def read_value(self) -> Tensor:
        """A node that reads the variable, ordered behind the open control dependencies."""
        return make(read_op, (self,), {}, f"{self.node.name}/read").outputs[0]

    def initialized_value(self) -> Tensor:
        """The variable's value behind its initializer: for the initial values of others."""
        graph = graph_of([self])
        with graph.control_dependencies(None), graph.control_dependencies([self.initializer]):
            return self.read_value()

    def assign(self, value: Any, name: str | None = None) -> Tensor:
        """Set the variable when run; the result is the new value."""
        return assign(self, value, name)

    def assign_add(self, value: Any, name: str | None = None) -> Tensor:
        """Add to the variable when run; the result is the new value."""
        return assign_add(self, value, name)

    def assign_sub(self, value: Any, name: str | None = None) -> Tensor:
        """Subtract from the variable when run; the result is the new value."""
        return assign_sub(self, value, name)

    def load(self, value: Any, session: Any = None) -> None:
        """Set the variable's value in a session from an array, without running the graph."""
        from graphc.node import session_for

        session_for(session, self.graph).set_value(self, value)

    def __repr__(self) -> str:
        return f"<Variable {self.name} {self.type}>"


bind_function(variable_op, Variable)


def _assign(variable: Tensor, value: Any, how: str, name: str | None) -> Tensor:
    if not isinstance(variable, Variable):
        raise GraphTypeError(f"not a variable: {variable!r}")
    if not isinstance(value, Tensor):
        value = constant(value, variable.dtype)
    return make(assign_op, (variable, as_tensor(value)), {"how": how}, name).outputs[0]


def assign(variable: Variable, value: Any, name: str | None = None) -> Tensor:
    """An operation that sets `variable`; raises on another shape or dtype."""
    return _assign(variable, value, "set", name)


def assign_add(variable: Variable, value: Any, name: str | None = None) -> Tensor:
    """An operation that adds to `variable`; several in one run all take effect."""
    return _assign(variable, _broadcast_value(variable, value), "add", name)


def assign_sub(variable: Variable, value: Any, name: str | None = None) -> Tensor:
    """An operation that subtracts from `variable`; several in one run all take effect."""
    return _assign(variable, _broadcast_value(variable, value), "sub", name)


def _broadcast_value(variable: Variable, value: Any) -> Tensor:
    tensor = value if isinstance(value, Tensor) else constant(value, variable.dtype)
    if tensor.type.shape is not None and tensor.type.shape != variable.type.shape:
        result: Tensor = OPERATORS["broadcast_to"](tensor, variable.type.shape)
        return result
    return tensor


def global_variables(scope: str | None = None) -> list[Variable]:
    """All variables of the default graph, in the order they were made."""
    return get_default_graph().get_collection(GraphKeys.GLOBAL_VARIABLES, scope)


def trainable_variables(scope: str | None = None) -> list[Variable]:
    """The variables that optimizers update by default."""
    return get_default_graph().get_collection(GraphKeys.TRAINABLE_VARIABLES, scope)


def variables_initializer(variables: Iterable[Variable], name: str = "init") -> Node:
    """An operation that initializes the given variables."""
    return group(*[v.initializer for v in variables], name=name)


def global_variables_initializer() -> Node:
    """An operation that initializes every variable of the default graph made so far."""
    return variables_initializer(global_variables())


def graph_of(values: Iterable[Tensor]) -> Graph:
    """The one graph the tensors belong to; raises GraphError if they differ."""
    graphs = {id(v.graph): v.graph for v in values}
    if len(graphs) != 1:
        raise GraphError("tensors of different graphs")
    (graph,) = graphs.values()
    assert graph is not None
    return graph
