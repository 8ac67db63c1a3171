"""LLVM text of native entries: how they recognise their arguments, run a plan and give results.

One piece of code serves every entry: all it knows of plans, sizes and Python objects it reads from
tables of 64-bit words.  The table of an entry, found through the first slot of a `Table` object:

    0 inputs   1 outputs   2 form of the result: 0 bare, 1 list, 2 tuple   3 cases
    4 slow callable   5 type ndarray   6 PyArray_NewFromDescr   7 PyArray_Return
    8 the string 'out'   9 the driver's `run`   10 the words of the process
    11 where to look before anything else   12 what must be there   13 the thread it holds for, or 0
    14 None   15 picks
    16 one word per case: its table

The words of the process are 0 the control block of its team   1 how many workers that has.

The table of a case, which is one set of shapes:

    0 busy   1 gate   2 what the gate must hold   3 plan table   4 borders   5 whether it is long
    6 border of the first output   7 workers it wants   8 whether an output has a maker
    9 addresses of words that must add up to word 11   10 how many   11 their sum
    12 a word that counts the runs, or null
    13 a word that runs without the GIL and variables take turns by, or null   14 whether it writes
    some   15 what to call when its turn is over and somebody waits
    16 one row of 16 words per input, then per output:
        0 dimensions   1 bytes   2 border   3 kind of dtype   4 descriptor   5 sizes
        15 a callable that makes the array, or 0

The picks of a call say how results become what was asked for:

    0 form   1 number of values   2 per value the result it is, -1 for None

`busy` needs no atomics: it is read and written with the GIL held.  A maker is Python code, so what
was recognised before it ran is looked at again.  Whatever a case does not recognise, and every
failure of the plan, is declined: the slow callable does it then, and also makes the errors.
`entry_turn_text` has what runs a case, `entry_methods_text` the functions that Python calls.
Imports: nothing.
"""

from __future__ import annotations

ENTRY_WORDS = 16
CASE_WORDS = 16
ROW_WORDS = 16
OUT_WORD, GATE_WORD, PICKS_WORD = 8, 11, 15
DIMS_AT, MAKER_AT = 5, 15
"""The words of a row at which its sizes start and end."""

TYPE, DATA, NDIM, DIMS, DESCR, FLAGS = 8, 16, 24, 32, 56, 64
"""Where an object keeps its type, and an ndarray the rest, in bytes."""

KIND = 24
"""Where a dtype keeps the eight bytes that say which it is; one of them, of flags, is no part."""

KIND_MASK = ~(0xFF << 24) & (2**64 - 1)

TUPLE_SIZE, TUPLE_ITEM = 16, 24

LIST_ITEMS = 24
"""Where a list keeps the address of its items; its size is where a tuple's is."""

CONTIGUOUS, ALIGNED, WRITEABLE = 1, 0x100, 0x400

_FOR_INPUT = CONTIGUOUS | ALIGNED
_FOR_OUTPUT = CONTIGUOUS | ALIGNED | WRITEABLE

# PyArray_NewFromDescr(subtype, descr, nd, dims, strides, data, flags, obj)
_NEW_ARGS = "ptr %ndarray, ptr %descr, i32 %ndim, ptr %dims, ptr null, ptr null, i32 0, ptr null"

SERVE = f"""
declare void @Py_IncRef(ptr)
declare void @Py_DecRef(ptr)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare ptr @PyList_New(i64)
declare ptr @PyTuple_New(i64)
declare i32 @PyList_SetItem(ptr, i64, ptr)
declare i32 @PyTuple_SetItem(ptr, i64, ptr)
declare ptr @PyObject_CallNoArgs(ptr)
declare i64 @PyThread_get_thread_ident()

; whether `a` is a plain array of the row's dtype and shape, with all of these flags
define internal i1 @matches(ptr %a, ptr %row, ptr %ndarray, i32 %flags) nounwind {{
entry:
  %type_at = getelementptr i8, ptr %a, i64 {TYPE}
  %type = load ptr, ptr %type_at, align 8
  %plain = icmp eq ptr %type, %ndarray
  br i1 %plain, label %dtype, label %no
dtype:
  %descr_at = getelementptr i8, ptr %a, i64 {DESCR}
  %descr = load ptr, ptr %descr_at, align 8
  %kind_at = getelementptr i8, ptr %descr, i64 {KIND}
  %kind_all = load i64, ptr %kind_at, align 8
  %kind = and i64 %kind_all, {KIND_MASK}
  %wanted_kind = WORD ptr %row, i64 3
  %same_kind = icmp eq i64 %kind, %wanted_kind
  %flags_at = getelementptr i8, ptr %a, i64 {FLAGS}
  %flags_all = load i32, ptr %flags_at, align 4
  %flags_set = and i32 %flags_all, %flags
  %all_set = icmp eq i32 %flags_set, %flags
  %ndim_at = getelementptr i8, ptr %a, i64 {NDIM}
  %ndim32 = load i32, ptr %ndim_at, align 4
  %ndim = sext i32 %ndim32 to i64
  %wanted_ndim = WORD ptr %row, i64 0
  %same_ndim = icmp eq i64 %ndim, %wanted_ndim
  %two = and i1 %same_kind, %all_set
  %three = and i1 %two, %same_ndim
  br i1 %three, label %sizes, label %no
sizes:
  %dims_at = getelementptr i8, ptr %a, i64 {DIMS}
  %dims = load ptr, ptr %dims_at, align 8
  %wanted = getelementptr i64, ptr %row, i64 {DIMS_AT}
  br label %test
test:
  %i = phi i64 [ 0, %sizes ], [ %i1, %look ]
  %more = icmp slt i64 %i, %ndim
  br i1 %more, label %look, label %yes
look:
  %size = WORD ptr %dims, i64 %i
  %other = WORD ptr %wanted, i64 %i
  %i1 = add i64 %i, 1
  %same = icmp eq i64 %size, %other
  br i1 %same, label %test, label %no
yes:
  ret i1 true
no:
  ret i1 false
}}

; whether nobody has written the variables of what the case keeps
define internal i1 @fresh(ptr %case, i64 %n) nounwind {{
entry:
  %words_at = getelementptr i64, ptr %case, i64 9
  %words = load ptr, ptr %words_at, align 8
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %add ]
  %total = phi i64 [ 0, %entry ], [ %total1, %add ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %add, label %compare
add:
  %word_at = getelementptr ptr, ptr %words, i64 %i
  %word = load ptr, ptr %word_at, align 8
  %held = load i64, ptr %word, align 8
  %total1 = add i64 %total, %held
  %i1 = add i64 %i, 1
  br label %test
compare:
  %wanted = WORD ptr %case, i64 11
  %same = icmp eq i64 %total, %wanted
  ret i1 %same
}}

; whether the arguments are the case's; `out`, where it is given, must not overlap an input
define internal i1 @fits(ptr %e, ptr %case, ptr %args, ptr %out) nounwind {{
entry:
  %gate_word = getelementptr i64, ptr %case, i64 1
  %gate = load ptr, ptr %gate_word, align 8
  %held = load i64, ptr %gate, align 8
  %wanted = WORD ptr %case, i64 2
  %open = icmp eq i64 %held, %wanted
  br i1 %open, label %keeping, label %no
keeping:
  %turn = call i1 @may_begin(ptr %case)
  br i1 %turn, label %kept, label %no
kept:
  %words = WORD ptr %case, i64 10
  %keeps = icmp ne i64 %words, 0
  br i1 %keeps, label %look_again, label %begin
look_again:
  %still = call i1 @fresh(ptr %case, i64 %words)
  br i1 %still, label %begin, label %no
begin:
  %n = WORD ptr %e, i64 0
  %ndarray_at = getelementptr i64, ptr %e, i64 5
  %ndarray = load ptr, ptr %ndarray_at, align 8
  %given = icmp ne ptr %out, null
  %out_row = TABLE ptr %case, i64 %n
  br i1 %given, label %target, label %test
target:
  %right = call i1 @matches(ptr %out, ptr %out_row, ptr %ndarray, i32 {_FOR_OUTPUT})
  br i1 %right, label %span, label %no
span:
  %out_data_at = getelementptr i8, ptr %out, i64 {DATA}
  %out_first = load i64, ptr %out_data_at, align 8
  %out_bytes = WORD ptr %out_row, i64 1
  %out_end = add i64 %out_first, %out_bytes
  br label %test
test:
  %first = phi i64 [ 0, %begin ], [ %out_first, %span ], [ %first, %next ]
  %end = phi i64 [ 0, %begin ], [ %out_end, %span ], [ %end, %next ]
  %i = phi i64 [ 0, %begin ], [ 0, %span ], [ %i1, %next ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %look, label %yes
look:
  %row = TABLE ptr %case, i64 %i
  %a_at = getelementptr ptr, ptr %args, i64 %i
  %a = load ptr, ptr %a_at, align 8
  %same = call i1 @matches(ptr %a, ptr %row, ptr %ndarray, i32 {_FOR_INPUT})
  br i1 %same, label %apart, label %no
apart:
  %data_at = getelementptr i8, ptr %a, i64 {DATA}
  %a_first = load i64, ptr %data_at, align 8
  %a_bytes = WORD ptr %row, i64 1
  %a_end = add i64 %a_first, %a_bytes
  %below = icmp ult i64 %a_first, %end
  %above = icmp ult i64 %first, %a_end
  %overlap = and i1 %below, %above
  br i1 %overlap, label %no, label %next
next:
  %i1 = add i64 %i, 1
  br label %test
yes:
  ret i1 true
no:
  ret i1 false
}}

; the case for the arguments, or null
define internal ptr @find(ptr %e, ptr %args, ptr %out) nounwind {{
entry:
  %n = WORD ptr %e, i64 3
  %process_at = getelementptr i64, ptr %e, i64 10
  %process = load ptr, ptr %process_at, align 8
  %have = WORD ptr %process, i64 1
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %next ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %look, label %none
look:
  %at = add i64 %i, {ENTRY_WORDS}
  %case_at = getelementptr i64, ptr %e, i64 %at
  %case = load ptr, ptr %case_at, align 8
  %busy = WORD ptr %case, i64 0
  %idle = icmp eq i64 %busy, 0
  %workers = WORD ptr %case, i64 7
  %enough = icmp sle i64 %workers, %have
  %ready = and i1 %idle, %enough
  br i1 %ready, label %compare, label %next
compare:
  %good = call i1 @fits(ptr %e, ptr %case, ptr %args, ptr %out)
  br i1 %good, label %found, label %next
next:
  %i1 = add i64 %i, 1
  br label %test
found:
  ret ptr %case
none:
  ret ptr null
}}

define internal void @name_inputs(ptr %e, ptr %case, ptr %args) nounwind {{
entry:
  %n = WORD ptr %e, i64 0
  %borders_at = getelementptr i64, ptr %case, i64 4
  %borders = load ptr, ptr %borders_at, align 8
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %one ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %one, label %done
one:
  %a_at = getelementptr ptr, ptr %args, i64 %i
  %a = load ptr, ptr %a_at, align 8
  %row = TABLE ptr %case, i64 %i
  %border = WORD ptr %row, i64 2
  %to = getelementptr ptr, ptr %borders, i64 %border
  store ptr %a, ptr %to, align 8
  %i1 = add i64 %i, 1
  br label %test
done:
  ret void
}}

; give up the first `n` outputs
define internal void @drop(ptr %outputs, i64 %n) nounwind {{
entry:
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %one ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %one, label %done
one:
  %at = getelementptr ptr, ptr %outputs, i64 %i
  %o = load ptr, ptr %at, align 8
  call void @Py_DecRef(ptr %o)
  %i1 = add i64 %i, 1
  br label %test
done:
  ret void
}}

; fresh arrays for the outputs; false, with the exception set, where there is no memory
define internal i1 @make_outputs(ptr %e, ptr %case, ptr %outputs) nounwind {{
entry:
  %n = WORD ptr %e, i64 0
  %m = WORD ptr %e, i64 1
  %type_at = getelementptr i64, ptr %e, i64 5
  %ndarray = load ptr, ptr %type_at, align 8
  %new_at = getelementptr i64, ptr %e, i64 6
  %new = load ptr, ptr %new_at, align 8
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %keep ]
  %more = icmp slt i64 %i, %m
  br i1 %more, label %one, label %good
one:
  %number = add i64 %n, %i
  %row = TABLE ptr %case, i64 %number
  %ndim64 = WORD ptr %row, i64 0
  %ndim = trunc i64 %ndim64 to i32
  %maker_at = getelementptr i64, ptr %row, i64 {MAKER_AT}
  %maker = load ptr, ptr %maker_at, align 8
  %anew = icmp eq ptr %maker, null
  br i1 %anew, label %allocate, label %ask
ask:
  %issued = call ptr @PyObject_CallNoArgs(ptr %maker)
  br label %made
allocate:
  %descr_at = getelementptr i64, ptr %row, i64 4
  %descr = load ptr, ptr %descr_at, align 8
  %dims = getelementptr i64, ptr %row, i64 {DIMS_AT}
  call void @Py_IncRef(ptr %descr) ; the array takes one reference
  %fresh = call ptr %new({_NEW_ARGS})
  br label %made
made:
  %o = phi ptr [ %issued, %ask ], [ %fresh, %allocate ]
  %failed = icmp eq ptr %o, null
  br i1 %failed, label %bad, label %keep
keep:
  %to = getelementptr ptr, ptr %outputs, i64 %i
  store ptr %o, ptr %to, align 8
  %i1 = add i64 %i, 1
  br label %test
good:
  ret i1 true
bad:
  call void @drop(ptr %outputs, i64 %i)
  ret i1 false
}}

define internal ptr @none(ptr %e) nounwind {{
  %none_at = getelementptr i64, ptr %e, i64 14
  %none = load ptr, ptr %none_at, align 8
  call void @Py_IncRef(ptr %none)
  ret ptr %none
}}

; the values asked for, with NumPy scalars for arrays of no dimension
define internal ptr @deliver(ptr %e, ptr %outputs, ptr %picks) {{
entry:
  %m = WORD ptr %e, i64 1
  %return_at = getelementptr i64, ptr %e, i64 7
  %return = load ptr, ptr %return_at, align 8
  %form = WORD ptr %picks, i64 0
  %k = WORD ptr %picks, i64 1
  %which = getelementptr i64, ptr %picks, i64 2
  %bare = icmp eq i64 %form, 0
  br i1 %bare, label %single, label %several
single:
  %has = icmp ne i64 %m, 0
  br i1 %has, label %the_one, label %none
the_one:
  %only = load ptr, ptr %outputs, align 8
  %value = call ptr %return(ptr %only)
  ret ptr %value
none:
  %empty_one = call ptr @none(ptr %e)
  ret ptr %empty_one
several:
  %listed = icmp eq i64 %form, 1
  br i1 %listed, label %list, label %tuple
list:
  %l = call ptr @PyList_New(i64 %k)
  br label %made
tuple:
  %t = call ptr @PyTuple_New(i64 %k)
  br label %made
made:
  %all = phi ptr [ %l, %list ], [ %t, %tuple ]
  %unmade = icmp eq ptr %all, null
  br i1 %unmade, label %lost, label %test
test:
  %i = phi i64 [ 0, %made ], [ %i1, %next ]
  %more = icmp slt i64 %i, %k
  br i1 %more, label %one, label %done
one:
  %index = WORD ptr %which, i64 %i
  %empty = icmp slt i64 %index, 0
  br i1 %empty, label %fill, label %pick
fill:
  %x0 = call ptr @none(ptr %e)
  br label %put
pick:
  %at = getelementptr ptr, ptr %outputs, i64 %index
  %o = load ptr, ptr %at, align 8
  %x1 = call ptr %return(ptr %o)
  br label %put
put:
  %x = phi ptr [ %x0, %fill ], [ %x1, %pick ]
  br i1 %listed, label %into_list, label %into_tuple
into_list:
  %r = call i32 @PyList_SetItem(ptr %all, i64 %i, ptr %x)
  br label %next
into_tuple:
  %s = call i32 @PyTuple_SetItem(ptr %all, i64 %i, ptr %x)
  br label %next
next:
  %failed = icmp eq ptr %x, null
  %i1 = add i64 %i, 1
  br i1 %failed, label %broken, label %test
done:
  ret ptr %all
broken:
  call void @Py_DecRef(ptr %all)
  ret ptr null
lost:
  call void @drop(ptr %outputs, i64 %m)
  ret ptr null
}}

; the results of a run on these arguments, or 1 where that is for the slow callable to do
define internal ptr @serve(ptr %e, ptr %args, ptr %out, ptr %picks) {{
entry:
  %case = call ptr @find(ptr %e, ptr %args, ptr %out)
  %known = icmp ne ptr %case, null
  br i1 %known, label %prepare, label %decline
prepare:
  store i64 1, ptr %case, align 8
  %m = WORD ptr %e, i64 1
  %borders_at = getelementptr i64, ptr %case, i64 4
  %borders = load ptr, ptr %borders_at, align 8
  %first = WORD ptr %case, i64 6
  %outputs = getelementptr ptr, ptr %borders, i64 %first
  %fresh = icmp eq ptr %out, null
  br i1 %fresh, label %make, label %take
make:
  %good = call i1 @make_outputs(ptr %e, ptr %case, ptr %outputs)
  br i1 %good, label %made, label %failed
made:
  %makers = WORD ptr %case, i64 8
  %python_ran = icmp ne i64 %makers, 0
  br i1 %python_ran, label %again, label %run
again:
  %still = call i1 @fits(ptr %e, ptr %case, ptr %args, ptr null)
  br i1 %still, label %run, label %give_back
take:
  call void @Py_IncRef(ptr %out)
  store ptr %out, ptr %outputs, align 8
  br label %run
run:
  call void @name_inputs(ptr %e, ptr %case, ptr %args)
  %fault = call i64 @run_case(ptr %e, ptr %case)
  %bad = icmp ne i64 %fault, 0
  br i1 %bad, label %why, label %finish
why:
  %raised = icmp slt i64 %fault, 0
  br i1 %raised, label %give_up, label %give_back
give_up:
  %count_lost = select i1 %fresh, i64 %m, i64 1
  call void @drop(ptr %outputs, i64 %count_lost)
  br label %failed
finish:
  br i1 %fresh, label %wrap, label %same
wrap:
  %result = call ptr @deliver(ptr %e, ptr %outputs, ptr %picks)
  store i64 0, ptr %case, align 8
  ret ptr %result
same:
  store i64 0, ptr %case, align 8
  ret ptr %out
failed:
  store i64 0, ptr %case, align 8
  ret ptr null
give_back:
  %count_made = select i1 %fresh, i64 %m, i64 1
  call void @drop(ptr %outputs, i64 %count_made)
  store i64 0, ptr %case, align 8
  br label %decline
decline:
  ret ptr inttoptr (i64 1 to ptr)
}}
"""
