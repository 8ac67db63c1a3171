"""How operators are declared: `op`, `elementwise`, `deferred`.

One call states everything about an operator (STYLE: an op is one section of one file) and returns
the function that users call.  Tests for every dtype, back end and gradient order are generated from
the `samples` given here.  Imports: graph, kernel, types, dims, errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphc import dims
from graphc.errors import GraphTypeError, RunError, ShapeError
from graphc.graph import Graph, current_factory, make
from graphc.kernel import SCALAR_OPS, Expr
from graphc.node import OPERATORS, Attrs, ConstantValue, Node, Op, Tensor, register
from graphc.types import (
    DTYPES,
    FLOATS,
    DType,
    Shape,
    TensorType,
    as_dtype,
    bool_,
    float32,
    float64,
    promote,
    scalar_dtype,
)

# ---- conversion -------------------------------------------------------------------------------


def _infer_constant(types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
    array = attrs["value"].array
    return (TensorType(as_dtype(array.dtype), array.shape),)


_constant = register(
    Op(
        "constant",
        "leaf",
        _infer_constant,
        reference=lambda attrs: attrs["value"].array,
        onnx="Constant",
        note="an array fixed when the graph is built",
    )
)


def constant(
    value: Any, dtype: Any = None, shape: Sequence[int] | None = None, name: str | None = None
) -> Tensor:
    """A tensor with a fixed value.

    value   a number, (nested) list or array; Python floats become float32 and ints int32 unless
            `dtype` says otherwise (NumPy arrays keep their dtype)
    shape   if given, a single value is repeated to this shape
    Raises GraphTypeError if the value is not numeric.
    """
    if isinstance(value, Tensor):
        raise GraphTypeError("constant() takes numbers, not a tensor")
    array = _as_array(value, None if dtype is None else as_dtype(dtype))
    if shape is not None:
        if array.size != 1 and array.shape != tuple(shape):
            raise ShapeError(f"constant: a value of shape {array.shape} for shape {tuple(shape)}")
        array = np.broadcast_to(array, tuple(shape))
    return make(_constant, (), {"value": ConstantValue(array)}, name).outputs[0]


def _as_array(value: Any, dtype: DType | None) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise GraphTypeError(f"not a numeric array: {error}") from None
    if array.dtype.kind not in "fiub":
        raise GraphTypeError(f"a value of dtype {array.dtype} is not numeric: {value!r:.60}")
    if dtype is None:
        typed = isinstance(value, (np.ndarray, np.generic))
        if not typed and array.dtype == np.float64:
            dtype = float32
        elif not typed and array.dtype == np.int64:
            fits = array.size == 0 or (array.min() >= -(2**31) and array.max() < 2**31)
            return array.astype(np.int32) if fits else array
        else:
            return array.astype(as_dtype(array.dtype).numpy, copy=False)
    if array.dtype.kind in "fi" and dtype.is_integer and array.size:
        info = np.iinfo(dtype.numpy)
        whole = array.dtype.kind == "i" or bool(np.all(array == np.trunc(array)))
        if not whole or array.min() < info.min or array.max() > info.max:
            raise GraphTypeError(f"{value!r:.60} does not fit dtype {dtype}")
    return array.astype(dtype.numpy)


def as_tensor(value: Any, dtype: DType | None = None) -> Tensor:
    """A tensor as it is; anything else becomes a constant."""
    if type(value) is Tensor:
        return value
    if isinstance(value, Tensor):  # a variable
        current: Tensor = value.current()
        return current
    if isinstance(value, Node):
        raise GraphTypeError(f"operation {value.name!r} has no value to compute with")
    return constant(value, dtype)


_PLAIN = frozenset((Tensor,))


def as_tensors(*values: Any) -> list[Tensor]:
    """Operands brought together by NumPy's rules: Python scalars take their partners' dtype."""
    if _PLAIN.issuperset(map(type, values)):
        return list(values)
    typed = [v for v in values if isinstance(v, (Tensor, np.ndarray, np.generic))]
    if not typed or len(typed) == len(values):
        return [as_tensor(v) for v in values]
    partner = promote(*[v.dtype if isinstance(v, Tensor) else as_dtype(v.dtype) for v in typed])
    return [
        as_tensor(v, scalar_dtype(v, partner) if isinstance(v, (bool, int, float)) else None)
        for v in values
    ]


def is_strict() -> bool:
    """Whether the graph being built refuses to mix dtypes (`Graph(strict_dtypes=True)`)."""
    factory = current_factory()
    return isinstance(factory, Graph) and factory.strict_dtypes


def promoted(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors cast to their common dtype."""
    dtypes = [t.type.dtype for t in tensors]
    if dtypes.count(dtypes[0]) == len(dtypes):
        return list(tensors)
    common = promote(*dtypes)
    if is_strict():
        listed = ", ".join(str(t.dtype) for t in tensors)
        raise GraphTypeError(
            f"{name}: dtypes {listed} differ, and this graph is strict: cast first"
        )
    return [OPERATORS["astype"](t, common) for t in tensors]


# ---- shapes -----------------------------------------------------------------------------------


def broadcast_shapes(shapes: Sequence[Shape | None]) -> Shape | None:
    """The NumPy broadcast of shapes; None when a rank is unknown; raises ShapeError."""
    known: list[Shape] = []
    for s in shapes:
        if s is None:
            return None
        known.append(s)
    first = known[0]
    if all(s is first or s == first for s in known):
        return first
    rank = max(map(len, known))
    result: list[dims.DimLike] = [1] * rank
    for s in known:
        for i, d in enumerate(s, rank - len(s)):
            try:
                result[i] = dims.broadcast(result[i], d)
            except ShapeError:
                listed = " and ".join(_shape_text(k) for k in known)
                raise ShapeError(f"shapes {listed} do not broadcast") from None
    return tuple(result)


def _shape_text(shape: Shape) -> str:
    return "[" + ",".join(dims.dim_text(d) for d in shape) + "]"


def normalize_axis(axis: int, rank: int) -> int:
    """A non-negative axis below rank; raises ShapeError."""
    if not isinstance(axis, (int, np.integer)) or isinstance(axis, bool):
        raise GraphTypeError(f"an axis is an integer, not {axis!r}")
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} is out of range for rank {rank}")
    return int(axis) % rank


def normalize_axes(axes: Any, rank: int) -> tuple[int, ...]:
    """Sorted non-negative axes; None means all of them; raises ShapeError on repeats."""
    if axes is None:
        return tuple(range(rank))
    listed = tuple(axes) if isinstance(axes, (list, tuple)) else (axes,)
    result = sorted(normalize_axis(a, rank) for a in listed)
    if len(set(result)) != len(result):
        raise ShapeError(f"an axis is repeated in {listed}")
    return tuple(result)


# ---- samples: what the generated tests feed ---------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One call for the generated tests.

    shapes   shapes of the tensor operands, drawn from the operator's domain
    kwargs   further keyword arguments of the function
    values   operand values, where drawing from a domain is not enough (index tensors and such);
             an entry of None is drawn
    """

    shapes: tuple[tuple[int, ...], ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Samples:
    """The calls, the domain of float operands, edge values, dtypes and tolerances of an operator.

    gradient   operands (by position) whose gradients the tests check; () for none
    variadic   whether the function takes its operands as one list
    """

    calls: tuple[Sample, ...]
    low: float = -2.0
    high: float = 2.0
    edges: tuple[float, ...] = ()
    dtypes: tuple[DType, ...] = FLOATS
    gradient: tuple[int, ...] = (0,)
    tolerance: float = 1.0
    variadic: bool = False


# ---- operator declarations --------------------------------------------------------------------

NOT_DIFFERENTIABLE = "not differentiable"
"""Say it aloud: the output is piecewise constant or an integer, so no gradient flows."""


def op(
    name: str,
    kind: str,
    *,
    infer: Callable[..., tuple[TensorType, ...]],
    reference: Callable[..., Any] | None,
    vjp: Any,
    lower: Any = None,
    normalize: Any = None,
    stateful: bool = False,
    samples: Samples | None = None,
    onnx: str = "",
    dtypes: tuple[DType, ...] = (),
    note: str = "",
) -> Op:
    """Register an operator.

    `vjp(y, g, *inputs)` returns one cotangent (or None) per input, written with graph operators;
    operators with several outputs get tuples for y and g.  `vjp=NOT_DIFFERENTIABLE` must be said.
    """
    if vjp is None:
        raise GraphTypeError(f"operator {name!r}: say vjp=NOT_DIFFERENTIABLE or give a rule")
    rule = None if vjp is NOT_DIFFERENTIABLE else vjp
    return register(
        Op(
            name,
            kind,
            infer,
            reference,
            rule,
            lower,
            normalize,
            stateful,
            onnx=onnx,
            samples=samples,
            dtypes=dtypes,
            note=note,
        )
    )


def bind_function(record: Op, function: Callable[..., Any], *names: str) -> None:
    """Tell the record which public function makes it; enter it in OPERATORS under `names`."""
    object.__setattr__(record, "function", function)
    for name in names:
        OPERATORS[name] = function


class ScalarBuilder:
    """Builds scalar expressions: `s.exp(x)`, `s.const(0.5, x)`, `s.select(c, a, b)`.

    One builder serves one kernel; `checks` collects its run-time checks.
    """

    def __init__(self) -> None:
        self.checks: list[tuple[type[RunError], str]] = []

    def check(self, value: Expr, ok: Expr, error: type[RunError], message: str) -> Expr:
        """`value`; where `ok` is false the run fails with `error`.  `{value}` is filled in."""
        self.checks.append((error, message))
        return Expr("check", (value, ok), len(self.checks) - 1, value.dtype)

    def const(self, value: float, like: Expr | DType) -> Expr:
        """A constant of the dtype of `like`."""
        return Expr("const", (), value, like if isinstance(like, DType) else like.dtype)

    def cast(self, x: Expr, dtype: DType) -> Expr:
        return x if x.dtype is dtype else Expr("cast", (x,), None, dtype)

    def bitcast(self, x: Expr, dtype: DType) -> Expr:
        return Expr("bitcast", (x,), None, dtype)

    def select(self, condition: Expr, a: Expr, b: Expr) -> Expr:
        return Expr("select", (condition, a, b), None, a.dtype)

    def apply(self, name: str, *args: Expr | float) -> Expr:
        """Any scalar operation by name; Python numbers take the first expression's dtype."""
        arity, result = SCALAR_OPS[name]
        like = next(a for a in args if isinstance(a, Expr))
        exprs = tuple(a if isinstance(a, Expr) else self.const(a, like) for a in args)
        if len(exprs) != arity:
            raise GraphTypeError(f"scalar operation {name} takes {arity} operands")
        return Expr(name, exprs, None, bool_ if result == "bool" else exprs[0].dtype)

    def __getattr__(self, name: str) -> Callable[..., Expr]:
        key = name.rstrip("_")
        if key not in SCALAR_OPS:
            raise AttributeError(name)
        return lambda *args: self.apply(key, *args)


def elementwise_infer(
    name: str, result: str, dtypes: tuple[DType, ...]
) -> Callable[[Sequence[TensorType], Attrs], tuple[TensorType, ...]]:
    """The type rule of elementwise operators: broadcast shapes, one operand dtype."""

    def infer(types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
        dtype = types[-1].dtype
        values = types[1:] if result == "select" else types
        for t in values:
            if t.dtype is not dtype:
                raise GraphTypeError(f"operands have dtypes {types[0].dtype} and {dtype}")
            if t.dtype not in dtypes:
                raise GraphTypeError(f"not defined for dtype {t.dtype}")
        if result == "select" and not types[0].dtype.is_bool:
            raise GraphTypeError(f"the condition has dtype {types[0].dtype}, not bool")
        out = bool_ if result == "bool" else dtype
        return (TensorType(out, broadcast_shapes([t.shape for t in types])),)

    return infer


def floated(x: Tensor) -> Tensor:
    """x itself if its dtype is a float, else x as the float NumPy's functions would give."""
    if x.dtype.is_float:
        return x
    wide = x.dtype.bits > 16
    result: Tensor = OPERATORS["astype"](x, float64 if wide else float32)
    return result


def elementwise(
    name: str,
    *,
    scalar: Callable[..., Expr],
    reference: Callable[..., Any],
    vjp: Any,
    dtypes: tuple[DType, ...] = DTYPES,
    arity: int = 1,
    result: str = "same",
    to_float: bool = False,
    attrs: Mapping[str, Any] | None = None,
    samples: Samples | None = None,
    low: float = -2.0,
    high: float = 2.0,
    edges: tuple[float, ...] = (),
    tolerance: float = 1.0,
    operator: bool = False,
    commutative: bool = False,
    onnx: str = "",
    doc: str = "",
) -> Callable[..., Tensor]:
    """Declare an elementwise operator and return its function `f(x, ..., name=None)`.

    scalar     (s, *operands, **attrs) -> Expr: the lowering for every back end
    reference  (*arrays, **attrs) -> array, of the result dtype
    vjp        (y, g, *operands) -> cotangents; un-broadcasting is the differentiator's work
    result     'same' as the operands, 'bool', or 'select' (bool, a, b)
    to_float   integer operands are first cast to float, as NumPy's functions do
    operator   it stands behind an operator of Python, as `add` does behind `+`
    attrs      further keyword parameters with their defaults
    """
    if samples is None:
        calls, grads = _elementwise_calls(arity, result, vjp is not NOT_DIFFERENTIABLE)
        tested = tuple(d for d in dtypes if d.is_float) if to_float else dtypes
        samples = Samples(calls, low, high, edges, tested, grads, tolerance)
    record = op(
        name,
        "elementwise",
        infer=elementwise_infer(name, result, dtypes),
        reference=_without_warnings(reference),
        vjp=vjp,
        lower=scalar,
        samples=samples,
        onnx=onnx,
        dtypes=dtypes,
        note=doc,
    )
    object.__setattr__(record, "commutative", commutative)
    function = _elementwise_function(record, arity, result, to_float, dict(attrs or {}))
    bind_function(record, function, *([name] if operator else []))
    return function


def _without_warnings(reference: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays as the `reference` of a record."""

    def evaluate(attrs: Attrs, *arrays: Any) -> Any:
        with np.errstate(all="ignore"):
            return reference(*arrays, **attrs)

    return evaluate


def _elementwise_calls(
    arity: int, result: str, differentiable: bool
) -> tuple[tuple[Sample, ...], tuple[int, ...]]:
    """What the tests call an elementwise operator on, and for which operands it has gradients."""
    calls = [Sample(((3, 5),) * arity)]
    if arity > 1:
        calls.append(Sample(((4, 1, 3), *((2, 3),) * (arity - 1))))
    first = 1 if result == "select" else 0
    return tuple(calls), tuple(range(first, arity)) if differentiable else ()


def _elementwise_function(
    record: Op, arity: int, result: str, to_float: bool, defaults: dict[str, Any]
) -> Callable[..., Tensor]:
    def function(*operands: Any, name: str | None = None, **kwargs: Any) -> Tensor:
        if len(operands) != arity:
            raise GraphTypeError(
                f"{record.name} takes {arity} operand{'s' * (arity > 1)}, got {len(operands)}"
            )
        for key in kwargs:
            if key not in defaults:
                raise GraphTypeError(f"{record.name} has no parameter {key!r}")
        if result == "select":
            condition = as_tensor(operands[0])
            tensors = [condition, *promoted(record.name, as_tensors(*operands[1:]))]
        else:
            tensors = as_tensors(*operands)
            if to_float:
                tensors = [floated(t) for t in tensors]
            tensors = promoted(record.name, tensors)
        return make(record, tensors, {**defaults, **kwargs}, name).outputs[0]

    function.__name__ = function.__qualname__ = record.name
    function.__doc__ = record.note or (
        f"Elementwise {record.name}; operands broadcast as in NumPy."
    )
    return function


def deferred(
    name: str,
    *,
    expand: Callable[..., Tensor],
    dtype: Callable[[Sequence[TensorType], Attrs], DType],
    reference: Callable[..., Any],
    vjp: Any,
    rank: Callable[[Sequence[TensorType], Attrs], int | None] | None = None,
) -> Callable[..., Tensor]:
    """An operator that is a composition once ranks are known, and a node of its own before.

    `expand(*inputs, **attrs)` builds the composition.  The returned function expands at once when
    every input's rank is known; otherwise it makes a node that the specialise pass expands.
    """

    def infer(types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
        return (TensorType(dtype(types, attrs), None),)

    record = op(name, "deferred", infer=infer, reference=reference, vjp=vjp, lower=expand)

    def function(*inputs: Tensor, name: str | None = None, **attrs: Any) -> Tensor:
        if all(t.type.shape is not None for t in inputs):
            return expand(*inputs, **attrs)
        return make(record, inputs, attrs, name).outputs[0]

    function.__name__ = function.__qualname__ = name
    bind_function(record, function)
    return function
