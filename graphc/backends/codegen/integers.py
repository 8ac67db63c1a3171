"""Integer and bool scalar operations as LLVM text; no operand can make them trap.

Imports: lanes, text.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.backends.codegen.lanes import repeat_while
from graphc.backends.codegen.text import FunctionText

_BINARY = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor"}

_COMPARISONS = {"lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}


def emit_integer(f: FunctionText, op: str, args: Sequence[str], scalar: str, signed: bool) -> str:
    """The value of one integer (or i1) operation; arithmetic wraps."""
    t = f.vector(scalar)
    if op in _BINARY:
        return f.value(f"{_BINARY[op]} {t} {args[0]}, {args[1]}")
    if op in ("eq", "ne"):
        return f.value(f"icmp {op} {t} {args[0]}, {args[1]}")
    if op in _COMPARISONS:
        return f.value(f"icmp {'s' if signed else 'u'}{op} {t} {args[0]}, {args[1]}")
    if op in ("max", "min"):
        return f.intrinsic(f"{'s' if signed else 'u'}{op}", scalar, *args)
    if op == "not":
        return f.value(f"xor {t} {args[0]}, {f.constant(True if scalar == 'i1' else -1, scalar)}")
    if op == "neg":
        return f.value(f"sub {t} zeroinitializer, {args[0]}")
    if op == "abs":
        if not signed:
            return args[0]
        return f.call(t, f"llvm.abs.{f.suffix(scalar)}", (t, args[0]), ("i1", "false"))
    if op == "shl":
        return f.value(f"shl {t} {args[0]}, {args[1]}")
    if op == "shr":
        return f.value(f"{'ashr' if signed else 'lshr'} {t} {args[0]}, {args[1]}")
    if op == "mulhi":
        return _high_product(f, args[0], args[1], scalar, signed)
    if op in ("floordiv", "mod", "fmod"):
        return _divide(f, op, args[0], args[1], scalar, signed)
    if op == "pow":
        return _power(f, args[0], args[1], scalar)
    raise ValueError(f"scalar operation {op!r} is not defined for integers")


def _high_product(f: FunctionText, a: str, b: str, scalar: str, signed: bool) -> str:
    bits = int(scalar[1:])
    t, wide = f.vector(scalar), f.vector(f"i{2 * bits}")
    extend = "sext" if signed else "zext"
    x, y = (f.value(f"{extend} {t} {v} to {wide}") for v in (a, b))
    product = f.value(f"mul {wide} {x}, {y}")
    high = f.value(f"lshr {wide} {product}, {f.constant(bits, f'i{2 * bits}')}")
    return f.value(f"trunc {wide} {high} to {t}")


def _divide(f: FunctionText, op: str, a: str, b: str, scalar: str, signed: bool) -> str:
    t, mask = f.vector(scalar), f.vector("i1")
    unsafe = f.value(f"icmp eq {t} {b}, zeroinitializer")
    if signed:
        # x // -1 overflows for the least x: divide by one and negate instead.
        minus = f.value(f"icmp eq {t} {b}, {f.constant(-1, scalar)}")
        unsafe = f.value(f"or {mask} {unsafe}, {minus}")
    one = f.constant(1, scalar)
    divisor = f.value(f"select {mask} {unsafe}, {t} {one}, {t} {b}")
    quotient = _quotient(f, a, divisor, scalar, signed)
    product = f.value(f"mul {t} {quotient}, {divisor}")
    rest = f.value(f"sub {t} {a}, {product}")
    if not signed:
        return quotient if op == "floordiv" else rest
    if op == "fmod":
        return rest
    # Round towards minus infinity: correct where the remainder and divisor differ in sign.
    inexact = f.value(f"icmp ne {t} {rest}, zeroinitializer")
    signs = f.value(f"xor {t} {rest}, {divisor}")
    differ = f.value(f"icmp slt {t} {signs}, zeroinitializer")
    adjust = f.value(f"and {mask} {inexact}, {differ}")
    if op == "mod":
        amount = f.value(f"select {mask} {adjust}, {t} {divisor}, {t} zeroinitializer")
        return f.value(f"add {t} {rest}, {amount}")
    step = f.value(f"sext {mask} {adjust} to {t}")
    floored = f.value(f"add {t} {quotient}, {step}")
    negated = f.value(f"sub {t} zeroinitializer, {a}")
    return f.value(f"select {mask} {minus}, {t} {negated}, {t} {floored}")


def _quotient(f: FunctionText, a: str, b: str, scalar: str, signed: bool) -> str:
    """a / b truncated, b neither 0 nor -1."""
    t, s = f.vector(scalar), "s" if signed else "u"
    if scalar == "i64":
        return f.value(f"{s}div {t} {a}, {b}")
    # A correctly rounded quotient of 32-bit integers never crosses an integer: the nearest one it
    # could round up to is a relative 2^-32 away.
    wide = f.vector("double")
    x, y = (f.value(f"{s}itofp {t} {v} to {wide}") for v in (a, b))
    ratio = f.value(f"fdiv {wide} {x}, {y}")
    return f.value(f"fpto{s}i {wide} {ratio} to {t}")


def _power(f: FunctionText, base: str, exponent: str, scalar: str) -> str:
    """base ** exponent by squaring, while any lane has exponent bits left."""
    t, mask = f.vector(scalar), f.vector("i1")
    one = f.constant(1, scalar)

    def unfinished(state: Sequence[str]) -> str:
        left = f.value(f"icmp ne {t} {state[2]}, zeroinitializer")
        return f.any(left)

    def square(state: Sequence[str]) -> list[str]:
        total, power, left = state
        odd = f.value(f"trunc {t} {left} to {mask}")
        factor = f.value(f"select {mask} {odd}, {t} {power}, {t} {one}")
        return [
            f.value(f"mul {t} {total}, {factor}"),
            f.value(f"mul {t} {power}, {power}"),
            f.value(f"lshr {t} {left}, {one}"),
        ]

    return repeat_while(f, [(t, one), (t, base), (t, exponent)], unfinished, square)[0]
