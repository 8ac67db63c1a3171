"""What emulated kernels call, as LLVM text: the threads of a CTA in turn, and how faults are kept.

Threads are coroutines.  The warps of a CTA run one after another, each lane until it waits for its
warp, for its CTA or has ended; what waits is told by a word per thread:

    -2 not begun   -1 ended   0 may go on   2 * site at a meeting of its warp
    2 * site + 1 at a barrier

Once all lanes of a warp are at one meeting they go on, and once all threads are at one barrier they
do; anything else is a fault.

Imports: emulator_context, emulator_copies, emulator_shadow.
"""

from __future__ import annotations

from graphc.backends.gpu.emulator_context import expand
from graphc.backends.gpu.emulator_copies import COPIES, COPIES_BYTES, COPY
from graphc.backends.gpu.emulator_shadow import SHADOW

RECORD = """
define void @emu.record(
    ptr %emu, i64 %fault, i64 %site, i64 %cta, i64 %thread, i64 %value) noinline {
  PUT fault, %fault
  PUT site, %site
  PUT cta, %cta
  PUT thread, %thread
  PUT value, %value
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

define internal void @emu.diverged(ptr %emu, i64 %fault, i64 %thread, i64 %other, i64 %cta) {
  %states = WORD ptr states
  %at = getelementptr i64, ptr %states, i64 %thread
  %state = load i64, ptr %at, align 8
  %site = lshr i64 %state, 1
  call void @emu.record(ptr %emu, i64 %fault, i64 %site, i64 %cta, i64 %thread, i64 %other)
  ret void
}

; run each lane of the warp that may go on, until it waits or ends; whether all is well
define internal i1 @emu.lanes(ptr %emu, i64 %first, i64 %cta) {
entry:
  %states = WORD ptr states
  %pool = WORD ptr pool
  %stride = WORD i64 stride
  %reversed = WORD i64 reversed
  %backwards = icmp ne i64 %reversed, 0
  br label %loop
loop:
  %l = phi i64 [ 0, %entry ], [ %next, %ran ]
  %mirrored = sub i64 31, %l
  %lane = select i1 %backwards, i64 %mirrored, i64 %l
  %t = add i64 %first, %lane
  %at = getelementptr i64, ptr %states, i64 %t
  %state = load i64, ptr %at, align 8
  switch i64 %state, label %ran [
    i64 0, label %resume
    i64 -2, label %begin
  ]
begin:
  %function = WORD ptr thread_function
  %made = call ptr %function(ptr %emu, i64 %t, i64 %cta)
  br label %ran
resume:
  %o = mul i64 %t, %stride
  %frame = getelementptr i8, ptr %pool, i64 %o
  call void @llvm.coro.resume(ptr %frame)
  br label %ran
ran:
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
define internal i1 @emu.warp(ptr %emu, i64 %first, i64 %cta) {
entry:
  %states = WORD ptr states
  %firstat = getelementptr i64, ptr %states, i64 %first
  br label %pass
pass:
  %well = call i1 @emu.lanes(ptr %emu, i64 %first, i64 %cta)
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
  %phase = WORD i64 phase
  %phase1 = add i64 %phase, 1
  PUT phase, %phase1
  call void @emu.set(ptr %states, i64 %first, i64 32, i64 0)
  br label %pass
diverged:
  %same = icmp eq i64 %odd, %waiting
  %other = select i1 %same, i64 %first, i64 %odd
  call void @emu.diverged(ptr %emu, i64 FAULT_warp, i64 %waiting, i64 %other, i64 %cta)
  br label %done
done:
  %result = phi i1 [ %well, %pass ], [ true, %look ], [ false, %diverged ]
  ret i1 %result
}

; run a CTA to its end
define internal i1 @emu.cta(ptr %emu, i64 %cta) {
entry:
  %states = WORD ptr states
  %threads = WORD i64 threads
  %reversed = WORD i64 reversed
  %backwards = icmp ne i64 %reversed, 0
  %lastwarp = sub i64 %threads, 32
  call void @emu.set(ptr %states, i64 0, i64 %threads, i64 -2)
  br label %round
round:
  %epoch = WORD i64 epoch
  %epoch1 = add i64 %epoch, 1
  PUT epoch, %epoch1
  PUT phase, 0
  br label %warps
warps:
  %w = phi i64 [ 0, %round ], [ %wnext, %wdone ]
  %mirrored = sub i64 %lastwarp, %w
  %first = select i1 %backwards, i64 %mirrored, i64 %w
  %phase = WORD i64 phase
  %phase1 = add i64 %phase, 1
  PUT phase, %phase1
  %well = call i1 @emu.warp(ptr %emu, i64 %first, i64 %cta)
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
  call void @emu.diverged(ptr %emu, i64 FAULT_barrier, i64 %waiting, i64 %other, i64 %cta)
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
  %epoch = WORD i64 epoch
  %first = add i64 %epoch, 1
  PUT first_epoch, %first
  call void @llvm.memset.p0.i64(ptr align 16 %shared, i8 -1, i64 %bytes, i1 false)
  br i1 %copies, label %forget, label %run
forget:
  call void @emu.forget(ptr %emu)
  br label %run
run:
  %well = call i1 @emu.cta(ptr %emu, i64 %cta)
  %next = add i64 %c, 1
  br i1 %well, label %ctas, label %done
done:
  ret void
}
"""


def runtime_text() -> str:
    """The module of the functions that all kernels share."""
    text = RECORD + SCHEDULER + SHADOW + COPY
    for name, value in (("COPIES_BYTES", COPIES_BYTES), ("MOST_COPIES", COPIES)):
        text = text.replace(name, str(value))
    return expand(text)
