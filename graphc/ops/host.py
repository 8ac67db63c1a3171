"""`py_op`: a Python function as an operator of the graph.

Runs on the host, between compiled parts of the program.
Imports: ops.define, ops.state, graph, types, errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc.dims import Dim, DimLike
from graphc.errors import GraphTypeError, RunError, ShapeError
from graphc.graph import make
from graphc.node import Attrs, Tensor
from graphc.ops.define import as_tensor, op
from graphc.ops.state import declared_shape
from graphc.types import TensorType, as_dtype


def _infer_host(types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
    pairs = zip(attrs["dtypes"], attrs["shapes"], strict=True)
    return tuple(TensorType(d, s) for d, s in pairs)


def call_host(attrs: Attrs, *arrays: Any) -> Any:
    """The function's results as arrays of the declared types; raises RunError where they are not.

    The sizes in `attrs` are numbers here.  The function gets copies, which it may keep or change.
    """
    name = attrs["name"]
    try:
        made = attrs["function"](*[np.array(a) for a in arrays])
    except Exception as error:
        raise RunError(f"{name!r} raised {type(error).__name__}: {error}") from error
    results = list(made) if isinstance(made, (list, tuple)) else [made]
    if len(results) != len(attrs["dtypes"]):
        raise RunError(f"{name!r} gave {len(results)} results, not {len(attrs['dtypes'])}")
    typed = []
    for value, dtype, shape in zip(results, attrs["dtypes"], attrs["shapes"], strict=True):
        array = np.array(value, dtype.numpy, order="C")
        if array.shape != tuple(shape):
            raise RunError(f"{name!r} gave an array of shape {array.shape}, not {tuple(shape)}")
        typed.append(array)
    return tuple(typed) if len(typed) > 1 else typed[0]


def _host_vjp(y: Any, g: Any, *inputs: Tensor) -> list[Tensor | None]:
    node = (y[0] if isinstance(y, tuple) else y).node
    grad = node.attrs["grad"]
    if grad is None:
        return [None] * len(inputs)
    found = grad(y, g, *inputs)
    return list(found) if isinstance(found, (list, tuple)) else [found]


host_op = op(
    "py_op",
    "host",
    infer=_infer_host,
    reference=call_host,
    vjp=_host_vjp,
    stateful=True,
    note="a Python function of arrays, called once per run",
)


def py_op(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    dtype: Any,
    shape: Any,
    grad: Callable[..., Any] | None = None,
    name: str | None = None,
) -> Any:
    """A tensor that a Python function computes when the graph is run.

    function  (one array per input) -> array, or a tuple of them
    dtype, shape  of the result; for several results, lists of dtypes and of shapes.  A size is an
              int, the name of a size, or a size of a tensor (`x.dims[0]`)
    grad      (y, g, *inputs) -> one cotangent or None per input, written with graph operators;
              None: gradients stop here
    Raises RunError, in which case no variable changes, if the function fails or gives another type.
    """
    if not callable(function):
        raise GraphTypeError(f"py_op: not a function: {function!r}")
    several = isinstance(dtype, (list, tuple))
    label = name or str(getattr(function, "__name__", "py_op"))
    shapes = tuple(_known(s, label) for s in (shape if several else [shape]))
    dtypes = tuple(as_dtype(d) for d in (dtype if several else [dtype]))
    if len(dtypes) != len(shapes):
        raise GraphTypeError(f"py_op: {len(dtypes)} dtypes and {len(shapes)} shapes")
    attrs = {
        "function": function,
        "grad": grad,
        "dtypes": dtypes,
        "shapes": shapes,
        "name": label,
    }
    outputs = make(host_op, [as_tensor(x) for x in inputs], attrs, "py_op").outputs
    return outputs if several else outputs[0]


def _known(shape: Any, label: str) -> tuple[DimLike, ...]:
    declared = declared_shape(shape, label)
    if declared is None or any(d is None for d in shape if not isinstance(shape, (int, str, Dim))):
        raise ShapeError(
            f"py_op {label!r}: the shape of the result must be given, in sizes of other tensors "
            "where it varies"
        )
    return declared
