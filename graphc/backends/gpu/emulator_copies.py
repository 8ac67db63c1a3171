"""Copies from global to shared memory that arrive when they are waited for, as LLVM text.

The abbreviations are those of `emulator_context`.  Imports: nothing of graphc.
"""

from __future__ import annotations

COPIES = 128
"""How many copies to shared memory a thread may have under way."""

COPIES_BYTES = COPIES * 32 + 16
"""Of each thread: how many are under way, groups so far, and a row per copy: where to, where from,
bytes there << 32 | bytes here, group << 32 | site."""

COPY = """
define internal ptr @emu.copies.of(ptr %emu, i64 %thread) alwaysinline {
  %all = WORD ptr copies
  %o = mul i64 %thread, COPIES_BYTES
  %own = getelementptr i8, ptr %all, i64 %o
  ret ptr %own
}

define internal void @emu.forget(ptr %emu) {
entry:
  %threads = WORD i64 threads
  br label %loop
loop:
  %t = phi i64 [ 0, %entry ], [ %next, %loop ]
  %own = call ptr @emu.copies.of(ptr %emu, i64 %t)
  call void @llvm.memset.p0.i64(ptr %own, i8 0, i64 16, i1 false)
  %next = add i64 %t, 1
  %more = icmp slt i64 %next, %threads
  br i1 %more, label %loop, label %done
done:
  ret void
}

; begin a copy: until it is waited for, what it writes is all ones
define void @emu.copy(
    ptr %emu, ptr %to, ptr %from, i64 %bytes, i64 %read, i64 %site) {
  %thread = WORD i64 running
  %own = call ptr @emu.copies.of(ptr %emu, i64 %thread)
  %count = load i64, ptr %own, align 8
  %groupat = getelementptr i8, ptr %own, i64 8
  %group = load i64, ptr %groupat, align 8
  %room = icmp slt i64 %count, MOST_COPIES
  br i1 %room, label %add, label %full
add:
  %o = shl i64 %count, 5
  %rows = getelementptr i8, ptr %own, i64 16
  %row = getelementptr i8, ptr %rows, i64 %o
  %row1 = getelementptr i8, ptr %row, i64 8
  %row2 = getelementptr i8, ptr %row, i64 16
  %row3 = getelementptr i8, ptr %row, i64 24
  %high = shl i64 %read, 32
  %sizes = or i64 %high, %bytes
  %ghigh = shl i64 %group, 32
  %groupsite = or i64 %ghigh, %site
  store ptr %to, ptr %row, align 8
  store ptr %from, ptr %row1, align 8
  store i64 %sizes, ptr %row2, align 8
  store i64 %groupsite, ptr %row3, align 8
  %count1 = add i64 %count, 1
  store i64 %count1, ptr %own, align 8
  call void @llvm.memset.p0.i64(ptr %to, i8 -1, i64 %bytes, i1 false)
  %me = WORD i64 me
  %pending = or i64 %me, 1
  call void @emu.mark(ptr %emu, ptr %to, i64 %bytes, i64 %pending)
  ret void
full:
  call void @emu.record(ptr %emu, i64 FAULT_copies, i64 %site, i64 MOST_COPIES)
  ret void
}

define void @emu.commit(ptr %emu) {
  %thread = WORD i64 running
  %own = call ptr @emu.copies.of(ptr %emu, i64 %thread)
  %groupat = getelementptr i8, ptr %own, i64 8
  %group = load i64, ptr %groupat, align 8
  %group1 = add i64 %group, 1
  store i64 %group1, ptr %groupat, align 8
  ret void
}

; finish the copies of all groups but the last `left`
define void @emu.deliver(ptr %emu, i64 %left) {
entry:
  %me = WORD i64 me
  %thread = WORD i64 running
  %own = call ptr @emu.copies.of(ptr %emu, i64 %thread)
  %count = load i64, ptr %own, align 8
  %groupat = getelementptr i8, ptr %own, i64 8
  %group = load i64, ptr %groupat, align 8
  %bound = sub i64 %group, %left
  %rows = getelementptr i8, ptr %own, i64 16
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %stepped ]
  %kept = phi i64 [ 0, %entry ], [ %nowkept, %stepped ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %body, label %done
body:
  %o = shl i64 %i, 5
  %row = getelementptr i8, ptr %rows, i64 %o
  %row1 = getelementptr i8, ptr %row, i64 8
  %row2 = getelementptr i8, ptr %row, i64 16
  %row3 = getelementptr i8, ptr %row, i64 24
  %to = load ptr, ptr %row, align 8
  %from = load ptr, ptr %row1, align 8
  %sizes = load i64, ptr %row2, align 8
  %groupsite = load i64, ptr %row3, align 8
  %its = lshr i64 %groupsite, 32
  %ready = icmp slt i64 %its, %bound
  br i1 %ready, label %finish, label %keep
finish:
  %bytes = and i64 %sizes, 4294967295
  %read = lshr i64 %sizes, 32
  br label %bytes.loop
bytes.loop:
  %b = phi i64 [ 0, %finish ], [ %b1, %bytes.next ]
  %bmore = icmp slt i64 %b, %bytes
  br i1 %bmore, label %bytes.one, label %mark
bytes.one:
  %there = icmp slt i64 %b, %read
  %target = getelementptr i8, ptr %to, i64 %b
  br i1 %there, label %bytes.copy, label %bytes.zero
bytes.copy:
  %source = getelementptr i8, ptr %from, i64 %b
  %byte = load i8, ptr %source, align 1
  store i8 %byte, ptr %target, align 1
  br label %bytes.next
bytes.zero:
  store i8 0, ptr %target, align 1
  br label %bytes.next
bytes.next:
  %b1 = add i64 %b, 1
  br label %bytes.loop
mark:
  call void @emu.mark(ptr %emu, ptr %to, i64 %bytes, i64 %me)
  br label %stepped
keep:
  %ko = shl i64 %kept, 5
  %krow = getelementptr i8, ptr %rows, i64 %ko
  %krow1 = getelementptr i8, ptr %krow, i64 8
  %krow2 = getelementptr i8, ptr %krow, i64 16
  %krow3 = getelementptr i8, ptr %krow, i64 24
  store ptr %to, ptr %krow, align 8
  store ptr %from, ptr %krow1, align 8
  store i64 %sizes, ptr %krow2, align 8
  store i64 %groupsite, ptr %krow3, align 8
  br label %stepped
stepped:
  %add = phi i64 [ 0, %mark ], [ 1, %keep ]
  %nowkept = add i64 %kept, %add
  %next = add i64 %i, 1
  br label %loop
done:
  store i64 %kept, ptr %own, align 8
  ret void
}

; the last write of these bytes of shared memory is what the stamp says
define internal void @emu.mark(ptr %emu, ptr %to, i64 %bytes, i64 %stamp) {
entry:
  %shadow = WORD ptr shared_shadow
  %nowhere = WORD ptr nowhere
  %unkept = icmp eq ptr %shadow, null
  %lost = icmp eq ptr %to, %nowhere
  %none = or i1 %unkept, %lost
  br i1 %none, label %done, label %start
start:
  %shared = WORD i64 shared
  %address = ptrtoint ptr %to to i64
  %offset = sub i64 %address, %shared
  %granule = WORD i64 shared_granule
  %first = lshr i64 %offset, %granule
  %count = lshr i64 %bytes, %granule
  br label %loop
loop:
  %i = phi i64 [ 0, %start ], [ %next, %loop ]
  %g = add i64 %first, %i
  %o = shl i64 %g, 4
  %at = getelementptr i8, ptr %shadow, i64 %o
  store i64 %stamp, ptr %at, align 8
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""
