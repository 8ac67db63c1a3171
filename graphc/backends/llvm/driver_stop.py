"""LLVM text of the driver: ending a run early, for a signal or because its time is up.

The thread that called looks at the clock between blocks.  Every LOOK_SECONDS it takes the GIL and
lets Python handle its signals, if it is the thread that may: a handler that raises ends the run.
The word `stop` decides it: whoever comes first to a step that writes state seals it, and nothing
ends the run after that.  See `driver` for the tables and the abbreviation WORD.  Imports: nothing.
"""

from __future__ import annotations

LOOK_SECONDS = 0.05

EXPIRED_RUN = 3
"""What `run` returns for a run whose time was up: one more than `stop` holds then.

`stop` holds 0 while a run may be ended, -1 when it no longer may, 1 when a signal handler has ended
it and 2 when its time was up.
"""

SYMBOLS = (
    "PyEval_SaveThread",
    "PyEval_RestoreThread",
    "PyErr_CheckSignals",
    "PyThread_get_thread_ident",
    "clock_gettime",
)
"""What the text calls; a process without one of them gets NO_STOP."""

STOP = r"""
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare i32 @PyErr_CheckSignals()
declare i64 @PyThread_get_thread_ident()
declare i32 @clock_gettime(i32, ptr)

@main_thread = internal global i64 0, align 8

; the thread whose calls may be interrupted
define void @main_is(i64 %id) nounwind {
  store i64 %id, ptr @main_thread, align 8
  ret void
}

define internal i64 @now() nounwind {
  %t = alloca [2 x i64], align 8
  %r = call i32 @clock_gettime(i32 {monotonic}, ptr %t)
  %s = WORD ptr %t, i64 0
  %ns = WORD ptr %t, i64 1
  %whole = mul i64 %s, 1000000000
  %all = add i64 %whole, %ns
  ret i64 %all
}

; end the run, unless it may no longer be ended
define internal void @halt(ptr %p, i64 %why) nounwind {
  %stop_at = getelementptr i8, ptr %p, i64 96
  %r = cmpxchg ptr %stop_at, i64 0, i64 %why seq_cst seq_cst
  ret void
}

; from here on the run may not be ended; false if it was
define internal i1 @seal(ptr %p) nounwind {
  %stop_at = getelementptr i8, ptr %p, i64 96
  %r = cmpxchg ptr %stop_at, i64 0, i64 -1 seq_cst seq_cst
  %was = extractvalue { i64, i1 } %r, 0
  %go = icmp sle i64 %was, 0
  ret i1 %go
}

define internal i1 @stopped(ptr %p) nounwind {
  %stop_at = getelementptr i8, ptr %p, i64 96
  %stop = load atomic i64, ptr %stop_at monotonic, align 8
  %yes = icmp sgt i64 %stop, 0
  ret i1 %yes
}

; whether there is a reason to end the run; only its own thread asks
define internal void @ask(ptr %p) nounwind {
entry:
  %until = WORD ptr %p, i64 14
  %lengthy = icmp sge i64 %until, 0
  %thread_at = getelementptr i8, ptr %p, i64 80
  %thread = load ptr, ptr %thread_at, align 8
  %allowed = WORD ptr %p, i64 11
  %watched = icmp ne ptr %thread, null
  %limited = icmp sgt i64 %allowed, 0
  %either = or i1 %watched, %limited
  %any = and i1 %either, %lengthy
  br i1 %any, label %look, label %out
look:
  %now = call i64 @now()
  %next_at = getelementptr i8, ptr %p, i64 104
  %next = load i64, ptr %next_at, align 8
  %end_at = getelementptr i8, ptr %p, i64 120
  %first = icmp eq i64 %next, 0
  br i1 %first, label %begin, label %test
begin:
  %end = add i64 %now, %allowed
  store i64 %end, ptr %end_at, align 8
  br label %plan
test:
  %due = icmp sge i64 %now, %next
  br i1 %due, label %time, label %out
time:
  %deadline = load i64, ptr %end_at, align 8
  %past = icmp sge i64 %now, %deadline
  %late = and i1 %past, %limited
  br i1 %late, label %expire, label %signals
expire:
  call void @halt(ptr %p, i64 2)
  br label %out
signals:
  br i1 %watched, label %check, label %plan
check:
  call void @PyEval_RestoreThread(ptr %thread)
  %r = call i32 @PyErr_CheckSignals()
  %raised = icmp ne i32 %r, 0
  br i1 %raised, label %raise, label %release
raise:
  store ptr null, ptr %thread_at, align 8 ; the exception is set: no more Python in this run
  call void @halt(ptr %p, i64 1)
  br label %release
release:
  %same = call ptr @PyEval_SaveThread()
  br label %plan
plan:
  %from = call i64 @now()
  %later = add i64 %from, {look_ns}
  %last = load i64, ptr %end_at, align 8
  %sooner = call i64 @llvm.smin.i64(i64 %later, i64 %last)
  %then = select i1 %limited, i64 %sooner, i64 %later
  store i64 %then, ptr %next_at, align 8
  br label %out
out:
  ret void
}

; `run` for a caller that has the GIL, without it meanwhile; 2 with an exception set
define i64 @run_without_gil(ptr %c, ptr %p, i64 %workers) nounwind {
entry:
  %thread_at = getelementptr i8, ptr %p, i64 80
  %me = call i64 @PyThread_get_thread_ident()
  %main = load i64, ptr @main_thread, align 8
  %is_main = icmp eq i64 %me, %main
  %thread = call ptr @PyEval_SaveThread()
  %asks = select i1 %is_main, ptr %thread, ptr null
  store ptr %asks, ptr %thread_at, align 8
  %r = call i64 @run(ptr %c, ptr %p, i64 %workers)
  %left = load ptr, ptr %thread_at, align 8
  store ptr null, ptr %thread_at, align 8
  %raised = icmp ne ptr %left, %asks
  %result = select i1 %raised, i64 2, i64 %r
  call void @PyEval_RestoreThread(ptr %thread)
  ret i64 %result
}
"""

NO_STOP = r"""
define internal i64 @now() nounwind {
  ret i64 0
}

define internal i1 @seal(ptr %p) nounwind {
  ret i1 true
}

define internal i1 @stopped(ptr %p) nounwind {
  ret i1 false
}

define internal void @ask(ptr %p) nounwind {
  ret void
}
"""


def stop_text(stoppable: bool, darwin: bool) -> str:
    """The functions of this module, on a system with or without SYMBOLS."""
    if not stoppable:
        return NO_STOP
    text = STOP.replace("{look_ns}", str(int(LOOK_SECONDS * 1e9)))
    return text.replace("{monotonic}", "6" if darwin else "1")
