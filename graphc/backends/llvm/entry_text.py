"""LLVM text of the native entry: the function Python calls, and how it recognises its arguments.

One function serves every entry: all it knows of plans, sizes and Python objects it reads from
tables of 64-bit words.  The table of an entry, found through the first slot of `self`:

    0 inputs   1 outputs   2 form of the result: 0 bare, 1 list, 2 tuple   3 cases
    4 slow callable   5 type ndarray   6 PyArray_NewFromDescr   7 PyArray_Return
    8 the string 'out'   9 the driver's `run`   10 a control block without workers
    16 one word per case: its table

The table of a case, which is one set of shapes:

    0 busy   1 gate   2 what the gate must hold   3 plan table   4 borders   5 whether it is long
    6 border of the first output
    16 one row of 16 words per input, then per output:
        0 dimensions   1 bytes   2 border   3 kind of dtype   4 descriptor   5 sizes

`busy` needs no atomics: it is read and written with the GIL held.  Whatever a case does not
recognise, and every failure of the plan, goes to the slow callable, which also makes the errors.
Imports: nothing.
"""

from __future__ import annotations

ENTRY_WORDS = 16
CASE_WORDS = 16
ROW_WORDS = 16
OUT_WORD = 8
DIMS_AT = 5
"""The word of a row at which its sizes start."""

TYPE, DATA, NDIM, DIMS, DESCR, FLAGS = 8, 16, 24, 32, 56, 64
"""Where an object keeps its type, and an ndarray the rest, in bytes."""

KIND = 24
"""Where a dtype keeps the eight bytes that say which it is; one of them, of flags, is no part."""

KIND_MASK = ~(0xFF << 24) & (2**64 - 1)

TUPLE_SIZE, TUPLE_ITEM = 16, 24

CONTIGUOUS, ALIGNED, WRITEABLE = 1, 0x100, 0x400

_FOR_INPUT = CONTIGUOUS | ALIGNED
_FOR_OUTPUT = CONTIGUOUS | ALIGNED | WRITEABLE

# PyArray_NewFromDescr(subtype, descr, nd, dims, strides, data, flags, obj)
_NEW_ARGS = "ptr %ndarray, ptr %descr, i32 %ndim, ptr %dims, ptr null, ptr null, i32 0, ptr null"

ENTRY = f"""
declare void @Py_IncRef(ptr)
declare void @Py_DecRef(ptr)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare ptr @PyList_New(i64)
declare ptr @PyTuple_New(i64)
declare i32 @PyList_SetItem(ptr, i64, ptr)
declare i32 @PyTuple_SetItem(ptr, i64, ptr)
declare ptr @PyObject_Vectorcall(ptr, ptr, i64, ptr)

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

; whether the arguments are the case's; `out`, where it is given, must not overlap an input
define internal i1 @fits(ptr %e, ptr %case, ptr %args, ptr %out) nounwind {{
entry:
  %busy = WORD ptr %case, i64 0
  %gate_word = getelementptr i64, ptr %case, i64 1
  %gate = load ptr, ptr %gate_word, align 8
  %held = load i64, ptr %gate, align 8
  %wanted = WORD ptr %case, i64 2
  %open = icmp eq i64 %held, %wanted
  %idle = icmp eq i64 %busy, 0
  %ready = and i1 %open, %idle
  br i1 %ready, label %begin, label %no
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

define internal ptr @find(ptr %e, ptr %args, ptr %out) nounwind {{
entry:
  %n = WORD ptr %e, i64 3
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %next ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %look, label %none
look:
  %at = add i64 %i, {ENTRY_WORDS}
  %case_at = getelementptr i64, ptr %e, i64 %at
  %case = load ptr, ptr %case_at, align 8
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
  %descr_at = getelementptr i64, ptr %row, i64 4
  %descr = load ptr, ptr %descr_at, align 8
  %dims = getelementptr i64, ptr %row, i64 {DIMS_AT}
  call void @Py_IncRef(ptr %descr) ; the array takes one reference
  %o = call ptr %new({_NEW_ARGS})
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

define internal i64 @run_case(ptr %e, ptr %case) nounwind {{
entry:
  %run_at = getelementptr i64, ptr %e, i64 9
  %run = load ptr, ptr %run_at, align 8
  %control_at = getelementptr i64, ptr %e, i64 10
  %control = load ptr, ptr %control_at, align 8
  %plan_at = getelementptr i64, ptr %case, i64 3
  %plan = load ptr, ptr %plan_at, align 8
  %long = WORD ptr %case, i64 5
  %others = icmp ne i64 %long, 0
  br i1 %others, label %let, label %hold
let:
  %thread = call ptr @PyEval_SaveThread()
  %late = call i64 %run(ptr %control, ptr %plan, i64 0)
  call void @PyEval_RestoreThread(ptr %thread)
  ret i64 %late
hold:
  %soon = call i64 %run(ptr %control, ptr %plan, i64 0)
  ret i64 %soon
}}

; the results in the form asked for, with NumPy scalars for arrays of no dimension
define internal ptr @deliver(ptr %e, ptr %outputs) {{
entry:
  %m = WORD ptr %e, i64 1
  %form = WORD ptr %e, i64 2
  %return_at = getelementptr i64, ptr %e, i64 7
  %return = load ptr, ptr %return_at, align 8
  %bare = icmp eq i64 %form, 0
  br i1 %bare, label %single, label %several
single:
  %only = load ptr, ptr %outputs, align 8
  %value = call ptr %return(ptr %only)
  ret ptr %value
several:
  %listed = icmp eq i64 %form, 1
  br i1 %listed, label %list, label %tuple
list:
  %l = call ptr @PyList_New(i64 %m)
  br label %made
tuple:
  %t = call ptr @PyTuple_New(i64 %m)
  br label %made
made:
  %all = phi ptr [ %l, %list ], [ %t, %tuple ]
  %none = icmp eq ptr %all, null
  br i1 %none, label %lost, label %test
test:
  %i = phi i64 [ 0, %made ], [ %i1, %next ]
  %more = icmp slt i64 %i, %m
  br i1 %more, label %one, label %done
one:
  %at = getelementptr ptr, ptr %outputs, i64 %i
  %o = load ptr, ptr %at, align 8
  %x = call ptr %return(ptr %o)
  %unmade = icmp eq ptr %x, null
  br i1 %unmade, label %broken, label %put
put:
  br i1 %listed, label %into_list, label %into_tuple
into_list:
  %r = call i32 @PyList_SetItem(ptr %all, i64 %i, ptr %x)
  br label %next
into_tuple:
  %s = call i32 @PyTuple_SetItem(ptr %all, i64 %i, ptr %x)
  br label %next
next:
  %i1 = add i64 %i, 1
  br label %test
done:
  ret ptr %all
broken:
  call void @Py_DecRef(ptr %all)
  ret ptr null
lost:
  call void @drop(ptr %outputs, i64 %m)
  ret ptr null
}}

; the slow callable, with the same arguments
define internal ptr @give_up(ptr %e, ptr %args, i64 %n, ptr %names) {{
  %slow_at = getelementptr i64, ptr %e, i64 4
  %slow = load ptr, ptr %slow_at, align 8
  %r = call ptr @PyObject_Vectorcall(ptr %slow, ptr %args, i64 %n, ptr %names)
  ret ptr %r
}}

define ptr @entry(ptr %self, ptr %args, i64 %n, ptr %names) {{
entry:
  %table_at = getelementptr i8, ptr %self, i64 {DATA}
  %table = load ptr, ptr %table_at, align 8
  %words_at = getelementptr i8, ptr %table, i64 {DATA}
  %e = load ptr, ptr %words_at, align 8
  %wanted = WORD ptr %e, i64 0
  %m = WORD ptr %e, i64 1
  %enough = icmp eq i64 %n, %wanted
  br i1 %enough, label %named, label %slow
named:
  %positional = icmp eq ptr %names, null
  br i1 %positional, label %recognise, label %count
count:
  %names_at = getelementptr i8, ptr %names, i64 {TUPLE_SIZE}
  %names_n = load i64, ptr %names_at, align 8
  %alone = icmp eq i64 %names_n, 1
  br i1 %alone, label %spell, label %slow
spell:
  %name_at = getelementptr i8, ptr %names, i64 {TUPLE_ITEM}
  %name = load i64, ptr %name_at, align 8
  %out_name = WORD ptr %e, i64 8
  %is_out = icmp eq i64 %name, %out_name
  %form = WORD ptr %e, i64 2
  %single = icmp eq i64 %form, 0
  %direct = and i1 %is_out, %single
  br i1 %direct, label %given, label %slow
given:
  %out_at = getelementptr ptr, ptr %args, i64 %n
  %out_given = load ptr, ptr %out_at, align 8
  br label %recognise
recognise:
  %out = phi ptr [ null, %named ], [ %out_given, %given ]
  %case = call ptr @find(ptr %e, ptr %args, ptr %out)
  %known = icmp ne ptr %case, null
  br i1 %known, label %prepare, label %slow
prepare:
  store i64 1, ptr %case, align 8
  %borders_at = getelementptr i64, ptr %case, i64 4
  %borders = load ptr, ptr %borders_at, align 8
  %first = WORD ptr %case, i64 6
  %outputs = getelementptr ptr, ptr %borders, i64 %first
  call void @name_inputs(ptr %e, ptr %case, ptr %args)
  %fresh = icmp eq ptr %out, null
  br i1 %fresh, label %make, label %take
make:
  %good = call i1 @make_outputs(ptr %e, ptr %case, ptr %outputs)
  br i1 %good, label %run, label %failed
take:
  call void @Py_IncRef(ptr %out)
  store ptr %out, ptr %outputs, align 8
  br label %run
run:
  %fault = call i64 @run_case(ptr %e, ptr %case)
  %bad = icmp ne i64 %fault, 0
  br i1 %bad, label %refuse, label %finish
finish:
  br i1 %fresh, label %wrap, label %same
wrap:
  %result = call ptr @deliver(ptr %e, ptr %outputs)
  store i64 0, ptr %case, align 8
  ret ptr %result
same:
  store i64 0, ptr %case, align 8
  ret ptr %out
failed:
  store i64 0, ptr %case, align 8
  ret ptr null
refuse:
  %count_made = select i1 %fresh, i64 %m, i64 1
  call void @drop(ptr %outputs, i64 %count_made)
  store i64 0, ptr %case, align 8
  br label %slow
slow:
  %answer = call ptr @give_up(ptr %e, ptr %args, i64 %n, ptr %names)
  ret ptr %answer
}}
"""
