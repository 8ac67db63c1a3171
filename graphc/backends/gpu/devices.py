"""Devices by the names that `device_names` gives them; each is opened once per process.

Imports: device, memory, cuda_device, emulated_device, forks, errors.
"""

from __future__ import annotations

from graphc.backends.gpu.device import Device
from graphc.backends.gpu.memory import DeviceMemory
from graphc.errors import DeviceError
from graphc.forks import new_rlock

_opened: dict[str, DeviceMemory] = {}
_lock = new_rlock()


def open_device(name: str) -> DeviceMemory:
    """The memory of a device, and by it the device; raises DeviceError saying what is missing."""
    with _lock:
        found = _opened.get(name)
        if found is None:
            found = _opened[name] = DeviceMemory(_new_device(name))
    if found.device.failed:
        raise DeviceError(found.device.failed)
    return found


def _new_device(name: str) -> Device:
    if name == "emulated-gpu":
        from graphc.backends.gpu.emulated_device import EmulatedDevice

        return EmulatedDevice()
    from graphc.backends.gpu.cuda_device import CudaDevice

    return CudaDevice(int(name.partition(":")[2]))
