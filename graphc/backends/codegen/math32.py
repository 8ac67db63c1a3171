"""The float32 vector functions.

The frequent ones are computed in float32; the others in float64 and rounded once.
Imports: lanes, math_exp, math_inverse, math_power, math_special, math_trig, math64.
"""

from __future__ import annotations

from graphc.backends.codegen import math_exp, math_inverse, math_power, math_special, math_trig
from graphc.backends.codegen.lanes import Function, Lanes
from graphc.backends.codegen.math64 import FUNCTIONS64

INF = float("inf")
NAN = float("nan")

LOG2_E = 1.44269504088896341
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
INV_LN2 = (1.4426950216293335, 1.925963033500011e-08)
INV_LN10 = (0.4342944920063019, -1.0103049952192578e-08)
LOG10_2 = (0.301025390625, 4.605039066518657e-06)  # 13 bits: products with e are exact

# (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2
_EXP = (
    0.0013906351523473859,
    0.008363119326531887,
    0.041666753590106964,
    0.16666577756404877,
    0.5,
)
# (log(1 + f) - f + f^2 / 2) / f^3 on sqrt(1/2) <= 1 + f < sqrt(2)
_LOG = (
    0.06850035488605499,
    -0.11411383002996445,
    0.11699030548334122,
    -0.12436552345752716,
    0.1424887329339981,
    -0.1666729897260666,
    0.20000703632831573,
    -0.2500000298023224,
    0.3333333134651184,
)
# (tanh(x) - x) / x^3 in x^2, |x| <= 0.625
_TANH = (
    -0.0060831233859062195,
    0.020986029878258705,
    -0.05384795367717743,
    0.1333274245262146,
    -0.333333283662796,
)
# erf(x) / x - 1 in x^2, |x| <= 0.9277
_ERF_SMALL = (
    -5.96761703e-4,
    4.99119423e-3,
    -2.67681349e-2,
    1.12819925e-1,
    -3.76125336e-1,
    1.28379166e-1,
)
# log(1 - erf(x)) / x + 1 in x, 0.9277 <= x <= 4.2
_ERF_LARGE = (
    -1.72853470e-5,
    3.83197126e-4,
    -3.88396438e-3,
    2.42546219e-2,
    -1.06777877e-1,
    -6.34846687e-1,
    -1.28717512e-1,
)


def _exp_parts(v: Lanes, x: str) -> tuple[str, str]:
    """e^x = 2^n value, n shifted; |x| < 2^15."""
    shifted = v.shifted(x, LOG2_E)
    n = v.unshift(shifted)
    r = v.fma(n, -LN2_LOW, v.fma(n, -LN2_HIGH, x))
    return v.add(v.fma(v.poly(r, _EXP), v.mul(r, r), r), 1.0), shifted


def exp(v: Lanes, x: str) -> str:
    bounded = v.clamp_above(v.clamp_below(x, -104.5), 89.0)
    value, shifted = _exp_parts(v, bounded)
    return v.scale(value, shifted)


def _exp_normal(v: Lanes, x: str) -> str:
    """e^x where neither x nor the result is extreme: |x| <= 87."""
    value, shifted = _exp_parts(v, x)
    return v.mul(value, v.pow2(v.to_bits(shifted)))


def _split(v: Lanes, x: str) -> tuple[str, str]:
    """x = 2^e m with m in [sqrt(1/2), sqrt(2)): (m, e as a float)."""
    small = v.compare("olt", x, 2.0**-126)
    bits = v.to_bits(v.select(small, v.mul(x, 2.0**23), x))
    e = v.bit_op("ashr", v.bit_op("sub", bits, 0x3F3504F3), 23)
    m = v.from_bits(v.bit_op("sub", bits, v.bit_op("shl", e, 23)))
    exponent = v.f.value(f"sitofp {v.int_type} {e} to {v.type}")
    return m, v.select(small, v.sub(exponent, 23.0), exponent)


def _log_tail(v: Lanes, f: str, start: str | float) -> str:
    """start + log(1 + f) - f."""
    square = v.mul(f, f)
    tail = v.fma(v.mul(f, square), v.poly(f, _LOG), start)
    return v.fma(square, -0.5, tail)


def _finish_log(v: Lanes, result: str, x: str, zero: float = 0.0) -> str:
    """Special cases of a logarithm whose pole is at x = zero."""
    result = v.select(v.compare("olt", x, INF), result, x)
    result = v.select(v.compare("oeq", x, zero), -INF, result)
    return v.select(v.compare("olt", x, zero), NAN, result)


def log(v: Lanes, x: str) -> str:
    m, e = _split(v, x)
    f = v.sub(m, 1.0)
    tail = _log_tail(v, f, v.mul(e, LN2_LOW))
    return _finish_log(v, v.fma(e, LN2_HIGH, v.add(f, tail)), x)


def log1p(v: Lanes, x: str) -> str:
    """log of 1 + x, the rounding error of that sum carried into the fraction."""
    total, error = v.two_sum(v.const(1.0), x)
    m, e = _split(v, total)
    # 2^-e is m / total up to rounding, which is enough for the error term.
    scaled = v.mul(error, v.div(m, total))
    f = v.add(v.sub(m, 1.0), v.select(v.compare("olt", x, 2.0**30), scaled, 0.0))
    tail = _log_tail(v, f, v.mul(e, LN2_LOW))
    result = _finish_log(v, v.fma(e, LN2_HIGH, v.add(f, tail)), x, -1.0)
    return v.select(v.compare("olt", v.abs(x), 2.0**-26), x, result)


def log2(v: Lanes, x: str) -> str:
    m, e = _split(v, x)
    f = v.sub(m, 1.0)
    tail = v.mul(_log_tail(v, f, 0.0), INV_LN2[0])
    high, low = v.two_product(f, INV_LN2[0])
    low = v.add(v.fma(f, INV_LN2[1], low), tail)
    total, carry = v.fast_two_sum(e, high)
    return _finish_log(v, v.add(total, v.add(carry, low)), x)


def log10(v: Lanes, x: str) -> str:
    m, e = _split(v, x)
    f = v.sub(m, 1.0)
    tail = v.fma(e, LOG10_2[1], v.mul(_log_tail(v, f, 0.0), INV_LN10[0]))
    high, low = v.two_product(f, INV_LN10[0])
    low = v.add(v.fma(f, INV_LN10[1], low), tail)
    total, carry = v.fast_two_sum(v.mul(e, LOG10_2[0]), high)
    return _finish_log(v, v.add(total, v.add(carry, low)), x)


def tanh(v: Lanes, x: str) -> str:
    a = v.abs(x)
    square = v.mul(x, x)
    small = v.fma(v.mul(v.poly(square, _TANH), square), x, x)
    power = _exp_normal(v, v.mul(v.clamp_above(a, 10.0), 2.0))
    large = v.sub(1.0, v.div(2.0, v.add(power, 1.0)))
    return v.copysign(v.select(v.compare("olt", a, 0.625), small, large), x)


def erf(v: Lanes, x: str) -> str:
    a = v.abs(x)
    small = v.fma(v.poly(v.mul(x, x), _ERF_SMALL), x, x)
    bounded = v.clamp_above(a, 4.2)
    exponent = v.fma(v.poly(bounded, _ERF_LARGE), bounded, v.neg(bounded))
    large = v.sub(1.0, _exp_normal(v, exponent))
    return v.copysign(v.select(v.compare("ogt", a, 0.927734375), large, small), x)


def sigmoid(v: Lanes, x: str) -> str:
    """e / (1 + e) or 1 / (1 + e) with e = e^-|x|, so small results keep their precision."""
    a = v.clamp_above(v.abs(x), 104.5)
    high, rest, shifted = math_exp.exp_pair(v, v.neg(a))
    power = v.scale(v.add(high, rest), shifted)
    # The reciprocal of 1 + e with its rounding errors: the product is rounded once.
    denominator, denominator_low = v.fast_two_sum(1.0, power)
    inverse = v.div(1.0, denominator)
    residue = v.fma(v.neg(inverse), denominator, 1.0)
    residue = v.mul(inverse, v.fma(v.neg(inverse), denominator_low, residue))
    numerator = v.select(v.compare("olt", x, 0.0), power, 1.0)
    return v.fma(numerator, inverse, v.mul(numerator, residue))


def _through_double(name: str) -> Function:
    """The float64 function between a widening and a rounding."""

    def function(v: Lanes, *operands: str) -> str:
        wide = Lanes(v.f, "double")
        extended = [v.f.value(f"fpext {v.type} {x} to {wide.type}") for x in operands]
        result = FUNCTIONS64[name](wide, *extended)
        return v.f.value(f"fptrunc {wide.type} {result} to {v.type}")

    return function


_SINGLE: dict[str, Function] = {
    "exp": exp,
    "log": log,
    "tanh": tanh,
    "erf": erf,
    "erfc": math_special.erfc_single,
    "sigmoid": sigmoid,
    "pow": math_power.power_single,
    "log1p": log1p,
    "log2": log2,
    "log10": log10,
    "exp2": math_exp.exp2,
    "expm1": math_exp.expm1,
    "sinh": math_exp.sinh,
    "cosh": math_exp.cosh,
    "sin": math_trig.sin,
    "asin": math_inverse.asin,
    "acos": math_inverse.acos,
    "atan": math_inverse.atan,
    "atan2": math_inverse.atan2,
    "cos": math_trig.cos,
    "tan": math_trig.tan,
}

FUNCTIONS32: dict[str, Function] = {
    name: _SINGLE.get(name) or _through_double(name) for name in FUNCTIONS64
}
