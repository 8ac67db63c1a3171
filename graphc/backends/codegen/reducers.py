"""Reducers on vectors: starting values, updates, and the fixed tree that joins lanes.

The state of an accumulator is a tuple of vectors: the value, and for 'argmax' and 'argmin' also the
position (i64).  Imports: scalar, text, kernel, types.
"""

from __future__ import annotations

from graphc.backends.codegen.scalar import emit_scalar
from graphc.backends.codegen.text import (
    LANES,
    FunctionText,
    scalar_type,
)
from graphc.kernel import Accumulator
from graphc.types import DType

State = tuple[str, ...]

_NOWHERE = 2**63 - 1
"""The position of an arg reduction that has seen no element."""

_COMBINE = {
    "sum": "add",
    "prod": "mul",
    "max": "max",
    "min": "min",
    "any": "or",
    "all": "and",
}


def is_arg(accumulator: Accumulator) -> bool:
    return accumulator.op in ("argmax", "argmin")


def state_types(f: FunctionText, accumulator: Accumulator) -> list[str]:
    """The LLVM types of an accumulator's state."""
    value = f.vector(scalar_type(accumulator.expr.dtype))
    return [value, f.vector("i64")] if is_arg(accumulator) else [value]


def initial(f: FunctionText, accumulator: Accumulator) -> State:
    """The state before the first element."""
    dtype = accumulator.expr.dtype
    value = f.constant(identity(accumulator.op, dtype), scalar_type(dtype))
    return (value, f.constant(_NOWHERE, "i64")) if is_arg(accumulator) else (value,)


def identity(op: str, dtype: DType) -> float | int | bool:
    """What changes nothing when it is combined."""
    if op in ("sum", "any"):
        return 0
    if op in ("prod", "all"):
        return 1
    largest = op in ("min", "argmin")
    if dtype.is_float:
        return float("inf") if largest else float("-inf")
    if dtype.is_bool:
        return largest
    low = -(2 ** (dtype.bits - 1)) if dtype.is_signed else 0
    high = 2 ** (dtype.bits - 1) - 1 if dtype.is_signed else 2**dtype.bits - 1
    return high if largest else low


def masked(f: FunctionText, accumulator: Accumulator, mask: str | None, new: State) -> State:
    """`new` where the mask is on, the starting value elsewhere."""
    if mask is None:
        return new
    masks, types = f.vector("i1"), state_types(f, accumulator)
    return tuple(
        f.value(f"select {masks} {mask}, {t} {x}, {t} {start}")
        for t, x, start in zip(types, new, initial(f, accumulator), strict=True)
    )


def combine(f: FunctionText, accumulator: Accumulator, a: State, b: State) -> State:
    """The state of two disjoint sets of elements."""
    dtype = accumulator.expr.dtype
    if not is_arg(accumulator):
        return (emit_scalar(f, _COMBINE[accumulator.op], (a[0], b[0]), dtype, dtype),)
    return _better(f, accumulator.op, dtype, a, b)


def _better(f: FunctionText, op: str, dtype: DType, a: State, b: State) -> State:
    """The better value; of equally good ones (NaN is best) the one at the smaller position."""
    t, masks, i64 = f.vector(scalar_type(dtype)), f.vector("i1"), f.vector("i64")
    (x, i), (y, j) = a, b
    earlier = f.value(f"icmp slt {i64} {j}, {i}")
    if dtype.is_float:
        more = f.value(f"fcmp {'ogt' if op == 'argmax' else 'olt'} {t} {y}, {x}")
        equal = f.value(f"fcmp ueq {t} {y}, {x}")
        x_nan = f.value(f"fcmp uno {t} {x}, {x}")
        y_nan = f.value(f"fcmp uno {t} {y}, {y}")
        # ueq also holds when either is NaN: both NaN is a tie, one NaN decides.
        same_kind = f.value(f"xor {masks} {x_nan}, {y_nan}")
        tie = f.value(f"and {masks} {equal}, {earlier}")
        decided = f.value(f"select {masks} {same_kind}, {masks} {y_nan}, {masks} {tie}")
        take = f.value(f"or {masks} {more}, {decided}")
    else:
        signed = "s" if dtype.is_signed else "u"
        order = "gt" if op == "argmax" else "lt"
        more = f.value(f"icmp {signed}{order} {t} {y}, {x}")
        equal = f.value(f"icmp eq {t} {y}, {x}")
        take = f.value(f"or {masks} {more}, {f.value(f'and {masks} {equal}, {earlier}')}")
    value = f.value(f"select {masks} {take}, {t} {y}, {t} {x}")
    return value, f.value(f"select {masks} {take}, {i64} {j}, {i64} {i}")


def across_lanes(f: FunctionText, accumulator: Accumulator, state: State) -> State:
    """Join all lanes by halves (8, 4, 2, 1); every lane of the result holds the total."""
    for distance in (8, 4, 2, 1):
        indices = ", ".join(f"i32 {(i + distance) % LANES}" for i in range(LANES))
        moved = tuple(
            f.value(f"shufflevector {t} {x}, {t} poison, <{LANES} x i32> <{indices}>")
            for t, x in zip(state_types(f, accumulator), state, strict=True)
        )
        state = combine(f, accumulator, state, moved)
    return state


def running(
    f: FunctionText, accumulator: Accumulator, total: State, new: State
) -> tuple[State, State]:
    """Add the lanes of `new` in ascending order to a total that every lane of `total` holds.

    Returns the total after each lane, and the final total in every lane.
    """
    types, masks = state_types(f, accumulator), f.vector("i1")
    after = total
    for lane in range(LANES):
        indices = ", ".join([f"i32 {lane}"] * LANES)
        one = tuple(
            f.value(f"shufflevector {t} {x}, {t} poison, <{LANES} x i32> <{indices}>")
            for t, x in zip(types, new, strict=True)
        )
        total = combine(f, accumulator, total, one)
        here = ", ".join(f"i1 {'true' if i == lane else 'false'}" for i in range(LANES))
        after = tuple(
            f.value(f"select {masks} <{here}>, {t} {x}, {t} {y}")
            for t, x, y in zip(types, total, after, strict=True)
        )
    return after, total


def final(f: FunctionText, accumulator: Accumulator, state: State) -> str:
    """The accumulator's value: the position for arg reductions (0 when there was no element)."""
    if not is_arg(accumulator):
        return state[0]
    i64 = f.vector("i64")
    none = f.value(f"icmp eq {i64} {state[1]}, {f.constant(_NOWHERE, 'i64')}")
    return f.value(f"select {f.vector('i1')} {none}, {i64} zeroinitializer, {i64} {state[1]}")
