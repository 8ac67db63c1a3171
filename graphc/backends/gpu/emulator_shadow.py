"""Who touched what in emulated memory, as LLVM text.

Shared memory has a shadow, two words per granule: the last write and the last reads, each a stamp

    epoch << 34 | phase << 12 | warp << 7 | lane << 2 | several warps << 1 | several lanes

where `epoch` counts barriers and `phase` the meetings of warps since.  Two threads are in order if
a barrier is between them, or a meeting if they are of one warp.  The lowest bit of a write means
that an asynchronous copy has not been waited for.  The shadow of global memory has a third word,
the CTAs of both stamps, each plus one, -1 for several readers.

The abbreviations are those of `emulator_context`.  Imports: nothing of graphc.
"""

from __future__ import annotations

SHADOW_BYTES = 16
GLOBAL_SHADOW_BYTES = 24

FIRST_STAMP = 1 << 34
"""The stamp before the first barrier, of thread 0."""

SHADOW = """
; whether two stamps of one epoch are of threads that no meeting orders; `low` bits always do
define internal i1 @emu.unordered(i64 %a, i64 %b) alwaysinline {
  %x = xor i64 %a, %b
  %warp = and i64 %x, 3968
  %lane = and i64 %x, 124
  %shifted = shl i64 %x, 30
  %phase = lshr i64 %shifted, 42
  %warps = icmp ne i64 %warp, 0
  %lanes = icmp ne i64 %lane, 0
  %now = icmp eq i64 %phase, 0
  %both = and i1 %lanes, %now
  %unordered = or i1 %warps, %both
  ret i1 %unordered
}

; whether a write now is in no order with the reads that a stamp of this epoch tells of
define internal i1 @emu.unread(i64 %reads, i64 %me) alwaysinline {
  %plain = call i1 @emu.unordered(i64 %reads, i64 %me)
  %warpsbit = and i64 %reads, 2
  %warps = icmp ne i64 %warpsbit, 0
  %lanesbit = and i64 %reads, 1
  %lanes = icmp ne i64 %lanesbit, 0
  %x = xor i64 %reads, %me
  %shifted = shl i64 %x, 30
  %phase = lshr i64 %shifted, 42
  %now = icmp eq i64 %phase, 0
  %several = and i1 %lanes, %now
  %either = or i1 %plain, %warps
  %bad = or i1 %either, %several
  ret i1 %bad
}

; the stamp of reads after one more
define internal i64 @emu.reads(i64 %reads, i64 %me) alwaysinline {
  %x = xor i64 %reads, %me
  %epoch = lshr i64 %x, 34
  %old = icmp ne i64 %epoch, 0
  %warp = and i64 %x, 3968
  %lane = and i64 %x, 124
  %shifted = shl i64 %x, 30
  %phase = lshr i64 %shifted, 42
  %warps = icmp ne i64 %warp, 0
  %later = icmp ne i64 %phase, 0
  %lanes = icmp ne i64 %lane, 0
  %severalbit = and i64 %reads, 2
  %several = icmp ne i64 %severalbit, 0
  %withlanes = or i64 %reads, 1
  %withwarps = or i64 %reads, 2
  %r1 = select i1 %lanes, i64 %withlanes, i64 %reads
  %r2 = select i1 %later, i64 %me, i64 %r1
  %r3 = select i1 %warps, i64 %withwarps, i64 %r2
  %r4 = select i1 %several, i64 %reads, i64 %r3
  %r5 = select i1 %old, i64 %me, i64 %r4
  ret i64 %r5
}

; where an access of the row may be made: where it wants, or nowhere
define internal ptr @emu.place(ptr %emu, ptr %p, ptr %row, i64 %site) alwaysinline {
entry:
  %limitat = getelementptr i64, ptr %row, i64 1
  %lowat = getelementptr i64, ptr %row, i64 2
  %start = load i64, ptr %row, align 8
  %limit = load i64, ptr %limitat, align 8
  %low = load i64, ptr %lowat, align 8
  %address = ptrtoint ptr %p to i64
  %offset = sub i64 %address, %start
  %inside = icmp ult i64 %offset, %limit
  %bits = and i64 %address, %low
  %even = icmp eq i64 %bits, 0
  %ok = and i1 %inside, %even
  br i1 %ok, label %done, label %bad
bad:
  %nowhere = call ptr @emu.nowhere(ptr %emu, i64 %address, i64 %site)
  br label %done
done:
  %where = phi ptr [ %p, %entry ], [ %nowhere, %bad ]
  ret ptr %where
}

define internal ptr @emu.nowhere(ptr %emu, i64 %address, i64 %site) noinline {
  call void @emu.record(ptr %emu, i64 FAULT_access, i64 %site, i64 %address)
  %nowhere = WORD ptr nowhere
  ret ptr %nowhere
}

; the shadow of an address, and how many follow it; none of what is nowhere
define internal { ptr, i64 } @emu.shadow(ptr %emu, ptr %p, ptr %row) alwaysinline {
  %countat = getelementptr i64, ptr %row, i64 3
  %shadowat = getelementptr i64, ptr %row, i64 4
  %startat = getelementptr i64, ptr %row, i64 5
  %granuleat = getelementptr i64, ptr %row, i64 6
  %spaceat = getelementptr i64, ptr %row, i64 7
  %some = load i64, ptr %countat, align 8
  %shadow = load ptr, ptr %shadowat, align 8
  %start = load i64, ptr %startat, align 8
  %granule = load i64, ptr %granuleat, align 8
  %space = load i64, ptr %spaceat, align 8
  %nowhere = WORD ptr nowhere
  %lost = icmp eq ptr %p, %nowhere
  %count = select i1 %lost, i64 0, i64 %some
  %address = ptrtoint ptr %p to i64
  %offset = sub i64 %address, %start
  %number = lshr i64 %offset, %granule
  %shared = icmp eq i64 %space, 1
  %size = select i1 %shared, i64 SHADOW_BYTES, i64 GLOBAL_SHADOW_BYTES
  %o = mul i64 %number, %size
  %entry = getelementptr i8, ptr %shadow, i64 %o
  %first = insertvalue { ptr, i64 } poison, ptr %entry, 0
  %both = insertvalue { ptr, i64 } %first, i64 %count, 1
  ret { ptr, i64 } %both
}

define ptr @emu.read(ptr %emu, ptr %p, i64 %which, i64 %site) {
  %rows = WORD ptr rows
  %o = shl i64 %which, 6
  %row = getelementptr i8, ptr %rows, i64 %o
  %where = call ptr @emu.place(ptr %emu, ptr %p, ptr %row, i64 %site)
  %countat = getelementptr i64, ptr %row, i64 3
  %count = load i64, ptr %countat, align 8
  %any = icmp ne i64 %count, 0
  br i1 %any, label %record, label %done
record:
  %same = tail call ptr @emu.touch.read(ptr %emu, ptr %where, ptr %row, i64 %site)
  ret ptr %same
done:
  ret ptr %where
}

define internal ptr @emu.touch.read(ptr %emu, ptr %where, ptr %row, i64 %site) noinline {
  call void @emu.touch(ptr %emu, ptr %where, ptr %row, i64 %site, i1 false)
  ret ptr %where
}

define ptr @emu.write(ptr %emu, ptr %p, i64 %which, i64 %site) {
  %rows = WORD ptr rows
  %o = shl i64 %which, 6
  %row = getelementptr i8, ptr %rows, i64 %o
  %where = call ptr @emu.place(ptr %emu, ptr %p, ptr %row, i64 %site)
  %countat = getelementptr i64, ptr %row, i64 3
  %count = load i64, ptr %countat, align 8
  %any = icmp ne i64 %count, 0
  br i1 %any, label %record, label %done
record:
  %same = tail call ptr @emu.touch.write(ptr %emu, ptr %where, ptr %row, i64 %site)
  ret ptr %same
done:
  ret ptr %where
}

define internal ptr @emu.touch.write(ptr %emu, ptr %where, ptr %row, i64 %site) noinline {
  call void @emu.touch(ptr %emu, ptr %where, ptr %row, i64 %site, i1 true)
  ret ptr %where
}

; record a read or a write in shared or in global memory
define internal void @emu.touch(
    ptr %emu, ptr %where, ptr %row, i64 %site, i1 %writes) alwaysinline {
  %both = call { ptr, i64 } @emu.shadow(ptr %emu, ptr %where, ptr %row)
  %entry = extractvalue { ptr, i64 } %both, 0
  %count = extractvalue { ptr, i64 } %both, 1
  %spaceat = getelementptr i64, ptr %row, i64 7
  %space = load i64, ptr %spaceat, align 8
  %shared = icmp eq i64 %space, 1
  br i1 %shared, label %inshared, label %inglobal
inshared:
  call void @emu.touch.shared(ptr %emu, ptr %entry, i64 %count, i64 %site, i1 %writes)
  ret void
inglobal:
  %bad = call i1 @emu.touch.global(ptr %emu, ptr %entry, i64 %count, i64 %site, i1 %writes)
  ret void
}

; the granules of shared memory that an access has
define internal void @emu.touch.shared(
    ptr %emu, ptr %entry, i64 %count, i64 %site, i1 %writes) alwaysinline {
begin:
  %me = WORD i64 me
  %first = WORD i64 first
  %epoch = and i64 %me, -17179869184
  %span = sub i64 %epoch, %first
  br label %loop
loop:
  %i = phi i64 [ 0, %begin ], [ %next, %fine ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %one, label %well
one:
  %o = shl i64 %i, 4
  %wat = getelementptr i8, ptr %entry, i64 %o
  %rat = getelementptr i8, ptr %wat, i64 8
  %w = load i64, ptr %wat, align 8
  %r = load i64, ptr %rat, align 8
  ; most often: it was written in an earlier epoch of this CTA, and not by a copy under way
  %age = sub i64 %w, %first
  %earlier = icmp ult i64 %age, %span
  %pending = and i64 %w, 1
  %delivered = icmp eq i64 %pending, 0
  %usual = and i1 %earlier, %delivered
  br i1 %usual, label %which, label %unusual
unusual:
  %written = icmp uge i64 %w, %first
  %known = or i1 %written, %writes
  br i1 %known, label %arrived, label %fault
arrived:
  %ispending = icmp ne i64 %pending, 0
  %undelivered = and i1 %ispending, %written
  br i1 %undelivered, label %fault, label %ordered
ordered:
  %wnow = icmp uge i64 %w, %epoch
  %wun = call i1 @emu.unordered(i64 %w, i64 %me)
  %wbad = and i1 %wnow, %wun
  br i1 %wbad, label %fault, label %which
which:
  br i1 %writes, label %write, label %read
write:
  %rnow = icmp uge i64 %r, %epoch
  %run = call i1 @emu.unread(i64 %r, i64 %me)
  %rbad = and i1 %rnow, %run
  store i64 %me, ptr %wat, align 8
  br i1 %rbad, label %fault, label %fine
read:
  ; most often: several warps have read it in this epoch, and one more changes nothing
  %rsince = icmp uge i64 %r, %epoch
  %rwarps = and i64 %r, 2
  %rseveral = icmp ne i64 %rwarps, 0
  %rsame = and i1 %rsince, %rseveral
  br i1 %rsame, label %fine, label %update
update:
  %reads = call i64 @emu.reads(i64 %r, i64 %me)
  store i64 %reads, ptr %rat, align 8
  br label %fine
fine:
  %next = add i64 %i, 1
  br label %loop
well:
  ret void
fault:
  %what = phi i64 [ FAULT_unwritten, %unusual ], [ FAULT_undelivered, %arrived ],
                  [ FAULT_race, %ordered ], [ FAULT_race, %write ]
  %stamp = phi i64 [ 0, %unusual ], [ %w, %arrived ], [ %w, %ordered ], [ %r, %write ]
  %shifted = lshr i64 %stamp, 2
  %other = and i64 %shifted, 1023
  call void @emu.record(ptr %emu, i64 %what, i64 %site, i64 %other)
  ret void
}

; the same for global memory, where nothing orders the threads of different CTAs; whether that fails
define i1 @emu.touch.global(
    ptr %emu, ptr %entry, i64 %count, i64 %site, i1 %writes) noinline {
begin:
  %me = WORD i64 me
  %cta = WORD i64 running_cta
  %myepoch = lshr i64 %me, 34
  %cta1 = add i64 %cta, 1
  %mine = trunc i64 %cta1 to i32
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %loop, label %well
loop:
  %i = phi i64 [ 0, %begin ], [ %next, %fine ]
  %o = mul i64 %i, 24
  %wat = getelementptr i8, ptr %entry, i64 %o
  %rat = getelementptr i8, ptr %wat, i64 8
  %wcat = getelementptr i8, ptr %wat, i64 16
  %rcat = getelementptr i8, ptr %wat, i64 20
  %w = load i64, ptr %wat, align 8
  %r = load i64, ptr %rat, align 8
  %wc = load i32, ptr %wcat, align 4
  %rc = load i32, ptr %rcat, align 4
  %wany = icmp ne i32 %wc, 0
  %wother = icmp ne i32 %wc, %mine
  %wepoch = lshr i64 %w, 34
  %wnow = icmp eq i64 %wepoch, %myepoch
  %wun = call i1 @emu.unordered(i64 %w, i64 %me)
  %where = and i1 %wnow, %wun
  %wnot = or i1 %wother, %where
  %wbad = and i1 %wany, %wnot
  br i1 %wbad, label %race, label %which
which:
  %rany = icmp ne i32 %rc, 0
  %rother = icmp ne i32 %rc, %mine
  br i1 %writes, label %write, label %read
write:
  %repoch = lshr i64 %r, 34
  %rnow = icmp eq i64 %repoch, %myepoch
  %run = call i1 @emu.unread(i64 %r, i64 %me)
  %rhere = and i1 %rnow, %run
  %rnot = or i1 %rother, %rhere
  %rbad = and i1 %rany, %rnot
  store i64 %me, ptr %wat, align 8
  store i32 %mine, ptr %wcat, align 4
  br i1 %rbad, label %race, label %fine
read:
  %reads = call i64 @emu.reads(i64 %r, i64 %me)
  store i64 %reads, ptr %rat, align 8
  %several = and i1 %rany, %rother
  %readers = select i1 %several, i32 -1, i32 %mine
  store i32 %readers, ptr %rcat, align 4
  br label %fine
fine:
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %well
well:
  ret i1 false
race:
  %stamp = phi i64 [ %w, %loop ], [ %r, %write ]
  %whose = phi i32 [ %wc, %loop ], [ %rc, %write ]
  %shifted = lshr i64 %stamp, 2
  %other = and i64 %shifted, 1023
  %otherctawide = sext i32 %whose to i64
  %othercta = shl i64 %otherctawide, 10
  %who = or i64 %othercta, %other
  call void @emu.record(ptr %emu, i64 FAULT_race, i64 %site, i64 %who)
  ret i1 true
}
"""
