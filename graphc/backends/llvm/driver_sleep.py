"""LLVM text of the driver: how workers sleep and are woken, and on which processor they go on.

See `driver` for the control block.  Imports: nothing.
"""

from __future__ import annotations

FUTEX_SLEEP = r"""
define internal void @sleep_on(ptr %c, i32 %last) nounwind {
  %sleepers = getelementptr i8, ptr %c, i64 64
  %a = atomicrmw add ptr %sleepers, i32 1 seq_cst
  %r = call i64 (i64, ...) @syscall(i64 {futex}, ptr %c, i32 128, i32 %last, ptr null)
  %b = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  ret void
}

define internal void @wake(ptr %c, i32 %count) nounwind {
  %r = call i64 (i64, ...) @syscall(i64 {futex}, ptr %c, i32 129, i32 %count)
  ret void
}
"""

POLLING_SLEEP = r"""
define internal void @sleep_on(ptr %c, i32 %last) nounwind {
  %r = call i32 @usleep(i32 200)
  ret void
}

define internal void @wake(ptr %c, i32 %count) nounwind {
  ret void
}
"""

# Linux may wake a worker on the very processor its owner runs on and leave it there for as long as
# both are busy.  Such a worker forbids itself that processor, which moves it at once, and then
# allows it again.  With no other processor to go to the first call fails and changes nothing.
SPREAD = r"""
declare i32 @sched_getcpu()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @sched_setaffinity(i32, i64, ptr)

define internal void @note_cpu(ptr %c) nounwind {
  %at = getelementptr i8, ptr %c, i64 208
  %cpu = call i32 @sched_getcpu()
  store atomic i32 %cpu, ptr %at monotonic, align 4
  ret void
}

define internal void @spread(ptr %c) nounwind {
entry:
  %allowed = alloca [16 x i64], align 8
  %elsewhere = alloca [16 x i64], align 8
  %at = getelementptr i8, ptr %c, i64 208
  %owner = load atomic i32, ptr %at monotonic, align 4
  %here = call i32 @sched_getcpu()
  %same = icmp eq i32 %owner, %here
  %known = icmp ult i32 %here, 1024
  %crowded = and i1 %same, %known
  br i1 %crowded, label %move, label %out
move:
  store [16 x i64] zeroinitializer, ptr %allowed, align 8
  %r = call i32 @sched_getaffinity(i32 0, i64 128, ptr %allowed)
  %failed = icmp slt i32 %r, 0
  br i1 %failed, label %out, label %narrow
narrow:
  %mask = load [16 x i64], ptr %allowed, align 8
  store [16 x i64] %mask, ptr %elsewhere, align 8
  %index = lshr i32 %here, 6
  %low = and i32 %here, 63
  %shift = zext i32 %low to i64
  %bit = shl i64 1, %shift
  %keep = xor i64 %bit, -1
  %word_at = getelementptr i64, ptr %elsewhere, i32 %index
  %word = load i64, ptr %word_at, align 8
  %without = and i64 %word, %keep
  store i64 %without, ptr %word_at, align 8
  %s = call i32 @sched_setaffinity(i32 0, i64 128, ptr %elsewhere)
  %moved = icmp eq i32 %s, 0
  br i1 %moved, label %restore, label %out
restore:
  %t = call i32 @sched_setaffinity(i32 0, i64 128, ptr %allowed)
  br label %out
out:
  ret void
}
"""

NO_SPREAD = r"""
define internal void @note_cpu(ptr %c) nounwind {
  ret void
}

define internal void @spread(ptr %c) nounwind {
  ret void
}
"""
