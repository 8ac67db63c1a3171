"""What the executor needs of a GPU: memory, copies, kernels, and work recorded to be done again.

A device does what it is asked in order, some time after it is asked; `synchronize` waits for it.
Addresses are numbers that its kernels take for pointers.  All methods but `active` are called
inside `with device.active():`, from any thread.  Imports: kernel_text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from graphc.backends.gpu.kernel_text import GpuKernel

Array = np.ndarray[Any, Any]

Stretch = tuple[int, int]
"""An address and how many bytes may be used from there on."""


class Device(Protocol):
    """One GPU, or what stands for one.

    name         what sessions call it: 'gpu:0'
    description  for people
    capability   the generation of its instructions, such as (9, 0)
    dlpack       its device type and number as DLPack counts them
    failed       why nothing works on it any more, or ''
    stream       what others know the queue of its work by
    """

    name: str
    description: str
    capability: tuple[int, int]
    dlpack: tuple[int, int]
    failed: str
    stream: int | None

    def active(self) -> AbstractContextManager[Any]:
        """Inside, this thread may use the device; may be entered again."""
        ...

    # ---- memory

    def memory_info(self) -> tuple[int, int]:
        """Bytes free and bytes in all."""
        ...

    def allocate(self, size: int) -> int:
        """The address of fresh memory, a multiple of 256; raises OutOfMemoryError."""
        ...

    def free(self, address: int) -> None:
        """Give memory back; nothing that was asked for before may need it."""
        ...

    def staging(self, size: int) -> Array:
        """Bytes of host memory that copies to and from the device are fast with."""
        ...

    # ---- work, done in order; arrays must stay as they are until it is done

    def copy_in(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device."""
        ...

    def copy_out(self, array: Array, address: int) -> None:
        """Copy from the device into a contiguous array."""
        ...

    def copy_within(self, to: int, source: int, size: int) -> None:
        """Copy on the device."""
        ...

    def load(self, kernels: Sequence[GpuKernel]) -> list[Any]:
        """What `launch` knows each kernel by."""
        ...

    def launch(
        self, function: Any, blocks: int, buffers: Sequence[Stretch], sizes: Sequence[int]
    ) -> None:
        """Run a kernel on so many blocks, at least one."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was asked for; raises DeviceError if a kernel faulted."""
        ...

    def mark(self) -> Any:
        """The moment at which all is done that was asked for so far."""
        ...

    def seconds(self, begun: Any, ended: Any) -> float:
        """The time between two moments that are over."""
        ...

    def capture(self, record: Callable[[], None]) -> Callable[[], None]:
        """Record what `record` asks for without doing it; calling the result does it at once.

        No signal handler runs between the parts of what is recorded.
        """
        ...

    def wait_for(self, stream: int | None) -> None:
        """Let work wait for another library's stream (None: for all it was asked for)."""
        ...
