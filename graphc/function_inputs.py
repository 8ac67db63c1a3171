"""The inputs and outputs of compiled functions: what a call's arguments become.

Imports: device_feeds, feeds, graph, program, dims, errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc import device_feeds, dims, feeds
from graphc.device_array import DeviceArray
from graphc.device_names import is_gpu
from graphc.dims import Atom, DimLike
from graphc.errors import FeedTypeError, GraphTypeError
from graphc.node import Tensor
from graphc.program import Program, map_dims

__all__ = ["In", "Out", "Parameters", "is_fed_by"]

Array = np.ndarray[Any, Any]


class In:
    """An input of a function.

    variable        the tensor that the argument is the value of
    value           the default of the argument (None: the argument is required)
    name            the keyword to pass it by (default: the tensor's name)
    allow_downcast  as `function`'s allow_input_downcast, for this input
    strict          take arrays of exactly this dtype and nothing else
    mutable, borrow accepted and not used: a function never writes into its arguments
    """

    def __init__(
        self,
        variable: Tensor,
        value: Any = None,
        name: str | None = None,
        allow_downcast: bool | None = None,
        strict: bool = False,
        mutable: bool = False,
        borrow: bool | None = None,
    ) -> None:
        if not isinstance(variable, Tensor):
            raise GraphTypeError(f"an input of a function is a tensor, not {variable!r}")
        self.variable = variable
        self.value = value
        self.name = name or variable.node.name
        self.allow_downcast = allow_downcast
        self.strict = strict
        self.mutable = mutable
        self.borrow = borrow


class Out:
    """An output of a function; `borrow` is accepted and not used: results are always fresh."""

    def __init__(self, variable: Tensor, borrow: bool = False) -> None:
        if not isinstance(variable, Tensor):
            raise GraphTypeError(f"an output of a function is a tensor, not {variable!r}")
        self.variable = variable
        self.borrow = borrow


class Parameters:
    """The inputs of one function, and the rule by which arguments meet them."""

    def __init__(self, function: str, inputs: Sequence[In], allow_downcast: bool | None) -> None:
        self.function = function
        self.inputs = tuple(inputs)
        self.allow_downcast = allow_downcast
        self.positions: dict[str, int] = {}
        for position, i in enumerate(inputs):
            if any(i.variable is j.variable for j in inputs[:position]):
                raise GraphTypeError(f"function {function!r}: {i.variable!r} is an input twice")
            if i.name in self.positions:
                raise GraphTypeError(f"function {function!r}: two inputs are called {i.name!r}")
            self.positions[i.name] = position

    def arrays(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], device: str = "cpu"
    ) -> list[Array]:
        """One array per input, for a program on this device; raises FeedTypeError as Python does
        for its own functions."""
        values = args
        if kwargs or len(args) != len(self.inputs):
            values = self.bound(args, kwargs)
        pairs = zip(self.inputs, values, strict=True)
        return [self._convert(i, v, device) for i, v in pairs]

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """One value per input; raises FeedTypeError."""
        count = len(self.inputs)
        if len(args) > count:
            raise FeedTypeError(
                f"function {self.function!r} takes {count} argument{'s' * (count != 1)}, "
                f"got {len(args)}"
            )
        missing = object()
        values = [*args, *([missing] * (count - len(args)))]
        for name, value in kwargs.items():
            position = self.positions.get(name)
            if position is None:
                raise FeedTypeError(f"function {self.function!r} has no input called {name!r}")
            if values[position] is not missing:
                raise FeedTypeError(f"function {self.function!r}: input {name!r} is given twice")
            values[position] = value
        for position, i in enumerate(self.inputs):
            if values[position] is missing:
                if i.value is None:
                    label = feeds.label(i.variable)
                    raise FeedTypeError(f"function {self.function!r} needs {i.name!r}: {label}")
                values[position] = i.value
        return values

    def _convert(self, i: In, value: Any, device: str) -> Any:
        target = i.variable.dtype.numpy
        if type(value) is np.ndarray and value.dtype == target:
            return feeds.convert(i.variable, value)
        if is_gpu(device) and not isinstance(value, np.ndarray):
            there = device_feeds.convert(i.variable, value, device)
            if isinstance(there, DeviceArray):
                return there
        if i.strict:
            raise FeedTypeError(
                f"function {self.function!r}: input {i.name!r} is strict and takes an array of "
                f"dtype {i.variable.dtype}, not {_kind(value)}"
            )
        array = feeds.convert(i.variable, value)
        allowed = self.allow_downcast if i.allow_downcast is None else i.allow_downcast
        if allowed is not True and _narrows(value, array, allowed):
            raise FeedTypeError(
                f"function {self.function!r}: input {i.name!r} is {i.variable.dtype} and was given "
                f"{_kind(value)}: pass allow_input_downcast=True to convert it"
            )
        return array


def _kind(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return f"{type(value).__name__}" + (f" of dtype {dtype}" if dtype is not None else "")


def _narrows(value: Any, array: Array, allowed: bool | None) -> bool:
    """Whether converting `value` loses digits that its type promised."""
    if array.dtype.kind != "f":
        return False
    if allowed is False:  # even a Python float must come through unchanged
        wide = np.asarray(value)
        same = wide.astype(np.float64) == array.astype(np.float64)
        return not bool(np.all(same | (wide != wide)))
    dtype = getattr(value, "dtype", None)
    if dtype is None or isinstance(value, float):
        return False
    return bool(dtype.kind == "f" and dtype.itemsize > array.dtype.itemsize)


# ---- use ---------------------------------------------------------------------------------------


def is_fed_by(program: Program, t: Tensor) -> bool:
    """Whether the program reads input `t`, or a size that only its shape tells."""
    own = {a for d in t.type.shape or () for a in dims.atoms(d)}
    for node in program.order():
        if node is t.node:
            return True
        if node.op.name == "placeholder":
            continue
        if own and any(own & _atoms(value) for value in node.attrs.values()):
            return True
    return False


def _atoms(value: Any) -> set[Atom]:
    found: set[Atom] = set()

    def visit(d: DimLike) -> DimLike:
        found.update(dims.atoms(d))
        return d

    map_dims(value, visit)
    return found
