"""What emulated kernels call, as LLVM text: the threads of a CTA in turn, and how faults are kept.

Threads are coroutines.  The warps of a CTA run one after another, each lane until it waits for its
warp, for its CTA or has ended; what waits is told by a word per thread:

    -2 not begun   -1 ended   0 may go on   2 * site at a meeting of its warp
    2 * site + 1 at a barrier

Once all lanes of a warp are at one meeting they go on, and once all threads are at one barrier they
do; anything else is a fault.

Imports: emulator_context, emulator_copies, emulator_shadow, emulator_warp.
"""

from __future__ import annotations

from graphc.backends.gpu.emulator_context import expand
from graphc.backends.gpu.emulator_copies import COPIES, COPIES_BYTES, COPY
from graphc.backends.gpu.emulator_shadow import GLOBAL_SHADOW_BYTES, SHADOW, SHADOW_BYTES
from graphc.backends.gpu.emulator_warp import SLOT_BYTES, warp_text

RECORD = """
; the first fault of a launch is kept, with the thread that runs
define void @emu.record(ptr %emu, i64 %fault, i64 %site, i64 %value) noinline {
  %before = WORD i64 fault
  %none = icmp eq i64 %before, 0
  br i1 %none, label %keep, label %done
keep:
  %thread = WORD i64 running
  %cta = WORD i64 running_cta
  PUT fault, %fault
  PUT site, %site
  PUT cta, %cta
  PUT thread, %thread
  PUT value, %value
  br label %done
done:
  ret void
}
"""

SCHEDULER = """
declare void @llvm.coro.resume(ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

; the first of `count` threads from `first` on that does not wait where the first one does, or -1
define internal i64 @emu.odd(ptr %states, i64 %first, i64 %count) {
entry:
  %end = add i64 %first, %count
  %firstat = getelementptr i64, ptr %states, i64 %first
  %wanted = load i64, ptr %firstat, align 8
  br label %loop
loop:
  %t = phi i64 [ %first, %entry ], [ %next, %same ]
  %at = getelementptr i64, ptr %states, i64 %t
  %state = load i64, ptr %at, align 8
  %equal = icmp eq i64 %state, %wanted
  br i1 %equal, label %same, label %found
same:
  %next = add i64 %t, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %none
found:
  ret i64 %t
none:
  ret i64 -1
}

; the first that waits for its warp (kind 0) or its CTA (kind 1), or -1
define internal i64 @emu.waiting(ptr %states, i64 %first, i64 %count, i64 %kind) {
entry:
  %end = add i64 %first, %count
  br label %loop
loop:
  %t = phi i64 [ %first, %entry ], [ %next, %other ]
  %at = getelementptr i64, ptr %states, i64 %t
  %state = load i64, ptr %at, align 8
  %waits = icmp sgt i64 %state, 0
  %low = and i64 %state, 1
  %is = icmp eq i64 %low, %kind
  %both = and i1 %waits, %is
  br i1 %both, label %found, label %other
other:
  %next = add i64 %t, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %none
found:
  ret i64 %t
none:
  ret i64 -1
}

define internal void @emu.set(ptr %states, i64 %first, i64 %count, i64 %state) {
entry:
  %end = add i64 %first, %count
  br label %loop
loop:
  %t = phi i64 [ %first, %entry ], [ %next, %loop ]
  %at = getelementptr i64, ptr %states, i64 %t
  store i64 %state, ptr %at, align 8
  %next = add i64 %t, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}

define internal void @emu.diverged(ptr %emu, i64 %fault, i64 %thread, i64 %other) {
  %states = WORD ptr states
  %at = getelementptr i64, ptr %states, i64 %thread
  %state = load i64, ptr %at, align 8
  %site = lshr i64 %state, 1
  PUT running, %thread
  call void @emu.record(ptr %emu, i64 %fault, i64 %site, i64 %other)
  ret void
}

; run each lane of the warp that may go on, until it waits or ends; whether all is well
define internal i1 @emu.lanes(ptr %emu, i64 %first) {
entry:
  %states = WORD ptr states
  %pool = WORD ptr pool
  %stride = WORD i64 stride
  %threads = WORD i64 threads
  %reversed = WORD i64 reversed
  %backwards = icmp ne i64 %reversed, 0
  %stamp = WORD i64 stamp
  %exchange = WORD ptr exchange
  %side = and i64 %stamp, 4096
  %odd = icmp ne i64 %side, 0
  %half = mul i64 %threads, SLOT_BYTES
  %here = select i1 %odd, i64 %half, i64 0
  %there = sub i64 %half, %here
  %slots = getelementptr i8, ptr %exchange, i64 %here
  %others = getelementptr i8, ptr %exchange, i64 %there
  %firsto = mul i64 %first, SLOT_BYTES
  %met = getelementptr i8, ptr %others, i64 %firsto
  %metword = ptrtoint ptr %met to i64
  PUT met, %metword
  br label %loop
loop:
  %l = phi i64 [ 0, %entry ], [ %next, %skipped ]
  %mirrored = sub i64 31, %l
  %lane = select i1 %backwards, i64 %mirrored, i64 %l
  %t = add i64 %first, %lane
  %at = getelementptr i64, ptr %states, i64 %t
  %state = load i64, ptr %at, align 8
  %ended = icmp eq i64 %state, -1
  br i1 %ended, label %skipped, label %run
run:
  %shifted = shl i64 %t, 2
  %me = or i64 %stamp, %shifted
  %so = mul i64 %t, SLOT_BYTES
  %slot = getelementptr i8, ptr %slots, i64 %so
  %slotword = ptrtoint ptr %slot to i64
  PUT running, %t
  PUT me, %me
  PUT slot, %slotword
  %unbegun = icmp eq i64 %state, -2
  br i1 %unbegun, label %begin, label %resume
begin:
  %function = WORD ptr thread_function
  %made = call ptr %function(ptr %emu, i64 %t)
  br label %ran
resume:
  %o = mul i64 %t, %stride
  %frame = getelementptr i8, ptr %pool, i64 %o
  call void @llvm.coro.resume(ptr %frame)
  br label %ran
ran:
  %waits = WORD i64 waits
  store i64 %waits, ptr %at, align 8
  br label %skipped
skipped:
  %next = add i64 %l, 1
  %fault = WORD i64 fault
  %well = icmp eq i64 %fault, 0
  %more = icmp slt i64 %next, 32
  %goon = and i1 %well, %more
  br i1 %goon, label %loop, label %done
done:
  ret i1 %well
}

; run a warp until all its lanes wait at barriers or have ended
define internal i1 @emu.warp(ptr %emu, i64 %first) {
entry:
  %states = WORD ptr states
  %firstat = getelementptr i64, ptr %states, i64 %first
  br label %pass
pass:
  %well = call i1 @emu.lanes(ptr %emu, i64 %first)
  br i1 %well, label %look, label %done
look:
  %odd = call i64 @emu.odd(ptr %states, i64 %first, i64 32)
  %waiting = call i64 @emu.waiting(ptr %states, i64 %first, i64 32, i64 0)
  %meets = icmp sge i64 %waiting, 0
  br i1 %meets, label %meet, label %done
meet:
  %all = icmp slt i64 %odd, 0
  br i1 %all, label %met, label %diverged
met:
  %stamp = WORD i64 stamp
  %later = add i64 %stamp, 4096
  PUT stamp, %later
  call void @emu.set(ptr %states, i64 %first, i64 32, i64 0)
  br label %pass
diverged:
  %same = icmp eq i64 %odd, %waiting
  %other = select i1 %same, i64 %first, i64 %odd
  call void @emu.diverged(ptr %emu, i64 FAULT_warp, i64 %waiting, i64 %other)
  br label %done
done:
  %result = phi i1 [ %well, %pass ], [ true, %look ], [ false, %diverged ]
  ret i1 %result
}

; the stamp after a barrier
define internal i64 @emu.epoch(ptr %emu) alwaysinline {
  %stamp = WORD i64 stamp
  %epoch = lshr i64 %stamp, 34
  %next = add i64 %epoch, 1
  %first = shl i64 %next, 34
  ret i64 %first
}

; run a CTA to its end
define internal i1 @emu.cta(ptr %emu) {
entry:
  %states = WORD ptr states
  %threads = WORD i64 threads
  %reversed = WORD i64 reversed
  %backwards = icmp ne i64 %reversed, 0
  %lastwarp = sub i64 %threads, 32
  call void @emu.set(ptr %states, i64 0, i64 %threads, i64 -2)
  br label %round
round:
  %stamp = call i64 @emu.epoch(ptr %emu)
  PUT stamp, %stamp
  br label %warps
warps:
  %w = phi i64 [ 0, %round ], [ %wnext, %wdone ]
  %mirrored = sub i64 %lastwarp, %w
  %first = select i1 %backwards, i64 %mirrored, i64 %w
  %well = call i1 @emu.warp(ptr %emu, i64 %first)
  br i1 %well, label %wdone, label %failed
wdone:
  %wnext = add i64 %w, 32
  %more = icmp slt i64 %wnext, %threads
  br i1 %more, label %warps, label %look
look:
  %odd = call i64 @emu.odd(ptr %states, i64 0, i64 %threads)
  %all = icmp slt i64 %odd, 0
  br i1 %all, label %together, label %diverged
diverged:
  %waiting = call i64 @emu.waiting(ptr %states, i64 0, i64 %threads, i64 1)
  %same = icmp eq i64 %odd, %waiting
  %other = select i1 %same, i64 0, i64 %odd
  call void @emu.diverged(ptr %emu, i64 FAULT_barrier, i64 %waiting, i64 %other)
  br label %failed
together:
  %state = load i64, ptr %states, align 8
  %ended = icmp slt i64 %state, 0
  br i1 %ended, label %done, label %on
on:
  call void @emu.set(ptr %states, i64 0, i64 %threads, i64 0)
  br label %round
failed:
  ret i1 false
done:
  ret i1 true
}

define void @emu.grid(ptr %emu) nounwind {
entry:
  %blocks = WORD i64 blocks
  %reversed = WORD i64 reversed
  %backwards = icmp ne i64 %reversed, 0
  %shared = WORD ptr shared
  %bytes = WORD i64 shared_bytes
  %copying = WORD i64 copying
  %copies = icmp ne i64 %copying, 0
  %less = sub i64 %blocks, 1
  br label %ctas
ctas:
  %c = phi i64 [ 0, %entry ], [ %next, %run ]
  %more = icmp slt i64 %c, %blocks
  br i1 %more, label %body, label %done
body:
  %mirrored = sub i64 %less, %c
  %cta = select i1 %backwards, i64 %mirrored, i64 %c
  %first = call i64 @emu.epoch(ptr %emu)
  PUT first, %first
  PUT running_cta, %cta
  call void @llvm.memset.p0.i64(ptr align 16 %shared, i8 -1, i64 %bytes, i1 false)
  br i1 %copies, label %forget, label %run
forget:
  call void @emu.forget(ptr %emu)
  br label %run
run:
  %well = call i1 @emu.cta(ptr %emu)
  %next = add i64 %c, 1
  br i1 %well, label %ctas, label %done
done:
  ret void
}
"""


def runtime_text() -> str:
    """The module of the functions that all kernels share."""
    text = RECORD + SCHEDULER + SHADOW + COPY + warp_text()
    for name, value in {
        "GLOBAL_SHADOW_BYTES": GLOBAL_SHADOW_BYTES,
        "SHADOW_BYTES": SHADOW_BYTES,
        "COPIES_BYTES": COPIES_BYTES,
        "MOST_COPIES": COPIES,
        "SLOT_BYTES": SLOT_BYTES,
    }.items():
        text = text.replace(name, str(value))
    return expand(text)
