"""Element types, NumPy promotion (NEP 50) and tensor types.

A `TensorType` is a dtype and a shape; a shape is a tuple of dimensions (`graphc.dims`), or None
while the rank is unknown.  Imports: dims, errors.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphc.dims import Dim, DimLike, dim_text
from graphc.errors import GraphTypeError
from graphc.forks import new_lock


@dataclass(frozen=True)
class DType:
    """An element type: its name in graph text, its NumPy type and its size in bytes."""

    name: str
    numpy: np.dtype[Any]
    kind: str  # 'f' float, 'i' signed, 'u' unsigned, 'b' bool

    @property
    def itemsize(self) -> int:
        return int(self.numpy.itemsize)

    @property
    def bits(self) -> int:
        return self.itemsize * 8

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def is_signed(self) -> bool:
        return self.kind in "if"

    @property
    def is_bool(self) -> bool:
        return self.kind == "b"

    def __eq__(self, other: object) -> bool:
        """Equal to what `as_dtype` takes for it too: `x.dtype == np.float32`, `== "f32"`."""
        if self is other:
            return True
        if isinstance(other, DType):
            return self.name == other.name
        try:
            return other is not None and as_dtype(other).name == self.name
        except (TypeError, ValueError):
            return False

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return as_dtype, (self.name,)


def _dtype(name: str, numpy_name: str) -> DType:
    numpy = np.dtype(numpy_name)
    return DType(name, numpy, numpy.kind)


float32 = _dtype("f32", "float32")
float64 = _dtype("f64", "float64")
int8 = _dtype("i8", "int8")
int16 = _dtype("i16", "int16")
int32 = _dtype("i32", "int32")
int64 = _dtype("i64", "int64")
uint8 = _dtype("u8", "uint8")
uint16 = _dtype("u16", "uint16")
uint32 = _dtype("u32", "uint32")
uint64 = _dtype("u64", "uint64")
bool_ = _dtype("bool", "bool")

DTYPES = (float32, float64, int8, int16, int32, int64, uint8, uint16, uint32, uint64, bool_)
FLOATS = (float32, float64)
INTEGERS = (int8, int16, int32, int64, uint8, uint16, uint32, uint64)
SIGNED = (float32, float64, int8, int16, int32, int64)
NUMBERS = FLOATS + INTEGERS

_BY_NAME = {d.name: d for d in DTYPES}
_BY_NUMPY = {d.numpy: d for d in DTYPES}


def as_dtype(spec: Any) -> DType:
    """The `DType` that a DType, a name ('f32', 'float32') or a NumPy type means.

    Raises GraphTypeError for anything graphc does not compute with.
    """
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, (str, np.dtype)):
        known = _BY_NAME.get(spec) if isinstance(spec, str) else _BY_NUMPY.get(spec)
        if known is not None:
            return known
    try:
        numpy = np.dtype(spec)
    except TypeError:
        raise GraphTypeError(f"not a dtype: {spec!r}") from None
    found = _BY_NUMPY.get(numpy.newbyteorder("="))
    if found is None or spec is None:
        listed = ", ".join(d.name for d in DTYPES)
        raise GraphTypeError(f"dtype {spec!r} is not supported (supported: {listed})")
    return found


_PROMOTED: dict[tuple[DType, DType], DType] = {}


def promote(first: DType, *rest: DType) -> DType:
    """The common dtype of typed operands, as NumPy promotes arrays.

    Raises GraphTypeError when NumPy's answer is a type graphc does not have.
    """
    result = first
    for other in rest:
        if other is result:
            continue
        key = (result, other)
        if key not in _PROMOTED:
            _PROMOTED[key] = as_dtype(np.promote_types(result.numpy, other.numpy))
        result = _PROMOTED[key]
    return result


def scalar_dtype(value: Any, partner: DType) -> DType:
    """The dtype a Python scalar takes beside a tensor of dtype `partner` (NEP 50: it is weak)."""
    if isinstance(value, bool):
        return partner
    if isinstance(value, int):
        return int64 if partner.is_bool else partner
    return partner if partner.is_float else float64


Shape = tuple[DimLike, ...]


class TensorType:
    """dtype and shape of one tensor; `shape` is None while the rank is unknown.  Immutable.

    Interned: equal types are the same object, so comparing them and using them as keys is cheap.
    """

    __slots__ = ("__weakref__", "dtype", "shape")
    _interned: ClassVar[weakref.WeakValueDictionary[Any, Any]] = weakref.WeakValueDictionary()
    _lock: ClassVar[threading.Lock] = new_lock()

    dtype: DType
    shape: Shape | None

    def __new__(cls, dtype: DType, shape: Shape | None) -> TensorType:
        key = (dtype.name, shape)
        found: TensorType | None = cls._interned.get(key)
        if found is None:
            with cls._lock:
                found = cls._interned.get(key)
                if found is None:
                    found = object.__new__(cls)
                    found.dtype, found.shape = dtype, shape
                    cls._interned[key] = found
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorType, (self.dtype, self.shape)

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def is_static(self) -> bool:
        return self.shape is not None and not any(isinstance(d, Dim) for d in self.shape)

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[*]"
        return f"{self.dtype}[{','.join(dim_text(d) for d in self.shape)}]"

    def __repr__(self) -> str:
        return f"TensorType({self})"
