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

SHADOW = """
define internal i64 @emu.stamp(ptr %emu, i64 %thread) alwaysinline {
  %epoch = WORD i64 epoch
  %phase = WORD i64 phase
  %e = shl i64 %epoch, 34
  %part = and i64 %phase, 4194303
  %p = shl i64 %part, 12
  %t = shl i64 %thread, 2
  %ep = or i64 %e, %p
  %stamp = or i64 %ep, %t
  ret i64 %stamp
}

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

; a thread reads or writes `count` granules of shared memory; whether that is a fault
define i1 @emu.touch(
    ptr %emu, ptr %entry, i64 %count, i64 %thread, i64 %cta, i64 %site, i1 %writes) noinline {
begin:
  %me = call i64 @emu.stamp(ptr %emu, i64 %thread)
  %myepoch = lshr i64 %me, 34
  %first = WORD i64 first_epoch
  br label %loop
loop:
  %i = phi i64 [ 0, %begin ], [ %next, %fine ]
  %o = shl i64 %i, 4
  %wat = getelementptr i8, ptr %entry, i64 %o
  %rat = getelementptr i8, ptr %wat, i64 8
  %w = load i64, ptr %wat, align 8
  %r = load i64, ptr %rat, align 8
  %wepoch = lshr i64 %w, 34
  %written = icmp uge i64 %wepoch, %first
  %known = or i1 %written, %writes
  br i1 %known, label %delivered, label %unwritten
delivered:
  %pending = and i64 %w, 1
  %ispending = icmp ne i64 %pending, 0
  %undelivered = and i1 %ispending, %written
  br i1 %undelivered, label %undeliveredfault, label %ordered
ordered:
  %wnow = icmp eq i64 %wepoch, %myepoch
  %wun = call i1 @emu.unordered(i64 %w, i64 %me)
  %wbad = and i1 %wnow, %wun
  br i1 %wbad, label %race, label %which
which:
  br i1 %writes, label %write, label %read
write:
  %repoch = lshr i64 %r, 34
  %rnow = icmp eq i64 %repoch, %myepoch
  %run = call i1 @emu.unread(i64 %r, i64 %me)
  %rbad = and i1 %rnow, %run
  store i64 %me, ptr %wat, align 8
  br i1 %rbad, label %race, label %fine
read:
  %reads = call i64 @emu.reads(i64 %r, i64 %me)
  store i64 %reads, ptr %rat, align 8
  br label %fine
fine:
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %well
well:
  ret i1 false
race:
  %who = phi i64 [ %w, %ordered ], [ %r, %write ]
  br label %fault
unwritten:
  br label %fault
undeliveredfault:
  br label %fault
fault:
  %what = phi i64 [ FAULT_race, %race ], [ FAULT_unwritten, %unwritten ],
                  [ FAULT_undelivered, %undeliveredfault ]
  %stamp = phi i64 [ %who, %race ], [ 0, %unwritten ], [ %w, %undeliveredfault ]
  %shifted = lshr i64 %stamp, 2
  %other = and i64 %shifted, 1023
  call void @emu.record(
    ptr %emu, i64 %what, i64 %site, i64 %cta, i64 %thread, i64 %other)
  ret i1 true
}

; the same for global memory, where nothing orders the threads of different CTAs
define i1 @emu.touch.global(
    ptr %emu, ptr %entry, i64 %count, i64 %thread, i64 %cta, i64 %site, i1 %writes) noinline {
begin:
  %me = call i64 @emu.stamp(ptr %emu, i64 %thread)
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
  call void @emu.record(
    ptr %emu, i64 FAULT_race, i64 %site, i64 %cta, i64 %thread, i64 %who)
  ret i1 true
}
"""
