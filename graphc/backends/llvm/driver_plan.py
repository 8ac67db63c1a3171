"""LLVM text of the driver: preparing a plan table, running it on one thread, looking for faults.

See `driver` for the tables and the abbreviations WORD and ROW.  Imports: nothing.
"""

from __future__ import annotations

PLAN = r"""
declare i64 @llvm.smin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)
{declare_pause}

define internal i1 @faulted(ptr %p) nounwind {
entry:
  %at = getelementptr i8, ptr %p, i64 16
  %records = load ptr, ptr %at, align 8
  %n = WORD ptr %p, i64 3
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %next ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %look, label %clean
look:
  %flag = WORD ptr %records, i64 %i
  %bad = icmp ne i64 %flag, 0
  br i1 %bad, label %found, label %next
next:
  %i1 = add i64 %i, 4
  br label %test
found:
  ret i1 true
clean:
  ret i1 false
}

define internal void @patch(ptr %p, i1 %set) nounwind {
entry:
  %args_at = getelementptr i8, ptr %p, i64 40
  %args = load ptr, ptr %args_at, align 8
  %patches_at = getelementptr i8, ptr %p, i64 48
  %patches = load ptr, ptr %patches_at, align 8
  %borders_at = getelementptr i8, ptr %p, i64 64
  %borders = load ptr, ptr %borders_at, align 8
  %n = WORD ptr %p, i64 7
  %offset = WORD ptr %p, i64 9
  %direct = icmp slt i64 %offset, 0
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %write ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %one, label %out
one:
  %pair_o = shl i64 %i, 1
  %pair = getelementptr i64, ptr %patches, i64 %pair_o
  %position = WORD ptr %pair, i64 0
  %border = WORD ptr %pair, i64 1
  br i1 %set, label %read, label %write
read:
  %object_at = getelementptr i64, ptr %borders, i64 %border
  %object = load ptr, ptr %object_at, align 8
  br i1 %direct, label %write, label %through
through:
  %data_at = getelementptr i8, ptr %object, i64 %offset
  %data = load ptr, ptr %data_at, align 8
  br label %write
write:
  %value = phi ptr [ null, %one ], [ %object, %read ], [ %data, %through ]
  %to = getelementptr i64, ptr %args, i64 %position
  store ptr %value, ptr %to, align 8
  %i1 = add i64 %i, 1
  br label %test
out:
  ret void
}

define internal void @begin(ptr %p) nounwind {
entry:
  %stop_at = getelementptr i8, ptr %p, i64 96
  store atomic i64 0, ptr %stop_at monotonic, align 8
  %next_at = getelementptr i8, ptr %p, i64 104
  store i64 0, ptr %next_at, align 8
  call void @ask(ptr %p)
  %at = getelementptr i8, ptr %p, i64 16
  %records = load ptr, ptr %at, align 8
  %n = WORD ptr %p, i64 3
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %next ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %next, label %out
next:
  %to = getelementptr i64, ptr %records, i64 %i
  store i64 0, ptr %to, align 8
  %i1 = add i64 %i, 1
  br label %test
out:
  ret void
}

define internal void @alone(ptr %p) nounwind {
entry:
  %n = WORD ptr %p, i64 0
  %commit = WORD ptr %p, i64 1
  %until = WORD ptr %p, i64 14
  %lengthy = icmp sge i64 %until, 0
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %next ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %gate, label %out
gate:
  %committing = icmp eq i64 %i, %commit
  br i1 %committing, label %check, label %writing
check:
  %bad = call i1 @faulted(ptr %p)
  br i1 %bad, label %out, label %writing
writing:
  %writes = icmp eq i64 %i, %until
  br i1 %writes, label %last, label %count
last:
  %sealed = call i1 @seal(ptr %p)
  br i1 %sealed, label %count, label %out
count:
  %s = ROW ptr %p, i64 %i
  %blocks = WORD ptr %s, i64 4
  %some = icmp sgt i64 %blocks, 0
  br i1 %some, label %work, label %next
work:
  %f = load ptr, ptr %s, align 8
  %args_at = getelementptr i8, ptr %s, i64 8
  %args = load ptr, ptr %args_at, align 8
  %sizes_at = getelementptr i8, ptr %s, i64 16
  %sizes = load ptr, ptr %sizes_at, align 8
  br i1 %lengthy, label %cut, label %whole
whole:
  call void %f(ptr %args, ptr %sizes, i64 0, i64 %blocks)
  br label %next
cut:
  %chunk = WORD ptr %s, i64 5
  %stride = shl i64 %chunk, 3
  br label %piece
piece:
  %b0 = phi i64 [ 0, %cut ], [ %b1, %go_on ]
  %end = add i64 %b0, %stride
  %b1 = call i64 @llvm.smin.i64(i64 %end, i64 %blocks)
  call void %f(ptr %args, ptr %sizes, i64 %b0, i64 %b1)
  call void @ask(ptr %p)
  %ended = call i1 @stopped(ptr %p)
  br i1 %ended, label %out, label %go_on
go_on:
  %rest = icmp slt i64 %b1, %blocks
  br i1 %rest, label %piece, label %next
next:
  %i1 = add i64 %i, 1
  br label %test
out:
  ret void
}

; 0, 1 if a check failed, 2 or 3 if the run was ended by an exception or because of the time
define internal i64 @outcome(ptr %p) nounwind {
entry:
  %stop = WORD ptr %p, i64 12
  %ended = icmp sgt i64 %stop, 0
  br i1 %ended, label %early, label %look
early:
  %why = add i64 %stop, 1
  ret i64 %why
look:
  %bad = call i1 @faulted(ptr %p)
  br i1 %bad, label %fault, label %good
good:
  %stop_at = getelementptr i8, ptr %p, i64 96
  store i64 -1, ptr %stop_at, align 8 ; a signal handler may raise before anyone sees the result
  br label %fault
fault:
  %result = zext i1 %bad to i64
  ret i64 %result
}
"""

ALONE_RUN = r"""
define i64 @run(ptr %c, ptr %p, i64 %workers) nounwind {
  call void @begin(ptr %p)
  call void @patch(ptr %p, i1 true)
  call void @alone(ptr %p)
  call void @patch(ptr %p, i1 false)
  %result = call i64 @outcome(ptr %p)
  ret i64 %result
}
"""
