"""What code generation must know about a processor: vector width and register count.

One row per family; `target_for` picks the row from CPU feature names.  Imports: nothing of graphc;
llvmlite only when the host is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Target:
    """A processor family: vector registers of `vector_bytes`, `registers` of them.

    `rows[v - 1]` is the height of the tallest register tile `v` vectors wide that does not spill;
    `rows_in_place` are those of tiles whose rows lie anywhere, each with an address in a register.
    Of rows that lie a multiple of `way_bytes` apart the L1 cache holds `ways`.  `multiplies`
    is how many multiply-adds of float32 a core does in a cycle: what packing is weighed against.
    Of packed columns, `packed_bytes` stay in the L2 cache while rows are read in place; `unroll`
    steps of k are then between two tests of the inner loop.
    """

    name: str
    vector_bytes: int
    registers: int
    rows: tuple[int, ...]
    rows_in_place: tuple[int, ...]
    ways: int = 8
    way_bytes: int = 4096
    multiplies: int = 16
    packed_bytes: int = 256 * 1024
    unroll: int = 4

    def lanes(self, itemsize: int) -> int:
        return self.vector_bytes // itemsize


AVX512 = Target("avx512", 64, 32, (16, 13, 8, 6), (11, 13, 8, 6), 8, 4096, 32, 512 * 1024)
AVX2 = Target("avx2", 32, 16, (8, 6, 4), (8, 6, 4))
# of several steps LLVM makes loads that move their addresses, and keeps sums in memory for them
NEON = Target("neon", 16, 32, (16, 12, 8, 6), (16, 12, 8, 6), 8, 16384, unroll=1)
SSE2 = Target("sse2", 16, 16, (8, 6, 4), (8, 6, 4))

_BY_FEATURES = (
    (frozenset({"avx512f", "avx512vl", "avx512dq", "avx512bw"}), AVX512),
    (frozenset({"avx2", "fma"}), AVX2),
    (frozenset({"neon"}), NEON),
)


def target_for(features: str | Iterable[str] | Mapping[str, bool]) -> Target:
    """The row for a set of CPU features: '+avx2,-avx512f' as LLVM prints it, names, or a table."""
    if isinstance(features, str):
        parts = [part.strip() for part in features.split(",")]
        present = frozenset(part.lstrip("+") for part in parts if part and part[0] != "-")
    elif isinstance(features, Mapping):
        present = frozenset(name for name, on in features.items() if on)
    else:
        present = frozenset(features)
    for needed, target in _BY_FEATURES:
        if needed <= present:
            return target
    return SSE2


@cache
def host_target() -> Target:
    """The row for the processor this process runs on."""
    binding = importlib.import_module("llvmlite.binding")
    return target_for(dict(binding.get_host_cpu_features()))
