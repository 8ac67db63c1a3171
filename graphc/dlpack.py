"""DLPack's structures: capsules of arrays, given out and taken in.

Imports: nothing of graphc.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

CPU, CUDA = 1, 2
"""DLPack's numbers of kinds of memory."""

_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [
    ("tensor", _Tensor),
    ("context", ctypes.c_void_p),
    ("deleter", _Deleter),
]

_NEW, _USED = b"dltensor", b"used_dltensor"

_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_api.PyCapsule_IsValid.argtypes = [ctypes.py_object, ctypes.c_char_p]
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]

# The destructor of a capsule gets the bare address of an object that is being freed.
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)

# ---- given out ---------------------------------------------------------------------------------

_given: dict[int, Any] = {}
"""What somebody has been given, by the address of its structure, until it is given back."""


def _delete(managed: Any) -> None:
    _given.pop(ctypes.addressof(managed.contents), None)


def _drop(capsule: int) -> None:
    """A capsule goes: what nobody took out of it is not needed."""
    if _is_valid(capsule, _NEW):
        _given.pop(_pointer(capsule, _NEW), None)


_delete_c = _Deleter(_delete)
_drop_c = _Destructor(_drop)


def capsule(
    address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int], owner: Any
) -> Any:
    """A capsule of a C-contiguous array; `owner` lives as long as whoever takes it needs it."""
    if dtype.kind not in _KINDS:
        raise BufferError(f"DLPack has no {dtype}")
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    strides = (ctypes.c_int64 * len(shape))()
    step = 1
    for i in reversed(range(len(shape))):
        strides[i] = step
        step *= shape[i]
    pointer = ctypes.POINTER(ctypes.c_int64)
    managed = _Managed()
    managed.tensor.data = address
    managed.tensor.device = _Device(*device)
    managed.tensor.ndim = len(shape)
    managed.tensor.dtype = _Type(_KINDS[dtype.kind], 8 * dtype.itemsize, 1)
    managed.tensor.shape = ctypes.cast(sizes, pointer)
    managed.tensor.strides = ctypes.cast(strides, pointer)
    managed.deleter = _delete_c
    at = ctypes.addressof(managed)
    _given[at] = managed, sizes, strides, owner
    return _api.PyCapsule_New(at, _NEW, ctypes.cast(_drop_c, ctypes.c_void_p))


# ---- taken in ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """An array out of a capsule.  Its memory is its giver's again when this is gone.

    strides  in bytes, or None for C order
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] | None
    device: tuple[int, int]
    _giver: _Giver


class _Giver:
    def __init__(self, managed: Any) -> None:
        self.managed = managed

    def __del__(self) -> None:
        deleter = self.managed.contents.deleter
        if deleter:
            deleter(self.managed)


def take(given: Any) -> Taken:
    """The array of a capsule, which nobody can take again; raises BufferError for odd types."""
    if not _api.PyCapsule_IsValid(given, _NEW):
        raise BufferError("not a DLPack capsule, or one that has been taken already")
    at = _api.PyCapsule_GetPointer(given, _NEW)
    managed = ctypes.cast(at, ctypes.POINTER(_Managed))
    tensor = managed.contents.tensor
    kinds = {number: kind for kind, number in _KINDS.items()}
    kind = kinds.get(tensor.dtype.kind)
    if kind is None or tensor.dtype.lanes != 1 or tensor.dtype.bits % 8:
        raise BufferError(f"a DLPack array of type {tensor.dtype.kind}/{tensor.dtype.bits}")
    dtype = np.dtype(f"{kind}{tensor.dtype.bits // 8}")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = None
    if tensor.strides:
        strides = tuple(s * dtype.itemsize for s in tensor.strides[: tensor.ndim])
    address = (tensor.data or 0) + tensor.byte_offset
    device = tensor.device.kind, tensor.device.number
    _api.PyCapsule_SetName(given, _USED)
    return Taken(address, shape, dtype, strides, device, _Giver(managed))
