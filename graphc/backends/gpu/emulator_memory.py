"""The memory of one launch in the emulator: shared memory, the threads' frames, and shadows.

Imports: emulator_context, emulator_copies, emulator_rewrite, emulator_shadow, emulator_warp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphc.backends.gpu.emulator_context import CONTEXT, context_word
from graphc.backends.gpu.emulator_copies import COPIES_BYTES
from graphc.backends.gpu.emulator_rewrite import Row
from graphc.backends.gpu.emulator_shadow import FIRST_STAMP, GLOBAL_SHADOW_BYTES, SHADOW_BYTES
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

    def unordered(self) -> Shape:
        """The shape of launches whose accesses are not recorded."""
        return replace(self, granules={})

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

    def context(
        self, functions: Sequence[int], rows: Sequence[Row], **words: int
    ) -> ctypes.Array[ctypes.c_int64]:
        """The context of a launch, with these words as they are given."""
        shape = self.shape
        shadows = self._shadows() if "global" in shape.granules else [0] * len(self.buffers)
        made = {
            "threads": shape.threads,
            "stamp": FIRST_STAMP,
            "parameters": self._parameters(shadows),
            "functions": self._words(functions),
        }
        if shape.frame:
            made.update(self._of_threads())
            made["rows"] = self._rows(rows, made["shared"], made["shared_shadow"], shadows)
        made.update(words)
        context = (ctypes.c_int64 * len(CONTEXT))()
        for word, value in made.items():
            context[context_word(word)] = value
        return context

    def _of_threads(self) -> dict[str, int]:
        """The words of kernels whose threads wait for each other."""
        shape = self.shape
        granule = shape.granules.get("shared", 0)
        shadow = (shape.shared_bytes // granule + 1) * SHADOW_BYTES if granule else 0
        return {
            "shared": self._bytes(shape.shared_bytes),
            "shared_bytes": shape.shared_bytes,
            "shared_shadow": self._bytes(shadow) if granule else 0,
            "shared_granule": max(granule, 1).bit_length() - 1,
            "nowhere": self._bytes(_ALIGN),
            "thread_function": shape.thread,
            "pool": self._bytes(shape.frame * shape.threads),
            "stride": shape.frame,
            "states": self._bytes(8 * shape.threads),
            "exchange": self._bytes(2 * SLOT_BYTES * shape.threads),
            "copying": int(shape.copies),
            "copies": self._bytes(COPIES_BYTES * shape.threads if shape.copies else 0),
        }

    def _rows(
        self, rows: Sequence[Row], shared: int, shared_shadow: int, shadows: Sequence[int]
    ) -> int:
        """The table of what accesses may touch."""
        words: list[int] = []
        for row in rows:
            root, granule = row.root, self.shape.granules.get(row.root.space, 1)
            if root.space == "shared":
                start, size = shared + root.number, root.bytes
                shadow = shared_shadow, shared
            else:
                start, size = self.buffers[root.number]
                shadow = shadows[root.number], start - start % granule
            words += (
                start,
                max(size - row.bytes + 1, 0),
                row.align - 1,
                row.bytes // granule if row.ordered and root.space in self.shape.granules else 0,
                *shadow,
                granule.bit_length() - 1,
                int(root.space == "shared"),
            )
        return self._words(words)

    def _parameters(self, shadows: Sequence[int]) -> int:
        """The table of parameters."""
        rows = [(*buffer, shadow) for buffer, shadow in zip(self.buffers, shadows, strict=True)]
        rows += [(size, 0, 0) for size in self.sizes]
        return self._words([word for row in rows for word in row])

    def _words(self, words: Sequence[int]) -> int:
        """The address of a table."""
        table = (ctypes.c_int64 * (len(words) + 1))(*words)
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
