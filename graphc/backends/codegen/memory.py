"""Loads and stores of vectors at resolved places, masked where lanes must not touch memory.

A `Place` says where the lanes of one access lie: one element for all of them, LANES adjacent ones
(ascending or descending), or anywhere.  Imports: scalar, text, types.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.backends.codegen.scalar import emit_scalar
from graphc.backends.codegen.text import (
    LANES,
    FunctionText,
    literal,
    memory_type,
    scalar_type,
    splat_literal,
    suffix,
    vector,
)
from graphc.types import DType

MASK = vector("i1")

_REVERSED = "<" + ", ".join(f"i32 {i}" for i in reversed(range(LANES))) + ">"


@dataclass(frozen=True)
class Place:
    """Where LANES elements lie.

    kind        'one' the element at `pointer` for every lane; 'up', 'down' adjacent elements, lane
                0 at `pointer`; 'repeat' see repeats; 'any' lane i at `pointer` plus byte i of
                `offsets`
    guard       i1: nothing may be touched unless it holds (None: it does)
    mask        lanes that lie inside the buffer (None: all)
    distinct    different lanes are different elements
    moved       bytes, up to ROOM, to add to `pointer`
    aligned     bytes that divide the address of a place of one lane (0: an element's)
    repeats     (n, apart): each n lanes share an element, `apart` elements after that of those
                before
    """

    kind: str
    pointer: str
    offsets: str
    guard: str | None
    mask: str | None
    distinct: bool
    repeats: tuple[int, int] = (1, 1)
    moved: int = 0
    aligned: int = 0

    def address(self, f: FunctionText) -> str:
        """The pointer, for who may touch memory."""
        return f.offset(self.pointer, self.moved)


def both(f: FunctionText, a: str | None, b: str | None, type_: str = MASK) -> str | None:
    """The conjunction of two masks (or two i1); None is all true."""
    if a is None or b is None:
        return b if a is None else a
    return a if a == b else f.known(f"and {type_} {a}, {b}")


def splat_mask(f: FunctionText, guard: str | None) -> str | None:
    return None if guard is None else f.splat("i1", guard)


ROOM = 3 * 8 * LANES
"""Bytes from the first of the vectors of one step to the last, if they are adjacent."""


def _safe(
    f: FunctionText, dtype: DType, place: Place, pointer: str, fill: float, moved: int = 0
) -> str:
    """The pointer, or where the guard fails one to the fill: branch-free, never out of bounds.

    What is `moved` comes after the choice, so that vectors of one step share it.
    """
    if place.guard is not None:
        m = memory_type(dtype)
        text = literal(fill, m)
        name = f"graphc.fill.{m}.{text}"
        t = f"<{LANES + ROOM // dtype.itemsize} x {m}>"
        f.declarations[name] = f"@{name} = internal constant {t} splat ({m} {text})"
        pointer = f.value(f"select i1 {place.guard}, ptr {pointer}, ptr @{name}")
    return f.offset(pointer, moved)


def _from_memory(f: FunctionText, dtype: DType, value: str) -> str:
    if not dtype.is_bool:
        return value
    return f.value(f"icmp ne {vector('i8')} {value}, zeroinitializer")


def _to_memory(f: FunctionText, dtype: DType, value: str) -> str:
    if not dtype.is_bool:
        return value
    return f.value(f"zext {MASK} {value} to {vector('i8')}")


def load(f: FunctionText, dtype: DType, place: Place, mask: str | None, fill: float = 0) -> str:
    """The elements at a place; `fill` in lanes outside, anything in lanes off in `mask`."""
    if f.lanes == 1:
        return _load_alone(f, dtype, place, fill)
    if place.kind == "any":
        return _gather(f, dtype, place, mask, fill)
    m, size = memory_type(dtype), dtype.itemsize
    if place.kind == "one":
        pointer = _safe(f, dtype, place, place.pointer, fill, place.moved)
        value = f.splat(m, f.value(f"load {m}, ptr {pointer}, align {size}"))
    elif place.kind == "repeat":
        value = _repeated(f, dtype, place, mask, fill)
    else:
        value = _adjacent(f, dtype, place, both(f, mask, place.mask), fill)
    return _from_memory(f, dtype, value)


def _load_alone(f: FunctionText, dtype: DType, place: Place, fill: float) -> str:
    """The element of the only lane; who fails the guard branches around the load."""
    assert place.kind == "one"
    m, size = memory_type(dtype), place.aligned or dtype.itemsize
    pointer = place.address(f)
    if place.guard is None:
        value = f.value(f"load {m}, ptr {pointer}, align {size}")
    else:
        key, before = f.fresh(""), f.block
        f.branch_if(place.guard, f"l{key}", f"m{key}")
        f.label(f"l{key}")
        inside = f.value(f"load {m}, ptr {pointer}, align {size}")
        f.branch(f"m{key}")
        f.label(f"m{key}")
        value = f.value(f"phi {m} [ {literal(fill, m)}, %{before} ], [ {inside}, %l{key} ]")
    return f.value(f"icmp ne i8 {value}, 0") if dtype.is_bool else value


def _adjacent(f: FunctionText, dtype: DType, place: Place, mask: str | None, fill: float) -> str:
    m, size = memory_type(dtype), dtype.itemsize
    t = vector(m)
    if place.kind == "down":
        pointer = f.offset(place.address(f), -(LANES - 1) * size)
        mask = _reverse(f, MASK, mask)
        pointer = _safe(f, dtype, place, pointer, fill)
    else:
        pointer = _safe(f, dtype, place, place.pointer, fill, place.moved)
    if mask is None:
        value = f.value(f"load {t}, ptr {pointer}, align {size}")
    else:
        value = f.call(
            t,
            f"llvm.masked.load.{suffix(m)}.p0",
            ("ptr", pointer),
            ("i32", str(size)),
            (MASK, mask),
            (t, splat_literal(fill, m)),
        )
    return value if place.kind == "up" else _reverse(f, t, value) or value


def _repeated(f: FunctionText, dtype: DType, place: Place, mask: str | None, fill: float) -> str:
    """Elements that several lanes share: only those are touched, of adjacent ones."""
    m, t = memory_type(dtype), vector(memory_type(dtype))
    n, apart = place.repeats
    if mask is None and n * dtype.itemsize >= _REGISTER:
        return _splats(f, dtype, place, fill)
    wanted = [lane // n * apart for lane in range(LANES)]
    touched = "<" + ", ".join(f"i1 {str(i in wanted).lower()}" for i in range(LANES)) + ">"
    if mask is not None:
        touched = _first_lanes(f, mask, wanted, touched)
    value = f.call(
        t,
        f"llvm.masked.load.{suffix(m)}.p0",
        ("ptr", _safe(f, dtype, place, place.pointer, fill, place.moved)),
        ("i32", str(dtype.itemsize)),
        (MASK, touched),
        (t, "zeroinitializer"),
    )
    lanes = ", ".join(f"i32 {i}" for i in wanted)
    return f.value(f"shufflevector {t} {value}, {t} poison, <{LANES} x i32> <{lanes}>")


_REGISTER = 32
"""Bytes of the vectors that a target fills with one element as fast as it loads them."""


def _splats(f: FunctionText, dtype: DType, place: Place, fill: float) -> str:
    """An element for each of several adjoining vectors."""
    m, size = memory_type(dtype), dtype.itemsize
    n, apart = place.repeats
    pointer = _safe(f, dtype, place, place.pointer, fill, place.moved)
    parts = []
    for i in range(LANES // n):
        at = f.offset(pointer, i * apart * size)
        parts.append(f.splat(m, f.value(f"load {m}, ptr {at}, align {size}")))
    joined = parts[0]
    t = vector(m)
    for i, part in enumerate(parts[1:], 1):
        lanes = ", ".join(f"i32 {j if j < i * n else j + LANES}" for j in range(LANES))
        joined = f.value(f"shufflevector {t} {joined}, {t} {part}, <{LANES} x i32> <{lanes}>")
    return joined


def _first_lanes(f: FunctionText, mask: str, wanted: list[int], touched: str) -> str:
    """Which adjacent elements the lanes of a mask want."""
    first = [wanted.index(i) if i in wanted else 0 for i in range(LANES)]
    lanes = ", ".join(f"i32 {i}" for i in first)
    moved = f.value(f"shufflevector {MASK} {mask}, {MASK} poison, <{LANES} x i32> <{lanes}>")
    return f.value(f"and {MASK} {moved}, {touched}")


def _reverse(f: FunctionText, type_: str, value: str | None) -> str | None:
    if value is None:
        return None
    indices = f"<{LANES} x i32> {_REVERSED}"
    return f.value(f"shufflevector {type_} {value}, {type_} poison, {indices}")


def _pointers(f: FunctionText, place: Place) -> tuple[str, str]:
    t = vector("ptr")
    return t, f.value(f"getelementptr i8, ptr {place.address(f)}, {vector('i64')} {place.offsets}")


def _inside(f: FunctionText, place: Place, mask: str | None) -> str:
    """The mask of every lane that may touch memory."""
    mask = both(f, mask, place.mask)
    return both(f, mask, splat_mask(f, place.guard)) or splat_literal(True, "i1")


def _gather(f: FunctionText, dtype: DType, place: Place, mask: str | None, fill: float) -> str:
    m = memory_type(dtype)
    inside = _inside(f, place, mask)
    value = f.call(
        vector(m),
        f"llvm.masked.gather.{suffix(m)}.v{LANES}p0",
        _pointers(f, place),
        ("i32", str(dtype.itemsize)),
        (MASK, inside),
        (vector(m), splat_literal(fill, m)),
    )
    return _from_memory(f, dtype, value)


def store(
    f: FunctionText,
    dtype: DType,
    place: Place,
    mask: str | None,
    value: str,
    add: bool,
    lanes: bool,
) -> None:
    """Write (or add) a vector to a place.  `lanes` says whether lanes are different iterations;
    where several of them hit one element they act in ascending order."""
    if place.guard is None:
        _store(f, dtype, place, mask, value, add, lanes)
        return
    label = f.fresh("")
    f.branch_if(place.guard, f"y{label}", f"z{label}")
    f.label(f"y{label}")
    _store(f, dtype, place, mask, value, add, lanes)
    f.branch(f"z{label}")
    f.label(f"z{label}")


def _store(
    f: FunctionText,
    dtype: DType,
    place: Place,
    mask: str | None,
    value: str,
    add: bool,
    lanes: bool,
) -> None:
    mask = both(f, mask, place.mask)
    if place.kind == "one":
        on = mask if lanes else None
        _store_one(f, dtype, place.address(f), on, value, add, lanes, place.aligned)
    elif place.kind == "any":
        _scatter(f, dtype, place, mask, value, add)
    else:
        _store_adjacent(f, dtype, place, mask, value, add)


def _store_one(
    f: FunctionText,
    dtype: DType,
    pointer: str,
    mask: str | None,
    value: str,
    add: bool,
    lanes: bool,
    aligned: int,
) -> None:
    s, m, size = scalar_type(dtype), memory_type(dtype), aligned or dtype.itemsize
    one: str | None
    if f.lanes == 1:
        one = _add_alone(f, dtype, pointer, value) if add else value
    elif add:
        one = _add_lanes(f, dtype, pointer, mask, value) if lanes else None
        if one is None:
            old = f.splat(m, f.value(f"load {m}, ptr {pointer}, align {size}"))
            value = emit_scalar(f, "add", (_from_memory(f, dtype, old), value), dtype, dtype)
            one = f.value(f"extractelement {vector(s)} {value}, i32 0")
    elif lanes:
        one = f.value(f"extractelement {vector(s)} {value}, i32 {_last_lane(f, mask)}")
    else:
        one = f.value(f"extractelement {vector(s)} {value}, i32 0")
    if dtype.is_bool:
        one = f.value(f"zext i1 {one} to i8")
    f.emit(f"store {m} {one}, ptr {pointer}, align {size}")


def _last_lane(f: FunctionText, mask: str | None) -> str:
    """The highest lane on in a mask that is not empty."""
    if mask is None:
        return str(LANES - 1)
    bits = f.value(f"bitcast {MASK} {mask} to i{LANES}")
    name = f"llvm.ctlz.i{LANES}"
    above = f.call(f"i{LANES}", name, (f"i{LANES}", bits), ("i1", "true"))
    lane = f.value(f"sub i{LANES} {LANES - 1}, {above}")
    return f.value(f"zext i{LANES} {lane} to i32")


def _add_alone(f: FunctionText, dtype: DType, pointer: str, value: str) -> str:
    """Memory plus the only lane."""
    old = load(f, dtype, Place("one", pointer, "", None, None, False), None)
    return emit_scalar(f, "add", (old, value), dtype, dtype)


def _add_lanes(f: FunctionText, dtype: DType, pointer: str, mask: str | None, value: str) -> str:
    """Memory plus every lane in turn: the new scalar."""
    s, m = scalar_type(dtype), memory_type(dtype)
    t = vector(s)
    zero = splat_literal(-0.0 if dtype.is_float else 0, s)
    if mask is not None:
        value = f.value(f"select {MASK} {mask}, {t} {value}, {t} {zero}")
    old = f.value(f"load {m}, ptr {pointer}, align {dtype.itemsize}")
    if dtype.is_float:
        # Without reassoc this intrinsic adds in ascending order.
        return f.call(s, f"llvm.vector.reduce.fadd.{suffix(s)}", (s, old), (t, value))
    if dtype.is_bool:
        old = f.value(f"icmp ne i8 {old}, 0")
        total = f.call(s, f"llvm.vector.reduce.or.{suffix(s)}", (t, value))
        return f.value(f"or i1 {old}, {total}")
    total = f.call(s, f"llvm.vector.reduce.add.{suffix(s)}", (t, value))
    return f.value(f"add {s} {old}, {total}")


def _store_adjacent(
    f: FunctionText, dtype: DType, place: Place, mask: str | None, value: str, add: bool
) -> None:
    m, size = memory_type(dtype), dtype.itemsize
    t = vector(m)
    if add:
        value = emit_scalar(f, "add", (load(f, dtype, place, mask), value), dtype, dtype)
    value = _to_memory(f, dtype, value)
    pointer = place.address(f)
    if place.kind == "down":
        pointer = f.offset(pointer, -(LANES - 1) * size)
        mask = _reverse(f, MASK, mask)
        value = _reverse(f, t, value) or value
    if mask is None:
        f.emit(f"store {t} {value}, ptr {pointer}, align {size}")
        return
    name = f"llvm.masked.store.{suffix(m)}.p0"
    f.call("void", name, (t, value), ("ptr", pointer), ("i32", str(size)), (MASK, mask))


def _scatter(
    f: FunctionText, dtype: DType, place: Place, mask: str | None, value: str, add: bool
) -> None:
    if add and not place.distinct:
        _add_in_turn(f, dtype, place, mask, value)
        return
    m = memory_type(dtype)
    if add:
        old = _gather(f, dtype, place, mask, 0)
        value = emit_scalar(f, "add", (old, value), dtype, dtype)
    # Overlapping lanes are written from the lowest to the highest, as LLVM guarantees.
    f.call(
        "void",
        f"llvm.masked.scatter.{suffix(m)}.v{LANES}p0",
        (vector(m), _to_memory(f, dtype, value)),
        _pointers(f, place),
        ("i32", str(dtype.itemsize)),
        (MASK, mask or splat_literal(True, "i1")),
    )


OFFSETS_SLOT = "%lane_offsets"
VALUES_SLOT = "%lane_values"


def open_slots(f: FunctionText) -> None:
    """Stack room for stores whose lanes may collide; belongs into the entry block."""
    f.emit(f"{OFFSETS_SLOT} = alloca [{LANES} x i64], align 64")
    f.emit(f"{VALUES_SLOT} = alloca [{LANES} x i64], align 64")


_SKIPPED = literal(-(2**63), "i64")


def _add_in_turn(f: FunctionText, dtype: DType, place: Place, mask: str | None, value: str) -> None:
    """Read-modify-write lane after lane, because lanes may hit the same element."""
    m, t, size = memory_type(dtype), vector("i64"), dtype.itemsize
    offsets = place.offsets
    if mask is not None:
        skipped = splat_literal(-(2**63), "i64")
        offsets = f.value(f"select {MASK} {mask}, {t} {offsets}, {t} {skipped}")
    f.emit(f"store {t} {offsets}, ptr {OFFSETS_SLOT}, align 64")
    stored = _to_memory(f, dtype, value)
    f.emit(f"store {vector(m)} {stored}, ptr {VALUES_SLOT}, align 64")
    loop = f.open_loop(0, LANES, 1)
    at = f.value(f"getelementptr i64, ptr {OFFSETS_SLOT}, i64 {loop.index}")
    offset = f.value(f"load i64, ptr {at}, align 8")
    on = f.value(f"icmp ne i64 {offset}, {_SKIPPED}")
    label = f.fresh("")
    f.branch_if(on, f"y{label}", f"z{label}")
    f.label(f"y{label}")
    source = f.value(f"getelementptr {m}, ptr {VALUES_SLOT}, i64 {loop.index}")
    new = f.value(f"load {m}, ptr {source}, align {size}")
    pointer = f.offset(place.address(f), offset)
    old = f.value(f"load {m}, ptr {pointer}, align {size}")
    operation = "fadd" if dtype.is_float else "or" if dtype.is_bool else "add"
    total = f.value(f"{operation} {m} {old}, {new}")
    f.emit(f"store {m} {total}, ptr {pointer}, align {size}")
    f.branch(f"z{label}")
    f.label(f"z{label}")
    f.close_loop(loop)
