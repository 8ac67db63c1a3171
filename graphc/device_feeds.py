"""Feeds of programs on a GPU: what is on that GPU already is taken without a copy.

Understood are gx.DeviceArray, DLPack and `__cuda_array_interface__`.
Imports: feeds, device_array, dlpack; the GPU's back end when such an array is fed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc import dlpack, feeds
from graphc.device_array import DeviceArray
from graphc.errors import FeedTypeError
from graphc.node import Tensor


def convert(t: Tensor, value: Any, device: str) -> Any:
    """`value` as an array of t's dtype for a program on this GPU: see `feeds.convert`.

    An array that is there already, of that dtype and C-contiguous, comes back as a DeviceArray of
    the same memory.  Raises FeedTypeError.
    """
    if isinstance(value, np.ndarray):
        return feeds.convert(t, value)
    found = value if isinstance(value, DeviceArray) else _shared(t, value, device)
    if found is None:
        return feeds.convert(t, value)
    if found.device != device or found.dtype != t.dtype.numpy:
        return feeds.convert(t, found.numpy())
    return found


def _shared(t: Tensor, value: Any, device: str) -> DeviceArray | None:
    """What is on a CUDA device, as an array on this one; None for what is on the host."""
    kind = type(value)
    if hasattr(kind, "__dlpack_device__"):
        place = tuple(map(int, value.__dlpack_device__()))
        if place[0] != dlpack.CUDA:
            return None
        _require_same(t, value, f"gpu:{place[1]}", device)
        return _from_dlpack(t, value, device)
    if hasattr(kind, "__cuda_array_interface__"):
        _require_same(t, value, device if device.startswith("gpu:") else "CUDA", device)
        return _from_interface(t, value, device)
    return None


def _require_same(t: Tensor, value: Any, place: str, device: str) -> None:
    if place != device:
        raise FeedTypeError(
            f"{feeds.label(t)} was fed a {type(value).__name__} in the memory of {place}, and the "
            f"session runs on {device}: copy it to the host or to {device} first"
        )


def _from_dlpack(t: Tensor, value: Any, device: str) -> DeviceArray:
    from graphc.backends.gpu.devices import open_device

    holder = open_device(device).device
    try:
        taken = dlpack.take(value.__dlpack__(stream=holder.stream))
    except (BufferError, RuntimeError, TypeError) as error:  # the owner's own refusals too
        raise FeedTypeError(f"{feeds.label(t)}: {error}") from None
    _require_contiguous(t, taken.shape, taken.strides, taken.dtype)
    return DeviceArray(taken.address, taken.shape, taken.dtype, holder, taken)


def _from_interface(t: Tensor, value: Any, device: str) -> DeviceArray:
    from graphc.backends.gpu.devices import open_device

    holder = open_device(device).device
    told = value.__cuda_array_interface__
    shape, dtype = tuple(told["shape"]), np.dtype(told["typestr"])
    if told.get("mask") is not None:
        raise FeedTypeError(f"{feeds.label(t)} was fed an array with masked elements")
    _require_contiguous(t, shape, told.get("strides"), dtype)
    with holder.active():
        if told.get("version", 0) < 3:
            holder.wait_for(None)  # it does not say whose work makes it
        elif told.get("stream") is not None:
            holder.wait_for(int(told["stream"]))
    return DeviceArray(int(told["data"][0]), shape, dtype, holder, value)


def _require_contiguous(
    t: Tensor, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> None:
    expected = int(dtype.itemsize)
    for size, stride in reversed(list(zip(shape, strides or (), strict=False))):
        if size > 1 and stride != expected and 0 not in shape:
            raise FeedTypeError(
                f"{feeds.label(t)} was fed an array of the GPU that is not C-contiguous: copy it "
                "first"
            )
        expected *= size
