"""LLVM text of the driver: the team, how it takes part in a run and what it learns from that.

See `driver` for the control block and the abbreviations WORD and ROW.  Imports: nothing.
"""

from __future__ import annotations

STALL_SECONDS = 20e-6
"""A run that takes half as long again as the best, and this much, was held up."""

LONGEST_HOLD = 63
"""Most runs of a plan without the team before it is tried again."""

HOLD_SECONDS = 50e-3
"""The same as a time, for runs so long that a worker without a processor costs them little more
than its help, if LEAST_HOLD of them do not take longer."""

LEAST_HOLD = 3

STACK_BYTES = 8 << 20
"""Of a worker: the most that blocks have been seen to use is a third of it."""

TEAM = r"""
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_attr_init(ptr)
declare i32 @pthread_attr_setstacksize(ptr, i64)
declare i32 @pthread_attr_destroy(ptr)
declare i32 @sched_yield()
{declare_sleep}

define internal i64 @relax(i64 %spins) nounwind {
entry:
  {pause}
  %next = add i64 %spins, 1
  %low = and i64 %next, 255
  %long = icmp eq i64 %low, 0
  br i1 %long, label %yield, label %out
yield:
  call i32 @sched_yield()
  br label %out
out:
  ret i64 %next
}

define void @spin(i64 %n) nounwind {
entry:
  br label %again
again:
  %i = phi i64 [ 0, %entry ], [ %i1, %again ]
  {pause}
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %n
  br i1 %more, label %again, label %out
out:
  ret void
}

define internal void @drive(ptr %p, i64 %gen, i1 %owner) nounwind {
entry:
  %n = WORD ptr %p, i64 0
  %commit = WORD ptr %p, i64 1
  %until = WORD ptr %p, i64 14
  br label %step
step:
  %i = phi i64 [ 0, %entry ], [ %i1, %next ]
  %complete = phi i64 [ 0, %entry ], [ %complete1, %next ]
  %s = ROW ptr %p, i64 %i
  %more = icmp slt i64 %i, %n
  br i1 %more, label %ask, label %finish
ask:
  %wait_from = WORD ptr %s, i64 3
  %waits = icmp sge i64 %wait_from, 0
  br i1 %waits, label %wait, label %gate
finish:
  br i1 %owner, label %wait, label %out
wait:
  %from = phi i64 [ %wait_from, %ask ], [ 0, %finish ]
  %first = call i64 @llvm.smax.i64(i64 %from, i64 %complete)
  br label %awaited
awaited:
  %j = phi i64 [ %first, %wait ], [ %j1, %ready ]
  %earlier = icmp slt i64 %j, %i
  br i1 %earlier, label %look, label %passed
look:
  %r = ROW ptr %p, i64 %j
  %r_blocks = WORD ptr %r, i64 4
  %r_claim = getelementptr i8, ptr %r, i64 48
  %r_done = getelementptr i8, ptr %r, i64 56
  br label %poll
poll:
  %spins = phi i64 [ 0, %look ], [ %spins1, %again ], [ %spins1, %ask_w ]
  %done = load atomic i64, ptr %r_done acquire, align 8
  %all_done = icmp sge i64 %done, %r_blocks
  br i1 %all_done, label %ready, label %mine
mine:
  %tag = load atomic i64, ptr %r_claim monotonic, align 8
  %tag_gen = lshr i64 %tag, 32
  %same = icmp eq i64 %tag_gen, %gen
  %ended_w = call i1 @stopped(ptr %p)
  %ours = xor i1 %ended_w, true
  %stay = and i1 %same, %ours
  br i1 %stay, label %again, label %out
again:
  %spins1 = call i64 @relax(i64 %spins)
  %low = and i64 %spins1, 255
  %long = icmp eq i64 %low, 0
  %asks_w = and i1 %long, %owner
  br i1 %asks_w, label %ask_w, label %poll
ask_w:
  call void @ask(ptr %p)
  br label %poll
ready:
  %j1 = add i64 %j, 1
  br label %awaited
passed:
  %covered = icmp sle i64 %from, %complete
  %complete_w = select i1 %covered, i64 %i, i64 %complete
  br i1 %more, label %gate, label %out
gate:
  %complete1 = phi i64 [ %complete, %ask ], [ %complete_w, %passed ]
  %committing = icmp eq i64 %i, %commit
  br i1 %committing, label %check, label %writing
check:
  %bad = call i1 @faulted(ptr %p)
  br i1 %bad, label %out, label %writing
writing:
  %writes = icmp eq i64 %i, %until
  br i1 %writes, label %last, label %open
last:
  %sealed = call i1 @seal(ptr %p)
  br i1 %sealed, label %open, label %out
open:
  %f = load ptr, ptr %s, align 8
  %args_at = getelementptr i8, ptr %s, i64 8
  %args = load ptr, ptr %args_at, align 8
  %sizes_at = getelementptr i8, ptr %s, i64 16
  %sizes = load ptr, ptr %sizes_at, align 8
  %blocks = WORD ptr %s, i64 4
  %chunk = WORD ptr %s, i64 5
  %claim_at = getelementptr i8, ptr %s, i64 48
  %done_at = getelementptr i8, ptr %s, i64 56
  br label %claim
claim:
  %v = load atomic i64, ptr %claim_at monotonic, align 8
  %v_gen = lshr i64 %v, 32
  %current = icmp eq i64 %v_gen, %gen
  br i1 %current, label %left, label %out
left:
  %b0 = and i64 %v, 4294967295
  %have = icmp slt i64 %b0, %blocks
  br i1 %have, label %take, label %next
take:
  %v1 = add i64 %v, %chunk
  %swap = cmpxchg ptr %claim_at, i64 %v, i64 %v1 acq_rel monotonic
  %got = extractvalue { i64, i1 } %swap, 1
  br i1 %got, label %work, label %claim
work:
  %end = add i64 %b0, %chunk
  %b1 = call i64 @llvm.smin.i64(i64 %end, i64 %blocks)
  call void %f(ptr %args, ptr %sizes, i64 %b0, i64 %b1)
  %count = sub i64 %b1, %b0
  %before = atomicrmw add ptr %done_at, i64 %count acq_rel
  br i1 %owner, label %consider, label %go_on
consider:
  call void @ask(ptr %p)
  br label %go_on
go_on:
  %ended = call i1 @stopped(ptr %p)
  br i1 %ended, label %out, label %claim
next:
  %i1 = add i64 %i, 1
  br label %step
out:
  ret void
}

define internal void @join(ptr %c, ptr %slot) nounwind {
entry:
  %door = getelementptr i8, ptr %c, i64 128
  %plan_at = getelementptr i8, ptr %c, i64 192
  %places = getelementptr i8, ptr %c, i64 200
  %d = load atomic i64, ptr %door seq_cst, align 8
  %bit = and i64 %d, 1
  %is_open = icmp ne i64 %bit, 0
  br i1 %is_open, label %publish, label %out
publish:
  %p = load atomic ptr, ptr %plan_at monotonic, align 8
  %was = atomicrmw xchg ptr %slot, ptr %p seq_cst
  %d1 = load atomic i64, ptr %door seq_cst, align 8
  %same = icmp eq i64 %d, %d1
  br i1 %same, label %seat, label %leave
seat:
  %seats = atomicrmw sub ptr %places, i64 1 acq_rel
  %free = icmp sgt i64 %seats, 0
  br i1 %free, label %enter, label %leave
enter:
  call void @spread(ptr %c)
  %gen = lshr i64 %d, 1
  call void @drive(ptr %p, i64 %gen, i1 false)
  br label %leave
leave:
  store atomic ptr null, ptr %slot release, align 8
  br label %out
out:
  ret void
}

define internal ptr @worker(ptr %slot) nounwind {
entry:
  %control_at = getelementptr i8, ptr %slot, i64 8
  %c = load ptr, ptr %control_at, align 8
  %limit_at = getelementptr i8, ptr %c, i64 384
  br label %top
top:
  %last = load atomic i32, ptr %c seq_cst, align 4
  call void @join(ptr %c, ptr %slot)
  %limit = load atomic i64, ptr %limit_at monotonic, align 8
  br label %test
test:
  %n = phi i64 [ 0, %top ], [ %n1, %again ]
  %now = load atomic i32, ptr %c acquire, align 4
  %changed = icmp ne i32 %now, %last
  br i1 %changed, label %top, label %idle
idle:
  %n1 = add i64 %n, 1
  %tired = icmp sgt i64 %n1, %limit
  br i1 %tired, label %rest, label %again
again:
  {pause}
  br label %test
rest:
  call void @sleep_on(ptr %c, i32 %last)
  br label %top
}

; blocks keep what they pack on the stack, whatever size threads have by default here
define i32 @start(ptr %slot) nounwind {
  %thread = alloca i64, align 8
  %attributes = alloca [128 x i8], align 16
  %a = call i32 @pthread_attr_init(ptr %attributes)
  %b = call i32 @pthread_attr_setstacksize(ptr %attributes, i64 {stack_bytes})
  %r = call i32 @pthread_create(ptr %thread, ptr %attributes, ptr @worker, ptr %slot)
  %c = call i32 @pthread_attr_destroy(ptr %attributes)
  ret i32 %r
}

define internal void @reset(ptr %p, i64 %gen) nounwind {
entry:
  %n = WORD ptr %p, i64 0
  %tag = shl i64 %gen, 32
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %next ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %next, label %out
next:
  %s = ROW ptr %p, i64 %i
  %claim_at = getelementptr i8, ptr %s, i64 48
  %done_at = getelementptr i8, ptr %s, i64 56
  store atomic i64 %tag, ptr %claim_at release, align 8
  store atomic i64 0, ptr %done_at release, align 8
  %i1 = add i64 %i, 1
  br label %test
out:
  ret void
}

define internal i1 @together(ptr %c, ptr %p, i64 %workers) nounwind {
entry:
  %busy = getelementptr i8, ptr %c, i64 256
  %swap = cmpxchg ptr %busy, i64 0, i64 1 acq_rel monotonic
  %locked = extractvalue { i64, i1 } %swap, 1
  br i1 %locked, label %begin, label %no
begin:
  %gen_at = getelementptr i8, ptr %c, i64 320
  %old = load i64, ptr %gen_at, align 8
  %up = add i64 %old, 1
  %gen = and i64 %up, 4294967295
  store i64 %gen, ptr %gen_at, align 8
  call void @reset(ptr %p, i64 %gen)
  %door = getelementptr i8, ptr %c, i64 128
  %plan_at = getelementptr i8, ptr %c, i64 192
  %places = getelementptr i8, ptr %c, i64 200
  %sleepers = getelementptr i8, ptr %c, i64 64
  store atomic ptr %p, ptr %plan_at monotonic, align 8
  store atomic i64 %workers, ptr %places monotonic, align 8
  call void @note_cpu(ptr %c)
  %closed = shl i64 %gen, 1
  %opened = or i64 %closed, 1
  store atomic i64 %opened, ptr %door seq_cst, align 8
  %signal = atomicrmw add ptr %c, i32 1 seq_cst
  %asleep = load atomic i32, ptr %sleepers seq_cst, align 4
  %any = icmp ne i32 %asleep, 0
  br i1 %any, label %wake, label %go
wake:
  %count = trunc i64 %workers to i32
  call void @wake(ptr %c, i32 %count)
  br label %go
go:
  call void @drive(ptr %p, i64 %gen, i1 true)
  store atomic i64 %closed, ptr %door seq_cst, align 8
  store atomic i64 0, ptr %busy release, align 8
  ret i1 true
no:
  ret i1 false
}

; how many workers to call: none where other runs keep the processors busy, or while this plan is
; better off without
define internal i64 @inviting(ptr %c, ptr %p, i64 %others, i64 %workers) nounwind {
entry:
  %cores_at = getelementptr i8, ptr %c, i64 400
  %cores = load atomic i64, ptr %cores_at monotonic, align 8
  %idle_all = sub i64 %cores, %others
  %idle = sub i64 %idle_all, 1
  %rest = call i64 @llvm.smin.i64(i64 %idle, i64 %workers)
  %first = icmp eq i64 %others, 0
  %wanted = select i1 %first, i64 %workers, i64 %rest
  %limit_at = getelementptr i8, ptr %c, i64 408
  %limit = load atomic i64, ptr %limit_at monotonic, align 8
  %help = call i64 @llvm.smin.i64(i64 %limit, i64 %wanted)
  %hold = WORD ptr %p, i64 19
  %held = icmp sgt i64 %hold, 0
  br i1 %held, label %none, label %some
none:
  %hold_at = getelementptr i8, ptr %p, i64 152
  %hold1 = sub i64 %hold, 1
  %last = icmp eq i64 %hold1, 0
  %left = select i1 %last, i64 -1, i64 %hold1
  store i64 %left, ptr %hold_at, align 8
  ret i64 0
some:
  ret i64 %help
}

; A worker without a processor holds a run up by milliseconds.  So the times of runs with and
; without the team are compared; only one that took much longer than the best leads to some without.
; The first run after those tells nothing: it may have had to wake the workers.
define internal void @learn(ptr %p, i64 %t, i1 %team) nounwind {
entry:
  %best_at = getelementptr i8, ptr %p, i64 128
  %with_at = getelementptr i8, ptr %p, i64 136
  %without_at = getelementptr i8, ptr %p, i64 144
  %hold_at = getelementptr i8, ptr %p, i64 152
  %length_at = getelementptr i8, ptr %p, i64 160
  %without = load i64, ptr %without_at, align 8
  br i1 %team, label %again, label %unhelped
again:
  %hold = load i64, ptr %hold_at, align 8
  %waking = icmp slt i64 %hold, 0
  br i1 %waking, label %woken, label %helped
woken:
  store i64 0, ptr %hold_at, align 8
  ret void
unhelped:
  %unknown = icmp eq i64 %without, 0
  %change = sub i64 %t, %without
  %step = ashr i64 %change, 2
  %next = add i64 %without, %step
  %first = select i1 %unknown, i64 %t, i64 %next
  store i64 %first, ptr %without_at, align 8
  ret void
helped:
  %best = load i64, ptr %best_at, align 8
  %new = icmp eq i64 %best, 0
  %slack = lshr i64 %best, 8
  %older = add i64 %best, %slack
  %least = call i64 @llvm.smin.i64(i64 %older, i64 %t)
  %best1 = select i1 %new, i64 %t, i64 %least
  store i64 %best1, ptr %best_at, align 8
  %with = load i64, ptr %with_at, align 8
  %diff = sub i64 %t, %with
  %part = ashr i64 %diff, 3
  %moved = add i64 %with, %part
  %with1 = select i1 %new, i64 %t, i64 %moved
  store i64 %with1, ptr %with_at, align 8
  %half = lshr i64 %best1, 1
  %usual = add i64 %best1, %half
  %bound = add i64 %usual, {stall_ns}
  %slow = icmp sgt i64 %t, %bound
  %length = load i64, ptr %length_at, align 8
  br i1 %slow, label %doubt, label %fine
fine:
  %shorter = lshr i64 %length, 1
  store i64 %shorter, ptr %length_at, align 8
  ret void
doubt:
  %fade = lshr i64 %without, 4
  %without1 = sub i64 %without, %fade
  store i64 %without1, ptr %without_at, align 8
  %margin = ashr i64 %with1, 3
  %bar = sub i64 %with1, %margin
  %better = icmp slt i64 %without1, %bar
  br i1 %better, label %pause, label %out
pause:
  %twice = shl i64 %length, 1
  %more = or i64 %twice, 1
  %runs = sdiv i64 {hold_ns}, %bound
  %some = call i64 @llvm.smax.i64(i64 %runs, i64 {least_hold})
  %longest = call i64 @llvm.smin.i64(i64 %some, i64 {longest_hold})
  %most = call i64 @llvm.smin.i64(i64 %more, i64 %longest)
  store i64 %most, ptr %length_at, align 8
  store i64 %most, ptr %hold_at, align 8
  br label %out
out:
  ret void
}

define void @quiesce(ptr %c, ptr %p) nounwind {
entry:
  %n_at = getelementptr i8, ptr %c, i64 392
  %n = load atomic i64, ptr %n_at seq_cst, align 8
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %next ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %look, label %out
look:
  %o = shl i64 %i, 6
  %o1 = add i64 %o, 512
  %slot = getelementptr i8, ptr %c, i64 %o1
  br label %poll
poll:
  %spins = phi i64 [ 0, %look ], [ %spins1, %again ]
  %inside = load atomic ptr, ptr %slot seq_cst, align 8
  %here = icmp eq ptr %inside, %p
  br i1 %here, label %again, label %next
again:
  %spins1 = call i64 @relax(i64 %spins)
  br label %poll
next:
  %i1 = add i64 %i, 1
  br label %test
out:
  ret void
}

define i64 @run(ptr %c, ptr %p, i64 %workers) nounwind {
entry:
  call void @begin(ptr %p)
  call void @patch(ptr %p, i1 true)
  %useful = WORD ptr %p, i64 4
  %may = icmp ne i64 %useful, 0
  %want = icmp sgt i64 %workers, 0
  %try = and i1 %may, %want
  br i1 %try, label %ask, label %single
ask:
  %began = call i64 @now()
  %running = getelementptr i8, ptr %c, i64 448
  %others = atomicrmw add ptr %running, i64 1 acq_rel
  %help = call i64 @inviting(ptr %c, ptr %p, i64 %others, i64 %workers)
  %any = icmp sgt i64 %help, 0
  br i1 %any, label %team, label %by_choice
team:
  %ran = call i1 @together(ptr %c, ptr %p, i64 %help)
  br i1 %ran, label %counted, label %by_choice
by_choice:
  call void @alone(ptr %p)
  br label %counted
counted:
  %fewer = atomicrmw sub ptr %running, i64 1 acq_rel
  %ended = call i64 @now()
  %took = sub i64 %ended, %began
  %single_run = icmp eq i64 %others, 0
  br i1 %single_run, label %learn, label %done
learn:
  call void @learn(ptr %p, i64 %took, i1 %any)
  br label %done
single:
  call void @alone(ptr %p)
  br label %done
done:
  %result = call i64 @outcome(ptr %p)
  %good = icmp eq i64 %result, 0
  br i1 %good, label %out, label %leave
leave:
  ; steps were left unclaimed or unfinished: no worker may still be near them when their arguments
  ; are cleared, and the records for the next run
  call void @quiesce(ptr %c, ptr %p)
  br label %out
out:
  call void @patch(ptr %p, i1 false)
  ret i64 %result
}
"""
