"""Addresses of accesses, computed piece by piece as loops open.

An access is prepared once at function entry (`Address`: byte steps per axis).  A `Cursor` is what
is known of it with some loops open; opening a loop advances it.  `resolve` adds the vector axis and
a data-dependent index and yields a `Place`.  Imports: memory, text, kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from graphc.backends.codegen.memory import ROOM, Place, both
from graphc.backends.codegen.text import (
    LANE_INDEX,
    LANES,
    FunctionText,
    splat_literal,
    vector,
)
from graphc.dims import DimLike
from graphc.kernel import Access, Term

_I64 = vector("i64")


@dataclass(frozen=True)
class Guarded:
    """A guarded term: byte `step` per index, `(sum(coef * axis) + shift) / div` within `limit`."""

    coefs: tuple[tuple[int, str], ...]
    axes: int
    shift: str
    div: int
    limit: str
    step: str


@dataclass(frozen=True)
class Address:
    """An access prepared at entry: `start` includes every constant part of unguarded terms.

    rounded   (axis, div, byte step) if the vector axis moves a step every `div` lanes only
    """

    start: str
    itemsize: int
    steps: Mapping[int, str]
    guarded: tuple[Guarded, ...]
    rounded: tuple[int, int, str] | None = None


@dataclass(frozen=True)
class Cursor:
    """The pointer for the loops open so far, and whether every finished guard holds."""

    pointer: str
    guard: str | None = None


def prepare(f: FunctionText, access: Access, itemsize: int) -> Address:
    """Emit the loop-invariant parts of an access (into the entry block)."""
    offset = f.mul(f.dim(access.offset), itemsize)
    steps: dict[int, str] = {}
    guarded = []
    rounded = None
    for term in access.terms:
        step = f.mul(f.dim(term.stride), itemsize)
        if term.limit is not None:
            guarded.append(_guarded(f, term, term.limit, step))
            continue
        if term.div != 1:
            ((axis, coefficient),) = term.axes
            assert (rounded, coefficient, term.shift) == (None, 1, 0)
            rounded = (axis, term.div, step)
            continue
        offset = f.add(offset, f.mul(f.dim(term.shift), step))
        for axis, coefficient in term.axes:
            part = f.mul(f.dim(coefficient), step)
            steps[axis] = f.add(steps.get(axis, "0"), part)
    steps = {a: s for a, s in steps.items() if s != "0"}
    pointer = f.offset(f.bases[access.buf], offset)
    return Address(pointer, itemsize, steps, tuple(guarded), rounded)


def _guarded(f: FunctionText, term: Term, limit: DimLike, step: str) -> Guarded:
    coefs: dict[int, str] = {}
    for axis, coefficient in term.axes:
        coefs[axis] = f.add(coefs.get(axis, "0"), f.dim(coefficient))
    items = tuple((a, c) for a, c in coefs.items() if c != "0")
    axes = sum(1 << a for a, _ in items)
    return Guarded(items, axes, f.dim(term.shift), term.div, f.dim(limit), step)


def start(f: FunctionText, address: Address) -> Cursor:
    """The cursor with no loop open: guards over no axis at all are decided."""
    cursor = Cursor(address.start)
    for term in address.guarded:
        if term.axes == 0:
            cursor = _pass_guard(f, cursor, term, term.shift)
    return cursor


def advance(
    f: FunctionText,
    address: Address,
    cursor: Cursor,
    opened: int,
    available: int,
    index: Mapping[int, str],
    vec: int | None,
) -> Cursor:
    """The cursor after opening loops over the axes in `opened`; `vec` is the one along lanes."""
    lanes = 0 if vec is None else 1 << vec
    for axis, step in address.steps.items():
        if opened >> axis & 1:
            pointer = f.offset(cursor.pointer, f.mul(index[axis], step))
            cursor = Cursor(pointer, cursor.guard)
    if address.rounded is not None and opened >> address.rounded[0] & 1:
        axis, div, step = address.rounded
        if vec is None or LANES % div == 0:
            pointer = f.offset(cursor.pointer, f.mul(f.udiv(index[axis], div), step))
            cursor = Cursor(pointer, cursor.guard)
    for term in address.guarded:
        if term.axes & opened and not term.axes & ~available and not term.axes & lanes:
            cursor = _pass_guard(f, cursor, term, _numerator(f, term, index))
    return cursor


def _numerator(f: FunctionText, term: Guarded, index: Mapping[int, str]) -> str:
    total = term.shift
    for axis, coefficient in term.coefs:
        total = f.add(total, f.mul(index[axis], coefficient))
    return total


def _pass_guard(f: FunctionText, cursor: Cursor, term: Guarded, numerator: str) -> Cursor:
    """Add a guarded index whose axes are all scalar."""
    # Unsigned: a negative numerator is huge, hence outside.
    # Named once for all accesses: equal guards are known to be equal.
    inside: str | None = f.known(f"icmp ult i64 {numerator}, {f.mul(term.limit, term.div)}")
    if term.div != 1:
        left = f.known(f"srem i64 {numerator}, {term.div}")
        inside = both(f, inside, f.known(f"icmp eq i64 {left}, 0"), "i1")
        numerator = f.known(f"sdiv i64 {numerator}, {term.div}")
    pointer = f.offset(cursor.pointer, f.mul(numerator, term.step))
    return Cursor(pointer, both(f, cursor.guard, inside, "i1"))


@dataclass
class _Lanes:
    """What the vector axis adds to a cursor."""

    pointer: str
    guard: str | None
    mask: str | None
    step: str  # bytes from lane to lane
    offsets: str | None  # further bytes per lane, where they are not affine
    distinct: bool
    repeats: tuple[int, int] | None = None  # see memory.Place
    moved: int = 0

    def move(self, f: FunctionText, distance: str) -> None:
        """Go on by some bytes."""
        if distance.isdigit() and int(distance) + self.moved <= ROOM:
            self.moved += int(distance)
        else:
            self.pointer = f.offset(self.pointer, distance)


def resolve(
    f: FunctionText,
    address: Address,
    cursor: Cursor,
    index: Mapping[int, str],
    vec: int | None,
    unit: int,
    element: tuple[str, str | None, bool] | None = None,
) -> Place:
    """The place of LANES elements, `unit` vectors after the cursor.

    `vec` is the vector axis while its loop is open, else None.  `element` is a data-dependent
    index: (vector of i64, extent or None, whether its lanes differ).
    """
    lanes = _Lanes(cursor.pointer, cursor.guard, None, "0", None, True)
    if vec is not None:
        _vector_axis(f, address, lanes, index, vec, unit)
    if element is not None:
        _element(f, address, lanes, *element)
    return _place(f, address, lanes)


def _vector_axis(
    f: FunctionText,
    address: Address,
    lanes: _Lanes,
    index: Mapping[int, str],
    vec: int,
    unit: int,
) -> None:
    step = address.steps.get(vec, "0")
    lanes.step = step
    lanes.move(f, f.mul(step, LANES * unit))
    if address.rounded is not None:
        _rounded(f, lanes, address, *address.rounded[1:], index[vec], unit)
    for term in address.guarded:
        if not term.axes >> vec & 1:
            continue
        coefficient = dict(term.coefs)[vec]
        numerator = f.add(_numerator(f, term, index), f.mul(coefficient, LANES * unit))
        if term.div == 1:
            _affine_guard(f, lanes, term, numerator, coefficient)
        elif coefficient.lstrip("-").isdigit() and int(coefficient) % term.div == 0:
            left = f.value(f"srem i64 {numerator}, {term.div}")
            lanes.guard = both(f, lanes.guard, f.value(f"icmp eq i64 {left}, 0"), "i1")
            numerator = f.value(f"sdiv i64 {numerator}, {term.div}")
            _affine_guard(f, lanes, term, numerator, str(int(coefficient) // term.div))
        else:
            _divided_guard(f, lanes, term, numerator, coefficient)


def _rounded(
    f: FunctionText,
    lanes: _Lanes,
    address: Address,
    div: int,
    step: str,
    index: str,
    unit: int,
) -> None:
    """Lane i is `(first + i) / div` steps on, rounded down; first is a multiple of LANES.

    If div divides LANES, the steps to index are in the pointer already.
    """
    first = f.add(index, LANES * unit)
    if LANES % div == 0:
        lanes.move(f, f.mul(step, LANES // div * unit))
        apart = int(step) // address.itemsize if step.isdigit() else LANES
        if lanes.step == "0" and (LANES // div - 1) * apart < LANES:
            lanes.repeats = (div, apart)
            return
        numbers = "<" + ", ".join(f"i64 {i // div}" for i in range(LANES)) + ">"
    else:
        divisor = splat_literal(div, "i64")
        numbers = f.value(f"udiv {_I64} {_ramp(f, first, '1')}, {divisor}")
    _add_offsets(f, lanes, f.value(f"mul {_I64} {numbers}, {f.splat('i64', step)}"))
    lanes.distinct = False


def _affine_guard(
    f: FunctionText, lanes: _Lanes, term: Guarded, first: str, coefficient: str
) -> None:
    """Lane i has index `first + coefficient * i`."""
    if coefficient == "1":
        inside = _range_mask(f, f.sub(0, first), f.sub(term.limit, first))
    else:
        indices = _ramp(f, first, coefficient)
        limit = f.splat("i64", term.limit)
        inside = f.value(f"icmp ult {_I64} {indices}, {limit}")
    lanes.mask = both(f, lanes.mask, inside)
    lanes.pointer = f.offset(lanes.pointer, f.mul(first, term.step))
    lanes.step = f.add(lanes.step, f.mul(coefficient, term.step))


def _range_mask(f: FunctionText, start: str, stop: str) -> str:
    """The lanes from start up to stop, start <= stop: compared as bytes, a register for all."""
    low = f.smax(f.smin(start, LANES), 0)
    count = f.sub(f.smax(f.smin(stop, LANES), 0), low)
    i8 = vector("i8")
    first, width = (f.splat("i8", f.value(f"trunc i64 {x} to i8")) for x in (low, count))
    lanes = "<" + ", ".join(f"i8 {i}" for i in range(LANES)) + ">"
    return f.value(f"icmp ult {i8} {f.value(f'sub {i8} {lanes}, {first}')}, {width}")


def _divided_guard(
    f: FunctionText, lanes: _Lanes, term: Guarded, first: str, coefficient: str
) -> None:
    """Lanes whose numerator `div` does not divide are outside; the others are not affine."""
    numerators = _ramp(f, first, coefficient)
    limit = f.splat("i64", f.mul(term.limit, term.div))
    inside = f.value(f"icmp ult {_I64} {numerators}, {limit}")
    divisor = splat_literal(term.div, "i64")
    indices = f.value(f"udiv {_I64} {numerators}, {divisor}")
    back = f.value(f"mul {_I64} {indices}, {divisor}")
    exact = f.value(f"icmp eq {_I64} {back}, {numerators}")
    lanes.mask = both(f, both(f, lanes.mask, inside), exact)
    step = f.splat("i64", term.step)
    _add_offsets(f, lanes, f.value(f"mul {_I64} {indices}, {step}"))


def _add_offsets(f: FunctionText, lanes: _Lanes, offsets: str) -> None:
    if lanes.offsets is not None:
        offsets = f.value(f"add {_I64} {lanes.offsets}, {offsets}")
    lanes.offsets = offsets


def _element(
    f: FunctionText,
    address: Address,
    lanes: _Lanes,
    indices: str,
    extent: str | None,
    differs: bool,
) -> None:
    """Add a data-dependent element index."""
    if not differs:
        one = f.first("i64", indices)
        if extent is not None:
            inside = f.value(f"icmp ult i64 {one}, {extent}")
            lanes.guard = both(f, lanes.guard, inside, "i1")
        lanes.pointer = f.offset(lanes.pointer, f.mul(one, address.itemsize))
        return
    if extent is not None:
        limit = f.splat("i64", extent)
        lanes.mask = both(f, lanes.mask, f.value(f"icmp ult {_I64} {indices}, {limit}"))
    size = splat_literal(address.itemsize, "i64")
    _add_offsets(f, lanes, f.value(f"mul {_I64} {indices}, {size}"))
    lanes.distinct = False


def _place(f: FunctionText, address: Address, lanes: _Lanes) -> Place:
    kind = "any"
    if lanes.repeats is not None:
        if lanes.offsets is None and lanes.mask is None and lanes.step == "0":
            found = Place("repeat", lanes.pointer, "", lanes.guard, None, False, lanes.repeats)
            return replace(found, moved=lanes.moved)
        div, apart = lanes.repeats
        moved = [f"i64 {i // div * apart * address.itemsize}" for i in range(LANES)]
        _add_offsets(f, lanes, "<" + ", ".join(moved) + ">")
        lanes.distinct = False
    if lanes.offsets is None:
        if lanes.step == "0" and lanes.mask is None:
            kind = "one"
        elif lanes.step == str(address.itemsize):
            kind = "up"
        elif lanes.step == str(-address.itemsize):
            kind = "down"
    offsets = ""
    distinct = lanes.distinct and (lanes.step != "0" or lanes.offsets is not None)
    if kind == "any":
        offsets = _ramp(f, "0", lanes.step)
        if lanes.offsets is not None:
            offsets = f.value(f"add {_I64} {offsets}, {lanes.offsets}")
    place = Place(kind, lanes.pointer, offsets, lanes.guard, lanes.mask, distinct)
    return replace(place, moved=lanes.moved)


def _ramp(f: FunctionText, first: str, step: str) -> str:
    """The vector first, first + step, first + 2 * step, ..."""
    if step.lstrip("-").isdigit():
        offsets = "<" + ", ".join(f"i64 {i * int(step)}" for i in range(LANES)) + ">"
    else:
        offsets = f.value(f"mul {_I64} {f.splat('i64', step)}, {LANE_INDEX}")
    if first == "0":
        return offsets
    return f.value(f"add {_I64} {f.splat('i64', first)}, {offsets}")
