"""The memory of one launch in the emulator: shared memory, the threads' frames, and shadows.

Imports: emulator_context, emulator_copies, emulator_shadow, emulator_warp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphc.backends.gpu.emulator_context import CONTEXT, PARAMETER, context_word
from graphc.backends.gpu.emulator_copies import COPIES_BYTES
from graphc.backends.gpu.emulator_shadow import GLOBAL_SHADOW_BYTES, SHADOW_BYTES
from graphc.backends.gpu.emulator_warp import SLOT_BYTES

_ALIGN = 128


@dataclass(frozen=True)
class Shape:
    """What memory a kernel's launches need.

    granules  bytes that share a shadow, by space
    copies    whether it copies asynchronously
    frame     bytes of a thread's frame; 0 where threads never wait
    thread    the address of the function that begins a thread
    """

    threads: int
    shared_bytes: int
    parameters: int
    granules: Mapping[str, int]
    copies: bool
    frame: int = 0
    thread: int = 0

    def of_threads(self, thread: int, frame: int) -> Shape:
        """The shape with threads that begin at an address and have frames of so many bytes."""
        return replace(self, frame=-(-frame // _ALIGN) * _ALIGN, thread=thread)


@dataclass
class LaunchMemory:
    """What one launch uses; it is there for as long as this object."""

    shape: Shape
    buffers: Sequence[tuple[int, int]]
    sizes: Sequence[int]
    _held: list[object] = field(default_factory=list)

    def context(self, functions: Sequence[int], **words: int) -> ctypes.Array[ctypes.c_int64]:
        """The context of a launch, with these words as they are given."""
        shape = self.shape
        table = (ctypes.c_int64 * len(functions))(*functions)
        self._held.append(table)
        made = {"threads": shape.threads, "epoch": 1, "parameters": self._table()}
        made["functions"] = ctypes.addressof(table)
        if shape.frame:
            shadow = -(-shape.shared_bytes // shape.granules.get("shared", 1)) * SHADOW_BYTES
            made.update(
                shared=self._bytes(shape.shared_bytes),
                shared_shadow=self._bytes(shadow) if "shared" in shape.granules else 0,
                pool=self._bytes(shape.frame * shape.threads),
                stride=shape.frame,
                states=self._bytes(8 * shape.threads),
                exchange=self._bytes(2 * SLOT_BYTES * shape.threads),
                copying=int(shape.copies),
                thread_function=shape.thread,
                shared_bytes=shape.shared_bytes,
                shared_granule=shape.granules.get("shared", 1).bit_length() - 1,
                copies=self._bytes(COPIES_BYTES * shape.threads if shape.copies else 0),
            )
        made.update(words)
        context = (ctypes.c_int64 * len(CONTEXT))()
        for word, value in made.items():
            context[context_word(word)] = value
        return context

    def _table(self) -> int:
        """The table of parameters."""
        shadows = self._shadows() if "global" in self.shape.granules else [0] * len(self.buffers)
        rows = [(*buffer, shadow) for buffer, shadow in zip(self.buffers, shadows, strict=True)]
        rows += [(size, 0, 0) for size in self.sizes]
        table = (ctypes.c_int64 * (len(PARAMETER) * len(rows) + 1))(*(w for r in rows for w in r))
        self._held.append(table)
        return ctypes.addressof(table)

    def _shadows(self) -> list[int]:
        """Where the shadow of each buffer begins; buffers that overlap share one."""
        granule = self.shape.granules["global"]
        found: dict[int, int] = {}
        order = sorted(range(len(self.buffers)), key=lambda i: self.buffers[i])
        while order:
            first, end = self.buffers[order[0]][0], 0
            together: list[int] = []
            while order and (not together or self.buffers[order[0]][0] < end):
                together.append(order.pop(0))
                end = max(end, sum(self.buffers[together[-1]]))
            first -= first % granule
            shadow = self._bytes(((end - first) // granule + 1) * GLOBAL_SHADOW_BYTES)
            for i in together:
                number = (self.buffers[i][0] - first) // granule
                found[i] = shadow + number * GLOBAL_SHADOW_BYTES
        return [found[i] for i in range(len(self.buffers))]

    def _bytes(self, count: int) -> int:
        """The address of so many zero bytes, a multiple of 128."""
        held = (ctypes.c_char * (count + _ALIGN))()
        self._held.append(held)
        return -(-ctypes.addressof(held) // _ALIGN) * _ALIGN
