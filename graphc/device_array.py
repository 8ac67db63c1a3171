"""Arrays in a device's memory, and how other libraries and graphc hand them to each other.

A DeviceArray is C-contiguous.  It shares memory with CuPy, PyTorch and whatever else understands
`__cuda_array_interface__` or DLPack.  Imports: dlpack.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from graphc import dlpack

Array = np.ndarray[Any, Any]


class Holder(Protocol):
    """The device that an array is on, as far as the array needs it."""

    name: str
    dlpack: tuple[int, int]

    def active(self) -> AbstractContextManager[Any]: ...

    def copy_out(self, array: Array, address: int) -> None: ...

    def synchronize(self) -> None: ...


class DeviceArray:
    """An array in a device's memory; `numpy()` copies it to the host.

    owner  what keeps the memory while it lives
    """

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: Any, holder: Holder, owner: Any
    ) -> None:
        self.address = address
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.holder = holder
        self.owner = owner

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * int(self.dtype.itemsize)

    @property
    def device(self) -> str:
        """The name of the device it is on."""
        return self.holder.name

    def numpy(self) -> Array:
        """A copy on the host."""
        array = np.empty(self.shape, self.dtype)
        if array.size:
            with self.holder.active():
                self.holder.copy_out(array, self.address)
                self.holder.synchronize()
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError(f"an array on {self.device} is read on the host as a copy only")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> DeviceArray:
        if index == ():
            return self
        raise TypeError(f"an array on {self.device} has no indexing: see `numpy()`, or hand it on")

    def copy(self) -> DeviceArray:
        """The same array: nobody writes it."""
        return self

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without axes has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype}{list(self.shape)} on {self.device}>"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.holder.dlpack[0] != dlpack.CUDA:
            raise AttributeError(f"{self.device} is not a CUDA device")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.holder.dlpack

    def __dlpack__(self, *, stream: Any = None, **others: Any) -> Any:
        """A DLPack capsule; everything that was asked for is done, so any stream may read it."""
        return dlpack.capsule(self.address, self.shape, self.dtype, self.holder.dlpack, self)
