"""A traced run: the steps of a context one by one on one thread, each timed.

Signal handlers run on the main thread and may raise between any two steps.  So that no update is
left half done, a traced run of the main thread takes place on another.
Imports: base, driver, memory, tables, kernel_work, plan, trace.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Collection, Sequence

from graphc.backends.base import mark_committed
from graphc.backends.llvm.driver import HEADER_WORDS, STEP_WORDS
from graphc.backends.llvm.memory import Array, address_of
from graphc.backends.llvm.tables import Context, Layout, first_write
from graphc.dims import Dim
from graphc.kernel import sizes_of
from graphc.kernel_work import work
from graphc.plan import Plan, Step
from graphc.trace import Trace

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def run_traced(
    plan: Plan,
    layout: Layout,
    context: Context,
    arrays: Sequence[Array],
    trace: Trace,
    only: Collection[int] | None = None,
) -> bool:
    """Run the plan on arrays (inputs, state, outputs); whether a check failed before commit.

    only  the steps to run (None: all)

    Raises what a signal handler raises, at once if no state has been written, else at the end.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        return bool(_run(plan, layout, context, arrays, trace, stop, only))
    results: list[bool | BaseException | None] = []
    finished = threading.Lock()
    finished.acquire()

    def run() -> None:
        try:
            results.append(_run(plan, layout, context, arrays, trace, stop, only))
        except BaseException as error:
            results.append(error)
        finished.release()

    interrupt: BaseException | None = None
    threading.Thread(target=run, daemon=True).start()
    while not results:
        try:
            finished.acquire(timeout=1)
        except BaseException as error:
            interrupt = error
            stop.set()
    result = results[0]
    if interrupt is not None:
        if result is False:
            mark_committed(interrupt)
        raise interrupt
    if isinstance(result, BaseException):
        raise result
    return bool(result)


def _run(
    plan: Plan,
    layout: Layout,
    context: Context,
    arrays: Sequence[Array],
    trace: Trace,
    stop: threading.Event,
    only: Collection[int] | None,
) -> bool | None:
    """Whether a check failed; None if `stop` was set before state was written."""
    words = context.words
    places = layout.places
    patches = words[places.patches : places.faults].reshape(-1, 2)
    for argument, border in patches.tolist():
        words[places.args + argument] = address_of(arrays[border])
    context.faults[:] = 0
    rows = words[HEADER_WORDS : HEADER_WORDS + STEP_WORDS * len(plan.steps)]
    table = rows.reshape(-1, STEP_WORDS)[:, :5].tolist()
    failed: bool | None = False
    clock: list[tuple[int, float, float]] = []  # which step, when it began and ended
    until = first_write(plan)
    for i, (function, args, sizes, _, blocks) in enumerate(table):
        if plan.checks and i == plan.commit and context.faults[:, 0].any():
            failed = True
            break
        if i <= until and stop.is_set():
            failed = None
            break
        if only is not None and i not in only:
            continue
        kernel = _KERNEL(function)
        begun = time.perf_counter()
        kernel(args, sizes, 0, blocks)
        clock.append((i, begun, time.perf_counter()))
    # only now: between steps this would take the caches from them
    for i, begun, ended in clock:
        step, row = plan.steps[i], table[i]
        blocks, amount = row[4], _work(plan, step, words, row[2] - words.ctypes.data)
        start, name = begun - clock[0][1], f"k{step.kernel}"
        trace.add(step.label, start, ended - begun, blocks, step.locs, amount, name)
    for argument, _ in patches.tolist():
        words[places.args + argument] = 0
    if failed is not False:
        return failed
    return bool(plan.checks and context.faults[:, 0].any())


def _work(plan: Plan, step: Step, words: Array, at: int) -> tuple[int, int]:
    """Operations and bytes of a step, whose sizes lie `at` bytes into the table."""
    kernel = plan.kernels[step.kernel]
    numbers = words[at // 8 : at // 8 + len(step.sizes)].tolist()
    sizes: dict[Dim, int] = dict(zip(sizes_of(kernel), numbers, strict=True))
    found = work(kernel, sizes)
    return found.flops, found.bytes
