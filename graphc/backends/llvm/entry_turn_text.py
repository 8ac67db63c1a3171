"""LLVM text of native entries: how a case runs, and its turn at the variables of its session.

A run that is short holds the GIL, which keeps everybody else away.  A long one lets go of it, so it
takes a turn: the word of the session's `ReadWriteLock` says how many such runs read, or -1 for one
that writes.  It is read and written with the GIL held.  See `entry_text` for the tables.
Imports: nothing.
"""

from __future__ import annotations

RUN_CASE = """
; whether the turns of runs without the GIL leave the variables to the case
define internal i1 @may_begin(ptr %case) nounwind {
entry:
  %turns_at = getelementptr i64, ptr %case, i64 13
  %turns = load ptr, ptr %turns_at, align 8
  %none = icmp eq ptr %turns, null
  br i1 %none, label %yes, label %look
look:
  %n = load i64, ptr %turns, align 8
  %writes = WORD ptr %case, i64 14
  %nobody = icmp eq i64 %n, 0
  %readers = icmp sgt i64 %n, 0
  %reads = icmp eq i64 %writes, 0
  %together = and i1 %readers, %reads
  %may = or i1 %nobody, %together
  ret i1 %may
yes:
  ret i1 true
}

define internal void @begin_turn(ptr %case) nounwind {
entry:
  %turns_at = getelementptr i64, ptr %case, i64 13
  %turns = load ptr, ptr %turns_at, align 8
  %none = icmp eq ptr %turns, null
  br i1 %none, label %out, label %take
take:
  %n = load i64, ptr %turns, align 8
  %more = add i64 %n, 1
  %writes = WORD ptr %case, i64 14
  %reads = icmp eq i64 %writes, 0
  %now = select i1 %reads, i64 %more, i64 -1
  store i64 %now, ptr %turns, align 8
  br label %out
out:
  ret void
}

; false, with the exception set, if one came while those who wait were told
define internal i1 @end_turn(ptr %case) {
entry:
  %turns_at = getelementptr i64, ptr %case, i64 13
  %turns = load ptr, ptr %turns_at, align 8
  %none = icmp eq ptr %turns, null
  br i1 %none, label %good, label %give
give:
  %n = load i64, ptr %turns, align 8
  %fewer = sub i64 %n, 1
  %writes = WORD ptr %case, i64 14
  %reads = icmp eq i64 %writes, 0
  %now = select i1 %reads, i64 %fewer, i64 0
  store i64 %now, ptr %turns, align 8
  %gate_at = getelementptr i64, ptr %case, i64 1
  %gate = load ptr, ptr %gate_at, align 8
  %held = load i64, ptr %gate, align 8
  %wanted = WORD ptr %case, i64 2
  %open = icmp eq i64 %held, %wanted
  br i1 %open, label %good, label %tell
tell:
  %settle_at = getelementptr i64, ptr %case, i64 15
  %settle = load ptr, ptr %settle_at, align 8
  %told = call ptr @PyObject_CallNoArgs(ptr %settle)
  %raised = icmp eq ptr %told, null
  br i1 %raised, label %bad, label %release
release:
  call void @Py_DecRef(ptr %told)
  br label %good
good:
  ret i1 true
bad:
  ret i1 false
}

; 0, above if a check failed, below with an exception set
define internal i64 @run_case(ptr %e, ptr %case) {
entry:
  %run_at = getelementptr i64, ptr %e, i64 9
  %run = load ptr, ptr %run_at, align 8
  %process_at = getelementptr i64, ptr %e, i64 10
  %process = load ptr, ptr %process_at, align 8
  %control = load ptr, ptr %process, align 8
  %plan_at = getelementptr i64, ptr %case, i64 3
  %plan = load ptr, ptr %plan_at, align 8
  %workers = WORD ptr %case, i64 7
  %long = WORD ptr %case, i64 5
  %others = icmp ne i64 %long, 0
  %runs_at = getelementptr i64, ptr %case, i64 12
  %runs = load ptr, ptr %runs_at, align 8
  %uncounted = icmp eq ptr %runs, null
  br i1 %uncounted, label %go, label %count
count:
  %before = load i64, ptr %runs, align 8
  %now = add i64 %before, 1
  store i64 %now, ptr %runs, align 8
  br label %go
go:
  br i1 %others, label %let, label %hold
let:
  call void @begin_turn(ptr %case)
  %thread = call ptr @PyEval_SaveThread()
  %late = call i64 %run(ptr %control, ptr %plan, i64 %workers)
  call void @PyEval_RestoreThread(ptr %thread)
  %over = call i1 @end_turn(ptr %case)
  %result = select i1 %over, i64 %late, i64 -1
  ret i64 %result
hold:
  %soon = call i64 %run(ptr %control, ptr %plan, i64 %workers)
  ret i64 %soon
}
"""
