"""Counters of what compiling and running has cost this process: `gx.stats()`.

Imports: forks (the LLVM back end's counters are read only if it has been loaded).
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

from graphc.forks import new_lock


@dataclass
class Statistics:
    """Counts since the process started.

    programs       (fetches, feeds) combinations and functions built
    plans          programs compiled: one per rank signature and broadcast outcome
    plans_loaded   programs whose plan came from the cache on disk
    plan_hits      bindings of new sizes that found a compiled plan
    bytes_planned  scratch memory of all plans at the sizes they were first bound to
    idle_bytes     scratch memory that is kept for the next runs, in arenas of a MiB and more
    kernels, kernel_hits, compile_seconds   the machine-code compiler's own counts; the kernels of
                   GPUs are among the first two
    kernels_loaded  kernels whose code came from the cache on disk
    kept_steps      steps that made values which stay between runs
    modules         modules that LLVM compiled: kernels, and the run time's own
    """

    programs: int = 0
    plans: int = 0
    plans_loaded: int = 0
    plan_hits: int = 0
    bytes_planned: int = 0
    idle_bytes: int = 0
    kernels: int = 0
    kernel_hits: int = 0
    compile_seconds: float = 0.0
    kernels_loaded: int = 0
    kept_steps: int = 0
    modules: int = 0


counters = Statistics()
_lock = new_lock()


def count(name: str, amount: int = 1) -> None:
    """Add to a counter; safe from any thread."""
    with _lock:
        setattr(counters, name, getattr(counters, name) + amount)


def stats() -> Statistics:
    """A copy of the counters now."""
    with _lock:
        result = Statistics(**asdict(counters))
    contexts = sys.modules.get("graphc.backends.llvm.contexts")
    if contexts is not None:
        result.idle_bytes = contexts.idle_bytes()
    jit = sys.modules.get("graphc.backends.llvm.jit")
    if jit is not None:
        result.kernels += jit.stats.kernels
        result.kernel_hits += jit.stats.cache_hits
        result.kernels_loaded = jit.stats.kernels_loaded
        result.modules = jit.stats.modules
        result.compile_seconds = jit.stats.emit_seconds + jit.stats.llvm_seconds
    return result
