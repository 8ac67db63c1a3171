"""Identities of arithmetic that hold bit for bit, and those that hold over the real numbers only.

Signed zeros decide which is which: x - 0 is x for every x, but x + 0 is not, as -0 + 0 is +0.
NaN payloads and the sign of NaN are not told apart.  Imports: rewrite.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.node import Tensor
from graphc.rewrite import FAST_MATH, Apply, Match, Pattern, Rule, Splat, X, Y, op, value

ZERO, ONE = value(0.0), value(1.0)
NEGATIVE_ZERO = value(-0.0)


def add(a: Pattern, b: Pattern) -> Apply:
    return op("add", a, b)


def sub(a: Pattern, b: Pattern) -> Apply:
    return op("subtract", a, b)


def mul(a: Pattern, b: Pattern) -> Apply:
    return op("multiply", a, b)


def div(a: Pattern, b: Pattern) -> Apply:
    return op("divide", a, b)


def neg(a: Pattern) -> Apply:
    return op("negative", a)


# ---- constants combined ------------------------------------------------------------------------


def _has_exact_reciprocal(c: Any) -> bool:
    """Whether c and 1 / c are both normal powers of two."""
    if c.dtype.kind != "f" or not np.isfinite(c) or c == 0 or abs(np.frexp(c)[0]) != 0.5:
        return False
    tiny = np.finfo(c.dtype).tiny
    return bool(abs(c) >= tiny and 1 / abs(c) >= tiny and np.isfinite(1 / c))


def _times_reciprocal(m: Match) -> Tensor:
    with np.errstate(all="ignore"):
        return m.apply("multiply", m["x"], _like_root(m, 1 / m["c"]))


def _like_root(m: Match, number: Any) -> Tensor:
    return m.splat(number, m.root.dtype, m.root.dims)


def _add_constants(m: Match) -> Tensor:
    with np.errstate(all="ignore"):
        return m.apply("add", m["x"], _like_root(m, m["c"] + m["d"]))


def _multiply_constants(m: Match) -> Tensor:
    with np.errstate(all="ignore"):
        return m.apply("multiply", m["x"], _like_root(m, m["c"] * m["d"]))


def _negated_constant(m: Match) -> Tensor:
    return m.apply("multiply", m["x"], _like_root(m, -m["c"]))


C, D = Splat("c"), Splat("d")

EXACT_RULES = (
    Rule("multiply_one", mul(X, ONE), X),
    Rule("divide_one", div(X, ONE), X, kinds="f"),
    Rule("subtract_zero", sub(X, ZERO), X),
    Rule("add_negative_zero", add(X, NEGATIVE_ZERO), X, kinds="f"),
    Rule("add_zero_integer", add(X, ZERO), X, kinds="iub"),
    Rule("multiply_zero_integer", mul(X, ZERO), ZERO, kinds="iub"),
    Rule("subtract_self_integer", sub(X, X), ZERO, kinds="iu"),
    Rule("negative_zero_minus", sub(NEGATIVE_ZERO, X), neg(X), kinds="f"),
    Rule("zero_minus_integer", sub(ZERO, X), neg(X), kinds="iu"),
    Rule("multiply_minus_one", mul(X, value(-1.0)), neg(X), kinds="fi"),
    # ---- signs
    Rule("negative_negative", neg(neg(X)), X),
    Rule("subtract_negative", sub(X, neg(Y)), add(X, Y)),
    Rule("add_negative", add(X, neg(Y)), sub(X, Y)),
    Rule("multiply_negatives", mul(neg(X), neg(Y)), mul(X, Y)),
    Rule("divide_negatives", div(neg(X), neg(Y)), div(X, Y), kinds="f"),
    Rule("multiply_negative_constant", mul(neg(X), C), _negated_constant, kinds="f"),
    Rule("negative_difference_integer", neg(sub(X, Y)), sub(Y, X), kinds="iu"),
    Rule("abs_negative", op("abs", neg(X)), op("abs", X), kinds="fi"),
    Rule("abs_abs", op("abs", op("abs", X)), op("abs", X)),
    Rule("square_negative", op("square", neg(X)), op("square", X)),
    Rule("square_abs", op("square", op("abs", X)), op("square", X)),
    # ---- one form of each
    Rule("multiply_self", mul(X, X), op("square", X), kinds="fiu"),
    Rule(
        "divide_power_of_two",
        div(X, Splat("c", where=_has_exact_reciprocal)),
        _times_reciprocal,
        kinds="f",
    ),
    Rule("one_divided", div(ONE, X), op("reciprocal", X), kinds="f"),
    Rule("power_one", op("power", X, ONE), X),
    Rule("power_two_integer", op("power", X, value(2.0)), op("square", X), kinds="iu"),
    # ---- constants of integers, which wrap around and so reassociate
    Rule("add_constants_integer", add(add(X, C), D), _add_constants, kinds="iu"),
    Rule("multiply_constants_integer", mul(mul(X, C), D), _multiply_constants, kinds="iu"),
    Rule("floor_divide_one", op("floor_divide", X, ONE), X, kinds="iu"),
    Rule("remainder_one", op("remainder", X, ONE), ZERO, kinds="iu"),
    # ---- rectifiers
    Rule("relu_relu", op("relu", op("relu", X)), op("relu", X)),
    Rule("maximum_self", op("maximum", X, X), X),
    Rule("minimum_self", op("minimum", X, X), X),
    Rule("maximum_least", op("maximum", X, value(-np.inf)), X, kinds="f"),
    Rule("minimum_greatest", op("minimum", X, value(np.inf)), X, kinds="f"),
)


FAST_MATH_RULES = (
    Rule("add_zero", add(X, ZERO), X, FAST_MATH, kinds="f"),
    Rule("multiply_zero", mul(X, ZERO), ZERO, FAST_MATH, kinds="f"),
    Rule("zero_minus", sub(ZERO, X), neg(X), FAST_MATH, kinds="f"),
    Rule("subtract_self", sub(X, X), ZERO, FAST_MATH, kinds="f"),
    Rule("divide_self", div(X, X), ONE, FAST_MATH, kinds="f"),
    Rule("negative_difference", neg(sub(X, Y)), sub(Y, X), FAST_MATH, kinds="f"),
    Rule("divide_constant", div(X, C), _times_reciprocal, FAST_MATH, kinds="f"),
    Rule("add_constants", add(add(X, C), D), _add_constants, FAST_MATH, kinds="f"),
    Rule("multiply_constants", mul(mul(X, C), D), _multiply_constants, FAST_MATH, kinds="f"),
    Rule("power_half", op("power", X, value(0.5)), op("sqrt", X), FAST_MATH, kinds="f"),
    Rule("square_sqrt", op("square", op("sqrt", X)), X, FAST_MATH, kinds="f"),
    Rule("exp_log", op("exp", op("log", X)), X, FAST_MATH, kinds="f"),
    Rule("divide_sqrt", div(X, op("sqrt", Y)), mul(X, op("rsqrt", Y)), FAST_MATH, kinds="f"),
)
