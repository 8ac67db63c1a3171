"""The native functions behind every entry, made where objects are laid out as they read them.

The modules `entry_*text` have their code.  Offsets are tried on real objects first; an
interpreter without a GIL or with other layouts gets no native functions, and what would be an entry
stays Python.
Imports: entry_text, entry_turn_text, entry_methods_text, driver, jit, target, tables, team, memory,
native_self.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from graphc.backends.llvm import entry_methods_text, team
from graphc.backends.llvm import entry_text as at
from graphc.backends.llvm.driver import CONTROL_BYTES, expand
from graphc.backends.llvm.entry_turn_text import RUN_CASE
from graphc.backends.llvm.jit import JIT, compile_threads
from graphc.backends.llvm.memory import Array, address_of
from graphc.backends.llvm.tables import DATA_OFFSET
from graphc.backends.llvm.target import Target, compile_lock, has_symbol
from graphc.errors import CompileError
from graphc.native_self import Table

_NEW_FROM_DESCR, _RETURN, _ARRAY_TYPE = 94, 76, 2
"""Places in NumPy's table of C functions, fixed by its ABI."""


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
    """The native functions of the process and the addresses every entry gives them."""

    def __init__(self) -> None:
        self._code = JIT(Target(optimization=0))
        self._code_at = self._code.compile_text(_module_text(), ["entry", "call", "run_session"])
        self._alone = np.zeros(CONTROL_BYTES // 8, np.int64)
        self._process = np.array([address_of(self._alone), 0])
        self._always = np.ones(1, np.int64)
        self._definitions = [self._define("compiled", "entry", None)]
        self._make = ctypes.pythonapi.PyCFunction_NewEx
        self._make.restype = ctypes.py_object
        self._make.argtypes = (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
        api = _numpy_functions()
        self.words = [
            id(np.ndarray),
            api[_NEW_FROM_DESCR],
            api[_RETURN],
            id(_OUT),
            team.native_driver().run_address,
            address_of(self._process),
            address_of(self._always),
            1,
            0,
            id(None),
        ]

    def of(self, entry: Table) -> Callable[..., Any]:
        """The Python function that is this entry; it keeps the entry alive."""
        made: Callable[..., Any] = self._make(ctypes.addressof(self._definitions[0]), entry, None)
        return made

    def method(self, cls: type, name: str, native: str, doc: str | None) -> Any:
        """The native function as a method of `cls`, whose instances are `NativeSelf`."""
        new = ctypes.pythonapi.PyDescr_NewMethod
        new.restype = ctypes.py_object
        new.argtypes = (ctypes.py_object, ctypes.c_void_p)
        definition = self._define(name, native, doc)
        self._definitions.append(definition)  # the method refers to it for as long as it lives
        return new(cls, ctypes.addressof(definition))

    def _define(self, name: str, native: str, doc: str | None) -> _MethodDef:
        text = None if doc is None else doc.encode()
        return _MethodDef(name.encode(), self._code_at[native], _FASTCALL | _KEYWORDS, text)

    def adopt_team(self) -> int:
        """Let entries use the workers the process has now; how many those are."""
        found = team.team()
        self._process[:] = found.control, found.workers
        return found.workers

    def forget_team(self) -> None:
        """In a forked child, which has no workers: entries wait until it has some."""
        self._process[:] = address_of(self._alone), 0


def _module_text() -> str:
    """The module's text; `TABLE ptr case, i64 i` abbreviates the address of row i of a case."""
    lines = []
    text = at.SERVE + RUN_CASE + entry_methods_text.METHODS + entry_methods_text.RUN
    if not has_symbol("PyObject_Vectorcall"):  # Python 3.10 has it in its headers only
        text = text.replace("@PyObject_Vectorcall", "@_PyFunction_Vectorcall")
    for line in text.splitlines():
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


_begun: list[bool] = []


def begin_native_function() -> None:
    """Make the native function, beside what the caller does next if a core can be had for it."""
    if _cached or _begun:
        return
    _begun.append(True)
    try:
        if compile_threads() > 1:
            threading.Thread(target=_begin, name="graphc native function").start()
            return
    except RuntimeError:  # no more threads
        pass
    native_function()


def _begin() -> None:
    # who needs the native function tries again, and gets the error if there is one
    with contextlib.suppress(Exception):
        native_function()


def _forget_team() -> None:
    if _cached and _cached[0] is not None:
        _cached[0].forget_team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_team)


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
    listed = [None, _OUT, None]
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
        and _word(listed, at.TUPLE_SIZE) == 3
        and _at(_word(listed, at.LIST_ITEMS) + 8) == id(_OUT)
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
