"""The native function behind every entry, made where Python and NumPy objects are as it reads them.

`entry_text` has its code.  Offsets are tried on real objects first; an interpreter without a GIL or
with other layouts gets no native function, and entries are their slow callables then.
Imports: entry_text, driver, jit, target, tables, team, memory.
"""

from __future__ import annotations

import ctypes
import importlib
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from graphc.backends.llvm import entry_text as at
from graphc.backends.llvm.driver import CONTROL_BYTES, expand
from graphc.backends.llvm.jit import JIT
from graphc.backends.llvm.memory import Array, address_of
from graphc.backends.llvm.tables import DATA_OFFSET, Words
from graphc.backends.llvm.target import Target, compile_lock
from graphc.backends.llvm.team import native_driver
from graphc.errors import CompileError

_NEW_FROM_DESCR, _RETURN, _ARRAY_TYPE = 94, 76, 2
"""Places in NumPy's table of C functions, fixed by its ABI."""


class Table:
    """An object whose first slot is the array of words that the native function reads."""

    __slots__ = ("words",)

    words: Words


class _MethodDef(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_FASTCALL, _KEYWORDS = 0x80, 0x02

_OUT = sys.intern("out")


class NativeFunction:
    """The native function of the process and the addresses every entry gives it."""

    def __init__(self) -> None:
        self._code = JIT(Target(optimization=0))
        address = self._code.compile_text(_module_text(), ["entry"])["entry"]
        self._control = np.zeros(CONTROL_BYTES // 8, np.int64)
        self._definition = _MethodDef(b"compiled", address, _FASTCALL | _KEYWORDS, None)
        self._make = ctypes.pythonapi.PyCFunction_NewEx
        self._make.restype = ctypes.py_object
        self._make.argtypes = (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
        api = _numpy_functions()
        self.words = [
            id(np.ndarray),
            api[_NEW_FROM_DESCR],
            api[_RETURN],
            id(_OUT),
            native_driver().run_address,
            address_of(self._control),
        ]

    def of(self, entry: Table) -> Callable[..., Any]:
        """The Python function that is this entry; it keeps the entry alive."""
        made: Callable[..., Any] = self._make(ctypes.addressof(self._definition), entry, None)
        return made


def _module_text() -> str:
    """The module's text; `TABLE ptr case, i64 i` abbreviates the address of row i of a case."""
    lines = []
    for line in at.ENTRY.splitlines():
        name, _, operands = line.partition(" = TABLE ")
        if operands:
            table, _, number = operands.partition(", i64 ")
            lines += [
                f"{name}.o = shl i64 {number}, 7",
                f"{name}.b = add i64 {name.strip()}.o, {8 * at.CASE_WORDS}",
                f"{name} = getelementptr i8, {table}, i64 {name.strip()}.b",
            ]
        else:
            lines.append(line)
    return expand("\n".join(lines))


def _numpy_functions() -> Any:
    try:
        module = importlib.import_module("numpy._core._multiarray_umath")
    except ImportError:  # NumPy 1
        module = importlib.import_module("numpy.core._multiarray_umath")
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype = ctypes.c_void_p
    get.argtypes = (ctypes.py_object, ctypes.c_char_p)
    return ctypes.cast(get(module._ARRAY_API, None), ctypes.POINTER(ctypes.c_size_t))


_cached: list[NativeFunction | None] = []


def native_function() -> NativeFunction | None:
    """The native function, or None where objects are not laid out as it expects."""
    if not _cached:
        with compile_lock:
            if not _cached:
                try:
                    _cached.append(NativeFunction() if _layout_is_known() else None)
                except (CompileError, AttributeError, ImportError):
                    _cached.append(None)
    return _cached[0]


def _layout_is_known() -> bool:
    """Whether real objects are laid out as the native function reads them."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    if sys.implementation.name != "cpython" or not gil or struct.calcsize("P") != 8:
        return False
    if DATA_OFFSET != at.DATA or object.__basicsize__ != at.DATA or sys.byteorder != "little":
        return False
    table = Table()
    table.words = np.zeros(1, np.int64)
    names = (_OUT, "other")
    base = np.zeros((4, 6), np.float32)
    read_only = np.arange(3)
    read_only.flags.writeable = False
    arrays: list[Array] = [
        base,
        base.T,
        base[1:, 2:],
        read_only,
        np.zeros(()),
        np.zeros((2, 1, 3), bool),
    ]
    return (
        _word(table, at.DATA) == id(table.words)
        and _word(names, at.TUPLE_SIZE) == 2
        and _word(names, at.TUPLE_ITEM) == id(_OUT)
        and _numpy_functions()[_ARRAY_TYPE] == id(np.ndarray)
        and all(_reads_right(a) for a in arrays)
        and len({kind_of(np.dtype(c)) for c in "?bBhHiIqQefd"}) == 12
        and kind_of(np.dtype(">f4")) != kind_of(np.dtype("<f4"))
    )


def _reads_right(a: Array) -> bool:
    sizes = _word(a, at.DIMS)
    flags = (a.flags.c_contiguous, a.flags.aligned, a.flags.writeable)
    bits = (at.CONTIGUOUS, at.ALIGNED, at.WRITEABLE)
    found = _word(a, at.FLAGS)
    return (
        _word(a, at.TYPE) == id(np.ndarray)
        and _word(a, at.DESCR) == id(a.dtype)
        and _word(a, at.NDIM) & 0xFFFFFFFF == a.ndim
        and (not a.ndim or _word(a, at.DIMS + 8) - sizes == 8 * a.ndim)  # strides follow sizes
        and all(_at(sizes + 8 * i) == n for i, n in enumerate(a.shape))
        and all(bool(found & bit) == flag for bit, flag in zip(bits, flags, strict=True))
    )


def _word(thing: Any, offset: int) -> int:
    return _at(id(thing) + offset)


def _at(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


def kind_of(dtype: np.dtype[Any]) -> int:
    """The word that tells this dtype from others."""
    return _word(dtype, at.KIND) & at.KIND_MASK
