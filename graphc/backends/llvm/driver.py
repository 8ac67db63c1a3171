"""The native driver, as LLVM text: one call runs a whole plan.

Plan table, 64-bit words.  Header, 24 words:

    0 steps   1 commit step, -1 without checks   2 fault records   3 words of fault records
    4 whether threads help   5 args   6 patches   7 number of patches   8 borders
    9 where an ndarray object keeps its data pointer; -1 when borders are data pointers themselves
    10 the Python thread to ask for signals, or null   11 nanoseconds allowed, 0: any number
    12 stop   13 when to look at the clock next   14 the first step that writes state, -1 for a run
    too short to be stopped   15 when the time is up
    16 nanoseconds of the best run with the team   17 of the usual one   18 of one without
    19 runs to do without, -1 before the first one with it again   20 how many the next time

A patch (argument position, border position) is a pointer that lives for one run only: it is written
before the first step and cleared after the last.  Then one row of 8 words per step:

    0 function   1 args   2 sizes   3 wait_from   4 blocks   5 chunk   6 claim   7 blocks done

Control block of the team, one cache line per word that is written often:

    0 signal (i32, futex)   64 sleepers (i32)   128 door
    192 plan   200 places left   208 processor of the run's own thread (i32)
    256 busy   320 generation   384 spins before sleeping   392 workers   400 processors
    408 workers that a run may call at most   448 runs now that could use the team
    512 + 64 * worker: the plan the worker is inside, the control block

`door` is generation << 1 | open.  A worker enters by publishing the plan in its own word and
reading the door again: unchanged and open means that whoever frees the plan will see the worker.
Claims are generation << 32 | next block, so a worker that comes late cannot take a block of another
run.  A run that finds the team busy is driven by its own thread, without claims.

A run ends before its last step if `stop` says so: see `driver_stop`.

Two abbreviations keep the text short, since no pass inlines: `WORD ptr p, i64 i` loads word i and
`ROW ptr p, i64 i` is the address of step i's row.  Imports: driver_plan, driver_sleep,
driver_stop, driver_team.
"""

from __future__ import annotations

import re

from graphc.backends.llvm.driver_plan import ALONE_RUN, PLAN
from graphc.backends.llvm.driver_sleep import FUTEX_SLEEP, NO_SPREAD, POLLING_SLEEP, SPREAD
from graphc.backends.llvm.driver_stop import stop_text
from graphc.backends.llvm.driver_team import (
    HOLD_SECONDS,
    LEAST_HOLD,
    LONGEST_HOLD,
    STACK_BYTES,
    STALL_SECONDS,
    TEAM,
)

HEADER_WORDS = 24
STEP_WORDS = 8
CONTROL_BYTES = 512
WORKER_BYTES = 64

_PAUSE = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}
_PAUSE["arm64"] = _PAUSE["aarch64"]

FUTEX_CALL = {"x86_64": 202, "aarch64": 98}
"""The Linux system call number of futex."""


def driver_text(
    architecture: str,
    threads: bool,
    futex: bool,
    affinity: bool,
    stoppable: bool,
    darwin: bool = False,
) -> str:
    """The module for a system with or without pthreads, futex sleep, affinity and signals."""
    declare_pause, pause = _PAUSE.get(architecture, ("", ""))
    if not threads:
        return expand(
            PLAN.replace("{declare_pause}", "") + stop_text(stoppable, darwin) + ALONE_RUN
        )
    declare_sleep = "declare i64 @syscall(i64, ...)" if futex else "declare i32 @usleep(i32)"
    sleep = FUTEX_SLEEP if futex else POLLING_SLEEP
    text = PLAN + stop_text(stoppable, darwin) + TEAM + sleep + (SPREAD if affinity else NO_SPREAD)
    for name, replacement in {
        "{declare_pause}": declare_pause,
        "{declare_sleep}": declare_sleep,
        "{pause}": pause,
        "{futex}": str(FUTEX_CALL.get(architecture, 0)),
        "{stall_ns}": str(int(STALL_SECONDS * 1e9)),
        "{longest_hold}": str(LONGEST_HOLD),
        "{least_hold}": str(LEAST_HOLD),
        "{stack_bytes}": str(STACK_BYTES),
        "{hold_ns}": str(int(HOLD_SECONDS * 1e9)),
    }.items():
        text = text.replace(name, replacement)
    return expand(text)


def expand(text: str) -> str:
    """Write out the abbreviations WORD and ROW."""
    text = re.sub(
        r"  (%\w+) = WORD (ptr %\w+, i64 [%\w]+)",
        r"  \1.at = getelementptr i64, \2\n  \1 = load i64, ptr \1.at, align 8",
        text,
    )
    return re.sub(
        r"  (%\w+) = ROW (ptr %\w+), i64 (%\w+)",
        rf"  \1.o = shl i64 \3, 6\n  \1.b = add i64 \1.o, {8 * HEADER_WORDS}\n"
        r"  \1 = getelementptr i8, \2, i64 \1.b",
        text,
    )
