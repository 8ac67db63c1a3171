"""Arrays of other libraries as NumPy arrays, without a copy where their memory can be shared.

Understood are the buffer protocol, `__array__`, `__array_interface__` and DLPack.  Memory that the
processor cannot read is refused by name.  Imports: nothing of graphc.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_ON_HOST = (1, 3, 11, 13)
"""DLPack's device types that the processor reads: CPU, CUDA host, ROCm host, CUDA managed."""

_DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI"}


class NoArray(Exception):
    """A value that is no array the processor can read; says why."""


def as_array(value: Any) -> Array:
    """The value as an array, sharing its memory where that is possible; raises NoArray."""
    if isinstance(value, np.ndarray):
        return _unmasked(value)
    kind = type(value)
    exported = hasattr(kind, "__dlpack__")
    if exported or hasattr(kind, "__cuda_array_interface__"):
        _require_host(value)
    try:
        if exported and not hasattr(kind, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError, BufferError) as error:
        raise NoArray(str(error)) from None


def shared_array(value: Any) -> Array | None:
    """An array over the very memory of the value; None where there is no such thing."""
    if isinstance(value, np.ndarray):
        return value
    kind = type(value)
    try:
        if hasattr(kind, "__dlpack__"):
            _require_host(value)
            return np.from_dlpack(value)
        if hasattr(kind, "__array_interface__"):
            return np.asarray(value)
        return np.asarray(memoryview(value))
    except (ValueError, TypeError, RuntimeError, BufferError, NoArray):
        return None


def _require_host(value: Any) -> None:
    ask = getattr(value, "__dlpack_device__", None)
    number = int(ask()[0]) if ask is not None else 2
    if number not in _ON_HOST:
        device = _DEVICES.get(number, f"DLPack device type {number}")
        raise NoArray(f"a {type(value).__name__} in {device} memory: copy it to the host first")


def _unmasked(array: Array) -> Array:
    masked = sys.modules.get("numpy.ma")  # without it no array has a mask
    if masked is not None and isinstance(array, masked.MaskedArray) and masked.is_masked(array):
        raise NoArray("a masked array with masked elements: say what they are with .filled(value)")
    return np.asarray(array)
