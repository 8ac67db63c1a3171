"""LLVM text of the functions that Python calls: a callable, and the methods that look one up.

Three functions have the signature of METH_FASTCALL | METH_KEYWORDS: `entry` is called with a
`Table` for self; `call` and `run` are methods of objects whose first slot holds one.  The table
of `call` is an entry's.  The table of `run`, a session's method, is a small hash table:

    0 slow callable   1 places - 1   2 type list   3 type tuple   4 type dict   5 None
    6 the string 'feed_dict'
    16 one word per place: a record, or 0

A record is one combination of fetches and feeds, by identity and in order:

    0 entry   1 form of the fetches: 0 bare, 1 list, 2 tuple   2 fetches   3 feeds
    4 the object that keeps all this alive   5 set by each run   6 picks
    8 the fetches, then the keys of the feeds

Whatever is not found, or declined, goes to the slow callable; a method's has `self` first.
See `entry_text` for the other tables.  Imports: entry_text.
"""

from __future__ import annotations

from graphc.backends.llvm.entry_text import DATA, LIST_ITEMS, TUPLE_ITEM, TUPLE_SIZE, TYPE

PLACES = 128
RUN_WORDS = 16
RECORD_WORDS = 8
HASH = 0x9E3779B97F4A7C15
"""Multiplier of the hash over the addresses of the fetches; its upper bits choose a place."""

SHIFT = 40
MOST_FEEDS = 1024

METHODS = f"""
declare i64 @PyDict_Size(ptr)
declare i32 @PyDict_Next(ptr, ptr, ptr, ptr)
declare i32 @PyErr_BadArgument()
declare ptr @PyObject_Vectorcall(ptr, ptr, i64, ptr)

; the slow callable with the same arguments, after `self` where there is one
define internal ptr @slowly(ptr %slow, ptr %self, ptr %args, i64 %n, ptr %names) {{
entry:
  %bound = icmp eq ptr %self, null
  br i1 %bound, label %plain, label %measure
plain:
  %r = call ptr @PyObject_Vectorcall(ptr %slow, ptr %args, i64 %n, ptr %names)
  ret ptr %r
measure:
  %named = icmp ne ptr %names, null
  br i1 %named, label %count, label %room
count:
  %names_at = getelementptr i8, ptr %names, i64 {TUPLE_SIZE}
  %names_n = load i64, ptr %names_at, align 8
  br label %room
room:
  %extra = phi i64 [ 0, %measure ], [ %names_n, %count ]
  %total = add i64 %n, %extra
  %with_self = add i64 %total, 1
  %all = alloca ptr, i64 %with_self, align 8
  store ptr %self, ptr %all, align 8
  br label %test
test:
  %i = phi i64 [ 0, %room ], [ %i1, %one ]
  %more = icmp slt i64 %i, %total
  br i1 %more, label %one, label %done
one:
  %from = getelementptr ptr, ptr %args, i64 %i
  %a = load ptr, ptr %from, align 8
  %i1 = add i64 %i, 1
  %to = getelementptr ptr, ptr %all, i64 %i1
  store ptr %a, ptr %to, align 8
  br label %test
done:
  %n1 = add i64 %n, 1
  %q = call ptr @PyObject_Vectorcall(ptr %slow, ptr %all, i64 %n1, ptr %names)
  ret ptr %q
}}

; the value of `out`, null where there is none, 1 where the arguments are not the entry's
define internal ptr @given_out(ptr %e, ptr %args, i64 %n, ptr %names) nounwind {{
entry:
  %wanted = WORD ptr %e, i64 0
  %enough = icmp eq i64 %n, %wanted
  br i1 %enough, label %named, label %other
named:
  %positional = icmp eq ptr %names, null
  br i1 %positional, label %none, label %count
none:
  ret ptr null
count:
  %names_at = getelementptr i8, ptr %names, i64 {TUPLE_SIZE}
  %names_n = load i64, ptr %names_at, align 8
  %alone = icmp eq i64 %names_n, 1
  br i1 %alone, label %spell, label %other
spell:
  %name_at = getelementptr i8, ptr %names, i64 {TUPLE_ITEM}
  %name = load i64, ptr %name_at, align 8
  %out_name = WORD ptr %e, i64 8
  %is_out = icmp eq i64 %name, %out_name
  %form = WORD ptr %e, i64 2
  %single = icmp eq i64 %form, 0
  %direct = and i1 %is_out, %single
  br i1 %direct, label %given, label %other
given:
  %out_at = getelementptr ptr, ptr %args, i64 %n
  %out = load ptr, ptr %out_at, align 8
  ret ptr %out
other:
  ret ptr inttoptr (i64 1 to ptr)
}}

; the words of a table object
define internal ptr @words_of(ptr %table) nounwind {{
  %array_at = getelementptr i8, ptr %table, i64 {DATA}
  %array = load ptr, ptr %array_at, align 8
  %words_at = getelementptr i8, ptr %array, i64 {DATA}
  %words = load ptr, ptr %words_at, align 8
  ret ptr %words
}}

define internal ptr @answer(ptr %table, ptr %self, ptr %args, i64 %n, ptr %names) {{
entry:
  %e = call ptr @words_of(ptr %table)
  %slow_at = getelementptr i64, ptr %e, i64 4
  %slow = load ptr, ptr %slow_at, align 8
  %out = call ptr @given_out(ptr %e, ptr %args, i64 %n, ptr %names)
  %unlike = icmp eq ptr %out, inttoptr (i64 1 to ptr)
  br i1 %unlike, label %decline, label %gate
gate:
  %gate_at = getelementptr i64, ptr %e, i64 11
  %gate_word = load ptr, ptr %gate_at, align 8
  %held = load i64, ptr %gate_word, align 8
  %key = WORD ptr %e, i64 12
  %open = icmp eq i64 %held, %key
  br i1 %open, label %ask_thread, label %decline
ask_thread:
  %thread = WORD ptr %e, i64 13
  %any = icmp eq i64 %thread, 0
  br i1 %any, label %go, label %which
which:
  %me = call i64 @PyThread_get_thread_ident()
  %mine = icmp eq i64 %me, %thread
  br i1 %mine, label %go, label %decline
go:
  %picks_at = getelementptr i64, ptr %e, i64 15
  %picks = load ptr, ptr %picks_at, align 8
  %result = call ptr @serve(ptr %e, ptr %args, ptr %out, ptr %picks)
  %declined = icmp eq ptr %result, inttoptr (i64 1 to ptr)
  br i1 %declined, label %decline, label %done
done:
  ret ptr %result
decline:
  %answer = call ptr @slowly(ptr %slow, ptr %self, ptr %args, i64 %n, ptr %names)
  ret ptr %answer
}}

define ptr @entry(ptr %table, ptr %args, i64 %n, ptr %names) {{
  %r = call ptr @answer(ptr %table, ptr null, ptr %args, i64 %n, ptr %names)
  ret ptr %r
}}

define ptr @call(ptr %self, ptr %args, i64 %n, ptr %names) {{
entry:
  %table_at = getelementptr i8, ptr %self, i64 {DATA}
  %table = load ptr, ptr %table_at, align 8
  %unmade = icmp eq ptr %table, null
  br i1 %unmade, label %bad, label %go
go:
  call void @Py_IncRef(ptr %table) ; another thread may put a new one in its place
  %r = call ptr @answer(ptr %table, ptr %self, ptr %args, i64 %n, ptr %names)
  call void @Py_DecRef(ptr %table)
  ret ptr %r
bad:
  %never = call i32 @PyErr_BadArgument()
  ret ptr null
}}
"""

RUN = f"""
; whether two stretches of `n` words are equal
define internal i1 @same_words(ptr %a, ptr %b, i64 %n) nounwind {{
entry:
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %look ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %look, label %yes
look:
  %x = WORD ptr %a, i64 %i
  %y = WORD ptr %b, i64 %i
  %i1 = add i64 %i, 1
  %same = icmp eq i64 %x, %y
  br i1 %same, label %test, label %no
yes:
  ret i1 true
no:
  ret i1 false
}}

; the place where a combination with these fetches and so many feeds is looked for first
define internal i64 @place_of(
    i64 %form, ptr %fetched, i64 %k, i64 %feeds, i64 %mask
) nounwind {{
entry:
  %shifted = shl i64 %feeds, 2
  %start = or i64 %shifted, %form
  br label %test
test:
  %h = phi i64 [ %start, %entry ], [ %h1, %one ]
  %i = phi i64 [ 0, %entry ], [ %i1, %one ]
  %more = icmp slt i64 %i, %k
  br i1 %more, label %one, label %done
one:
  %x = WORD ptr %fetched, i64 %i
  %mixed = xor i64 %h, %x
  %h1 = mul i64 %mixed, {HASH - 2**64}
  %i1 = add i64 %i, 1
  br label %test
done:
  %last = mul i64 %h, {HASH - 2**64}
  %upper = lshr i64 %last, {SHIFT}
  %place = and i64 %upper, %mask
  ret i64 %place
}}

; whether the record is of this combination; the values of the feeds are written to `values`
define internal i1 @is_of(
    ptr %r, i64 %form, ptr %fetched, i64 %k, ptr %fed, i64 %feeds, ptr %values
) nounwind {{
entry:
  %position = alloca i64, align 8
  %key_at = alloca ptr, align 8
  %there = icmp ne ptr %r, null
  br i1 %there, label %counts, label %no
counts:
  %r_form = WORD ptr %r, i64 1
  %r_k = WORD ptr %r, i64 2
  %r_feeds = WORD ptr %r, i64 3
  %c1 = icmp eq i64 %r_form, %form
  %c2 = icmp eq i64 %r_k, %k
  %c3 = icmp eq i64 %r_feeds, %feeds
  %c12 = and i1 %c1, %c2
  %c123 = and i1 %c12, %c3
  br i1 %c123, label %fetches, label %no
fetches:
  %wanted = getelementptr i64, ptr %r, i64 {RECORD_WORDS}
  %c4 = call i1 @same_words(ptr %wanted, ptr %fetched, i64 %k)
  br i1 %c4, label %begin, label %no
begin:
  %keys = getelementptr i64, ptr %wanted, i64 %k
  store i64 0, ptr %position, align 8
  br label %test
test:
  %i = phi i64 [ 0, %begin ], [ %i1, %look ]
  %more = icmp slt i64 %i, %feeds
  br i1 %more, label %next, label %yes
next:
  %value_at = getelementptr ptr, ptr %values, i64 %i
  %found = call i32 @PyDict_Next(ptr %fed, ptr %position, ptr %key_at, ptr %value_at)
  %some = icmp ne i32 %found, 0
  br i1 %some, label %look, label %no
look:
  %key = load i64, ptr %key_at, align 8
  %key_wanted = WORD ptr %keys, i64 %i
  %i1 = add i64 %i, 1
  %same = icmp eq i64 %key, %key_wanted
  br i1 %same, label %test, label %no
yes:
  ret i1 true
no:
  ret i1 false
}}

define internal void @hold(ptr %values, i64 %n, i1 %up) nounwind {{
entry:
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %next ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %one, label %done
one:
  %at = getelementptr ptr, ptr %values, i64 %i
  %v = load ptr, ptr %at, align 8
  br i1 %up, label %take, label %leave
take:
  call void @Py_IncRef(ptr %v)
  br label %next
leave:
  call void @Py_DecRef(ptr %v)
  br label %next
next:
  %i1 = add i64 %i, 1
  br label %test
done:
  ret void
}}

; a run of the combination, or 1 where no record of it is found or its entry declines
define internal ptr @look_up(
    ptr %s, i64 %form, ptr %fetched, i64 %k, ptr %fed, i64 %feeds
) {{
entry:
  %values = alloca ptr, i64 %feeds, align 8
  %mask = WORD ptr %s, i64 1
  %first = call i64 @place_of(
      i64 %form, ptr %fetched, i64 %k, i64 %feeds, i64 %mask)
  %second = xor i64 %first, 1
  br label %probe
probe:
  %place = phi i64 [ %first, %entry ], [ %second, %elsewhere ]
  %again = phi i1 [ false, %entry ], [ true, %elsewhere ]
  %at = add i64 %place, {RUN_WORDS}
  %r_at = getelementptr ptr, ptr %s, i64 %at
  %r = load ptr, ptr %r_at, align 8
  %good = call i1 @is_of(
      ptr %r, i64 %form, ptr %fetched, i64 %k, ptr %fed, i64 %feeds, ptr %values)
  br i1 %good, label %found, label %elsewhere
elsewhere:
  br i1 %again, label %decline, label %probe
found:
  %used = getelementptr i64, ptr %r, i64 5
  store i64 1, ptr %used, align 8
  %owner_at = getelementptr i64, ptr %r, i64 4
  %owner = load ptr, ptr %owner_at, align 8
  %e = load ptr, ptr %r, align 8
  %picks_at = getelementptr i64, ptr %r, i64 6
  %picks = load ptr, ptr %picks_at, align 8
  call void @Py_IncRef(ptr %owner)
  call void @hold(ptr %values, i64 %feeds, i1 true)
  %result = call ptr @serve(ptr %e, ptr %values, ptr null, ptr %picks)
  call void @hold(ptr %values, i64 %feeds, i1 false)
  call void @Py_DecRef(ptr %owner)
  ret ptr %result
decline:
  ret ptr inttoptr (i64 1 to ptr)
}}

; the feeds among the arguments: null for none, 1 for what is not (fetches, feeds)
define internal ptr @given_feeds(ptr %s, ptr %args, i64 %n, ptr %names) nounwind {{
entry:
  %positional = icmp eq ptr %names, null
  br i1 %positional, label %number, label %count
number:
  %one = icmp eq i64 %n, 1
  %two = icmp eq i64 %n, 2
  br i1 %one, label %none, label %perhaps
perhaps:
  br i1 %two, label %second, label %other
count:
  %names_at = getelementptr i8, ptr %names, i64 {TUPLE_SIZE}
  %names_n = load i64, ptr %names_at, align 8
  %name_at = getelementptr i8, ptr %names, i64 {TUPLE_ITEM}
  %alone = icmp eq i64 %names_n, 1
  %first_only = icmp eq i64 %n, 1
  %right = and i1 %alone, %first_only
  br i1 %right, label %spell, label %other
spell:
  %name = load i64, ptr %name_at, align 8
  %wanted = WORD ptr %s, i64 6
  %fits = icmp eq i64 %name, %wanted
  br i1 %fits, label %second, label %other
second:
  %feeds_at = getelementptr ptr, ptr %args, i64 1
  %feeds = load ptr, ptr %feeds_at, align 8
  %none_at = getelementptr i64, ptr %s, i64 5
  %none_object = load ptr, ptr %none_at, align 8
  %empty = icmp eq ptr %feeds, %none_object
  br i1 %empty, label %none, label %kind
kind:
  %type_at = getelementptr i8, ptr %feeds, i64 {TYPE}
  %type = load i64, ptr %type_at, align 8
  %dict = WORD ptr %s, i64 4
  %plain = icmp eq i64 %type, %dict
  br i1 %plain, label %given, label %other
given:
  ret ptr %feeds
none:
  ret ptr null
other:
  ret ptr inttoptr (i64 1 to ptr)
}}

define ptr @run_session(ptr %self, ptr %args, i64 %n, ptr %names) {{
entry:
  %table_at = getelementptr i8, ptr %self, i64 {DATA}
  %table = load ptr, ptr %table_at, align 8
  %unmade = icmp eq ptr %table, null
  br i1 %unmade, label %bad, label %begin
bad:
  %never = call i32 @PyErr_BadArgument()
  ret ptr null
begin:
  %s = call ptr @words_of(ptr %table)
  %fed = call ptr @given_feeds(ptr %s, ptr %args, i64 %n, ptr %names)
  %unlike = icmp eq ptr %fed, inttoptr (i64 1 to ptr)
  br i1 %unlike, label %decline, label %feeds
feeds:
  %unfed = icmp eq ptr %fed, null
  br i1 %unfed, label %fetches, label %size
size:
  %fed_n = call i64 @PyDict_Size(ptr %fed)
  %few = icmp ule i64 %fed_n, {MOST_FEEDS}
  br i1 %few, label %fetches, label %decline
fetches:
  %feeds_n = phi i64 [ 0, %feeds ], [ %fed_n, %size ]
  %what = load ptr, ptr %args, align 8
  %type_at = getelementptr i8, ptr %what, i64 {TYPE}
  %type = load i64, ptr %type_at, align 8
  %list_type = WORD ptr %s, i64 2
  %tuple_type = WORD ptr %s, i64 3
  %k_at = getelementptr i8, ptr %what, i64 {TUPLE_SIZE}
  %is_list = icmp eq i64 %type, %list_type
  br i1 %is_list, label %list, label %not_list
list:
  %items_at = getelementptr i8, ptr %what, i64 {LIST_ITEMS}
  %list_items = load ptr, ptr %items_at, align 8
  %list_k = load i64, ptr %k_at, align 8
  br label %search
not_list:
  %is_tuple = icmp eq i64 %type, %tuple_type
  br i1 %is_tuple, label %tuple, label %search
tuple:
  %tuple_items = getelementptr i8, ptr %what, i64 {TUPLE_ITEM}
  %tuple_k = load i64, ptr %k_at, align 8
  br label %search
search:
  %form = phi i64 [ 1, %list ], [ 0, %not_list ], [ 2, %tuple ]
  %items = phi ptr [ %list_items, %list ], [ %args, %not_list ], [ %tuple_items, %tuple ]
  %k = phi i64 [ %list_k, %list ], [ 1, %not_list ], [ %tuple_k, %tuple ]
  %result = call ptr @look_up(
      ptr %s, i64 %form, ptr %items, i64 %k, ptr %fed, i64 %feeds_n)
  %declined = icmp eq ptr %result, inttoptr (i64 1 to ptr)
  br i1 %declined, label %decline, label %done
done:
  ret ptr %result
decline:
  %slow_at = getelementptr i64, ptr %s, i64 0
  %slow = load ptr, ptr %slow_at, align 8
  %answer = call ptr @slowly(ptr %slow, ptr %self, ptr %args, i64 %n, ptr %names)
  ret ptr %answer
}}
"""
