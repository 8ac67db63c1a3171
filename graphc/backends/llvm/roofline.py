"""The most one core of this machine can do, measured: multiply-adds from registers, and copies of
memory that no cache holds.  Imports: jit, memory, codegen.targets, trace.
"""

from __future__ import annotations

import ctypes
import time
from functools import cache

import numpy as np

from graphc.backends.codegen.targets import host_target
from graphc.backends.llvm.jit import default_jit
from graphc.trace import Roofline

CHAINS = 12
"""Independent multiply-adds: more than any processor has under way at once, in its registers."""

STEPS = 1 << 20
"""Rounds of all chains in one measurement: a few milliseconds."""

COPIED = 1 << 26
"""Bytes copied: more than caches hold."""

TRIES = 5

_LOOP = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


@cache
def measure_roofline() -> Roofline:
    """What one core can do at best, in float32 operations and in bytes a second.

    Takes a quarter of a second the first time; later calls of a process give the same.
    """
    return Roofline(_multiply_adds(), _bandwidth())


def _multiply_adds() -> float:
    lanes = host_target().lanes(4)
    address = default_jit().compile_text(_text(lanes), ["graphc_multiply_adds"])
    run = _LOOP(address["graphc_multiply_adds"])
    data = np.ones(lanes * CHAINS, np.float32)
    best = min(_seconds(lambda: run(data.ctypes.data, STEPS)) for _ in range(TRIES))
    return 2.0 * lanes * CHAINS * STEPS / best


def _bandwidth() -> float:
    source = np.ones(COPIED // 8)
    target = np.zeros(COPIED // 8)
    best = min(_seconds(lambda: np.copyto(target, source)) for _ in range(TRIES))
    return 2.0 * COPIED / best


def _seconds(run: object) -> float:
    assert callable(run)
    started = time.perf_counter()
    run()
    return max(time.perf_counter() - started, 1e-9)


def _text(lanes: int) -> str:
    """A loop of independent chains x = x * y + y."""
    t = f"<{lanes} x float>"
    suffix = f"v{lanes}f32"
    size = 4 * lanes
    loads = "\n".join(
        f"  %p{i} = getelementptr i8, ptr %data, i64 {i * size}\n"
        f"  %s{i} = load {t}, ptr %p{i}, align 4"
        for i in range(CHAINS)
    )
    phis = "\n".join(
        f"  %x{i} = phi {t} [ %s{i}, %entry ], [ %n{i}, %loop ]" for i in range(CHAINS)
    )
    steps = "\n".join(
        f"  %n{i} = call {t} @llvm.fma.{suffix}({t} %x{i}, {t} %s0, {t} %s0)" for i in range(CHAINS)
    )
    stores = "\n".join(f"  store {t} %n{i}, ptr %p{i}, align 4" for i in range(CHAINS))
    return f"""declare {t} @llvm.fma.{suffix}({t}, {t}, {t})

define void @graphc_multiply_adds(ptr %data, i64 %n) nounwind {{
entry:
{loads}
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i1, %loop ]
{phis}
{steps}
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %n
  br i1 %more, label %loop, label %done
done:
{stores}
  ret void
}}
"""
