"""Identities of selection, comparison and bits; all hold bit for bit.  Imports: rewrite, types."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.node import Tensor
from graphc.rewrite import Match, Rule, Splat, Var, X, Y, op, value
from graphc.types import DType

CONDITION = Var("c")
ZERO, ONE = value(0.0), value(1.0)


def _has_all_bits(c: Any) -> bool:
    return c.dtype.kind in "iu" and bool(c == np.bitwise_not(c.dtype.type(0)))


ALL_BITS = Splat("ones", where=_has_all_bits)


LOGIC_RULES = (
    Rule("where_same", op("where", CONDITION, X, X), X),
    Rule("where_true", op("where", ONE, X, Y), X),
    Rule("where_false", op("where", ZERO, X, Y), Y),
    Rule("where_not", op("where", op("invert", CONDITION), X, Y), op("where", CONDITION, Y, X)),
    Rule("where_condition", op("where", CONDITION, ONE, ZERO), CONDITION, kinds="b"),
    Rule("where_inverted", op("where", CONDITION, ZERO, ONE), op("invert", CONDITION), kinds="b"),
    Rule(
        "where_where_same",
        op("where", CONDITION, op("where", CONDITION, X, Y), Var("z")),
        op("where", CONDITION, X, Var("z")),
    ),
    Rule(
        "where_else_where_same",
        op("where", CONDITION, Var("z"), op("where", CONDITION, X, Y)),
        op("where", CONDITION, Var("z"), Y),
    ),
    # ---- bits, which on bool are truth values
    Rule("invert_invert", op("invert", op("invert", X)), X),
    Rule("invert_equal", op("invert", op("equal", X, Y)), op("not_equal", X, Y), kinds="b"),
    Rule("invert_not_equal", op("invert", op("not_equal", X, Y)), op("equal", X, Y), kinds="b"),
    Rule("and_same", op("bitwise_and", X, X), X),
    Rule("and_ones", op("bitwise_and", X, ALL_BITS), X, kinds="iu"),
    Rule("and_true", op("bitwise_and", X, ONE), X, kinds="b"),
    Rule("and_zero", op("bitwise_and", X, ZERO), ZERO),
    Rule("or_same", op("bitwise_or", X, X), X),
    Rule("or_zero", op("bitwise_or", X, ZERO), X),
    Rule("or_true", op("bitwise_or", X, ONE), ONE, kinds="b"),
    Rule("xor_zero", op("bitwise_xor", X, ZERO), X),
    Rule("xor_same", op("bitwise_xor", X, X), ZERO),
    Rule("left_shift_zero", op("left_shift", X, ZERO), X),
    Rule("right_shift_zero", op("right_shift", X, ZERO), X),
)

# ---- casts -------------------------------------------------------------------------------------

MANTISSA = {"f32": 24, "f64": 53}


def is_lossless(a: DType, b: DType) -> bool:
    """Whether every value of dtype a is a value of dtype b."""
    if a is b or a.is_bool:
        return True
    if b.is_bool:
        return False
    if a.is_float:
        return b.is_float and b.bits >= a.bits
    digits = a.bits - (a.kind == "i")
    if b.is_float:
        return digits <= MANTISSA[b.name]
    if a.kind == "i" and b.kind == "u":
        return False
    return b.bits - (b.kind == "i") >= digits


def merge_casts(m: Match) -> Tensor | None:
    """cast(cast(x)) as one cast, where the value in between is that of x."""
    inner, target = m.root.node.inputs[0], m.root.dtype
    source = inner.node.inputs[0]
    a, b = source.dtype, inner.dtype
    if not is_lossless(a, b):
        return None
    # integers wrap, but floats saturate: the way from a to an integer must be the same
    if a.is_integer and b.is_float and target.is_integer and not is_lossless(a, target):
        return None
    return source if target is a else m.apply("cast", source, dtype=target)


def _drop_cast(m: Match) -> Tensor | None:
    x = m.root.node.inputs[0]
    return x if x.dtype is m.root.dtype else None


CAST_RULES = (
    Rule("cast_same", op("cast", X), _drop_cast),
    Rule("cast_cast", op("cast", op("cast", X)), merge_casts),
)
