"""The float32 vector functions.

The frequent ones are computed in float32; the others in float64 and rounded once.
What few numbers need is left to a function that is called where some lane does: bits are those of
the usual path wherever that one is right.
Imports: lanes, math_exp, math_inverse, math_power, math_special, math_trig, math64, shared_code.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.backends.codegen import math_exp, math_inverse, math_power, math_special, math_trig
from graphc.backends.codegen.lanes import Function, Lanes, Pair
from graphc.backends.codegen.math64 import FUNCTIONS64
from graphc.backends.codegen.shared_code import unless

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
# (e^2r - 1 - 2 r) / (2 r^2), and (e^-r - 1 + r) / r^2
_HALF_EXP = tuple(c * 2.0 ** (5 - i) for i, c in enumerate(_EXP))
_EXP_NEGATIVE = tuple(c * (-1.0) ** i for i, c in enumerate(_EXP))
_NORMAL_EXP = 87.0  # where |x| is no more, e^x is a normal number
_EXACT_SUM = 16.25  # where |x| is no more, 1 + 2^n is exact for n = round(x / ln 2)

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
# log(1 - erf(x)) / x in x, 0.9277 <= x <= 4.2
_ERF_LARGE = (
    -1.72853470e-5,
    3.83197126e-4,
    -3.88396438e-3,
    2.42546219e-2,
    -1.06777877e-1,
    -6.34846687e-1,
    -1.128717512,
)


def _exp_parts(v: Lanes, x: str) -> Pair:
    """e^x = 2^n value, n shifted; |x| < 2^15."""
    shifted = v.shifted(x, LOG2_E)
    n = v.unshift(shifted)
    r = v.fma(n, -LN2_LOW, v.fma(n, -LN2_HIGH, x))
    return v.fma(v.fma(v.poly(r, _EXP), r, 1.0), r, 1.0), shifted


def _exp_anywhere(v: Lanes, x: str) -> str:
    """What rounds to zero, as in a softmax of masked numbers, is not computed: processors take
    much longer for products that underflow."""
    zero = v.compare("olt", x, -104.0)
    value, shifted = _exp_parts(v, v.clamp_above(v.select(zero, 0.0, x), 89.0))
    return v.select(zero, 0.0, v.scale(value, shifted))


def exp(v: Lanes, x: str) -> str:
    """2^n is added to the exponent unless results may be denormal, infinite or NaN."""
    value, shifted = _exp_parts(v, x)
    usual = v.times_pow2(value, shifted)
    return unless(v, v.compare("ugt", v.abs(x), _NORMAL_EXP), usual, "exp", _exp_anywhere, x)


def _tail(v: Lanes, r: str, coefficients: Sequence[float]) -> Pair:
    """A polynomial of degree 4, in fewer steps one after the other than by Horner, and r^2."""
    a, b, c, d, e = coefficients
    square = v.mul(r, r)
    high = v.fma(square, a, v.fma(r, b, c))
    return v.fma(square, high, v.fma(r, d, e)), square


def _split_normal(v: Lanes, bits: str) -> Pair:
    """x = 2^e m with m in [sqrt(1/2), sqrt(2)), from the bits of x > 0: (m, e as a float)."""
    e = v.bit_op("ashr", v.bit_op("sub", bits, 0x3F3504F3), 23)
    m = v.from_bits(v.bit_op("sub", bits, v.bit_op("shl", e, 23)))
    return m, v.f.value(f"sitofp {v.int_type} {e} to {v.type}")


def _split(v: Lanes, x: str) -> Pair:
    """The same for denormal numbers too."""
    small = v.compare("olt", x, 2.0**-126)
    m, e = _split_normal(v, v.to_bits(v.select(small, v.mul(x, 2.0**23), x)))
    return m, v.select(small, v.sub(e, 23.0), e)


def _log_tail(v: Lanes, f: str, start: str | float) -> str:
    """start + log(1 + f) - f."""
    square = v.mul(f, f)
    tail = v.fma(v.mul(f, square), v.long_poly(f, _LOG), start)
    return v.fma(square, -0.5, tail)


def _finish_log(v: Lanes, result: str, x: str, zero: float = 0.0) -> str:
    """Special cases of a logarithm whose pole is at x = zero."""
    result = v.select(v.compare("olt", x, INF), result, x)
    result = v.select(v.compare("oeq", x, zero), -INF, result)
    return v.select(v.compare("olt", x, zero), NAN, result)


def _log_of_parts(v: Lanes, m: str, e: str) -> str:
    f = v.sub(m, 1.0)
    tail = _log_tail(v, f, v.mul(e, LN2_LOW))
    return v.fma(e, LN2_HIGH, v.add(f, tail))


def _log_anywhere(v: Lanes, x: str) -> str:
    return _finish_log(v, _log_of_parts(v, *_split(v, x)), x)


def log(v: Lanes, x: str) -> str:
    """Zero, denormals, infinity, NaN and what is negative are the rare case."""
    usual = _log_of_parts(v, *_split_normal(v, v.to_bits(x)))
    # The bits of the least normal number become the least integer: 0x7F000000 are in order.
    ordinal = v.bit_op("add", v.to_bits(x), 0x7F800000)
    odd = v.f.value(f"icmp sge {v.int_type} {ordinal}, {v.int_const(-0x01000000)}")
    return unless(v, odd, usual, "log", _log_anywhere, x)


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
    """x + x^3 P(x^2) near zero, else 1 - 2 / (e^2|x| + 1)."""
    sign = v.sign(x)
    a = v.flip(x, sign)
    square = v.mul(x, x)
    small = v.fma(v.poly(square, _TANH), v.mul(a, square), a)
    bounded = v.clamp_above(a, 10.0)
    n, power = v.power(bounded, 2 * LOG2_E)
    # e^2r = 1 + 2 (r + r^2 tail), of which half is divided
    r = v.fma(n, -LN2_LOW / 2, v.fma(n, -LN2_HIGH / 2, bounded))
    tail, r_square = _tail(v, r, _HALF_EXP)
    half = v.fma(v.fma(tail, r_square, r), power, v.fma(power, 0.5, 0.5))
    large = v.sub(1.0, v.div(1.0, half))
    return v.flip(v.select(v.compare("olt", a, 0.625), small, large), sign)


def erf(v: Lanes, x: str) -> str:
    sign = v.sign(x)
    a = v.flip(x, sign)
    small = v.fma(v.long_poly(v.mul(x, x), _ERF_SMALL), a, a)
    bounded = v.clamp_above(a, 4.2)
    exponent = v.mul(v.long_poly(bounded, _ERF_LARGE), bounded)
    n, power = v.power(exponent, LOG2_E)
    r = v.fma(n, -LN2_LOW, v.fma(n, -LN2_HIGH, exponent))
    tail, r_square = _tail(v, r, _EXP)
    # 1 - 2^n (1 + (e^r - 1))
    large = v.fma(v.neg(v.fma(tail, r_square, r)), power, v.sub(1.0, power))
    return v.flip(v.select(v.compare("ogt", a, 0.927734375), large, small), sign)


def _one_plus_exp(v: Lanes, x: str) -> tuple[str, str, str]:
    """1 + e^-x = (1 + 2^n) + 2^n p with |x| <= 87: (2^n, p, 1 + 2^n)."""
    n, power = v.power(x, -LOG2_E)
    r = v.fma(n, LN2_LOW, v.fma(n, LN2_HIGH, x))
    p = v.fma(v.poly(r, _EXP_NEGATIVE), v.mul(r, r), v.neg(r))
    return power, p, v.add(power, 1.0)


def _sigmoid_anywhere(v: Lanes, x: str) -> str:
    """The usual formula in its range, around it one that carries the error of 1 + 2^n."""
    bounded = v.clamp_above(v.clamp_below(x, -_NORMAL_EXP), _NORMAL_EXP)
    power, p, one_plus = _one_plus_exp(v, bounded)
    usual = v.fma(p, power, one_plus)
    lost = v.sub(1.0, v.sub(one_plus, power))
    wide = v.add(one_plus, v.fma(p, power, lost))
    inside = v.compare("ole", v.abs(x), _EXACT_SUM)
    result = v.div(1.0, v.select(inside, usual, wide))
    return v.select(v.compare("olt", x, -_NORMAL_EXP), _exp_anywhere(v, x), result)


def sigmoid(v: Lanes, x: str) -> str:
    """1 / (1 + e^-x)."""
    power, p, one_plus = _one_plus_exp(v, x)
    usual = v.div(1.0, v.fma(p, power, one_plus))
    outside = v.compare("ugt", v.abs(x), _EXACT_SUM)
    return unless(v, outside, usual, "sigmoid", _sigmoid_anywhere, x)


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
