"""The logarithm family in float64, from one double-word logarithm.

Imports: lanes.
"""

from __future__ import annotations

from graphc.backends.codegen.lanes import Lanes, Pair

INF = float("inf")
NAN = float("nan")

LN2_HIGH = 6.93147180369123816490e-01  # 32 significant bits: e * LN2_HIGH is exact
LN2_LOW = 1.90821492927058770002e-10

_ONE = 0x3FF0000000000000
_SQRT_HALF = 0x3FE6A09E667F3BCD
_TWO_THIRDS = 0.6666666666666666
_TWO_THIRDS_REST = 3.700743415417188e-17
_INV_LN2 = (1.4426950408889634, 2.0355273740931033e-17)
_INV_LN10 = (0.4342944819032518, 1.098319650216765e-17)
_LOG10_2_HIGH = 0.3010299956513336  # 36 bits: products with e are exact
_LOG10_2_LOW = 1.2647602381650425e-11

# (2 atanh(s) - 2 s - 2/3 s^3) / s^5 in s^2, s <= 0.1716
_LOG = (
    0.11586278390576825,
    0.11721360458986112,
    0.13334136646438434,
    0.1538460999634057,
    0.18181818154301455,
    0.2222222222277534,
    0.28571428571426316,
    0.4,
)


def log_pair(v: Lanes, x: str, low: str | None = None) -> tuple[str, str, str]:
    """log(x + low) = e ln 2 + high + rest: (e, high, rest), for 0 < x < infinity.

    x is 2^e m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1).  Relative
    error of high + rest about 2^-65.  With `low`, x must be a normal number.
    """
    small = v.compare("olt", x, 2.0**-1022)
    bits = v.to_bits(v.select(small, v.mul(x, 2.0**54), x))
    biased = v.bit_op("lshr", v.bit_op("add", bits, _ONE - _SQRT_HALF), 52)
    exponent = v.bit_op("shl", v.bit_op("sub", biased, 1023), 52)
    m = v.from_bits(v.bit_op("sub", bits, exponent))
    e = v.sub(v.from_bits(v.bit_op("or", biased, 0x4330000000000000)), 2.0**52 + 1023.0)
    e = v.select(small, v.sub(e, 54.0), e)
    f = v.sub(m, 1.0)
    denominator, denominator_low = v.fast_two_sum(2.0, f)
    s = v.div(f, denominator)
    rest = v.fma(v.neg(s), denominator, f)
    if low is not None:
        inverse = v.from_bits(v.bit_op("shl", v.bit_op("sub", v.int_const(2046), biased), 52))
        scaled = v.select(v.compare("olt", x, 2.0**60), v.mul(low, inverse), 0.0)
        rest = v.add(rest, scaled)
        denominator_low = v.add(denominator_low, scaled)
    s_low = v.div(v.fma(v.neg(s), denominator_low, rest), denominator)
    return e, *_two_atanh(v, s, s_low)


def _two_atanh(v: Lanes, s: str, s_low: str) -> Pair:
    """2 atanh(s + s_low) = 2 s + s^3 (2/3 + s^2 P(s^2)), the cubic term in double-word too."""
    square, square_low = v.two_product(s, s)
    square_low = v.fma(v.add(s, s), s_low, square_low)
    factor, factor_low = v.fast_two_sum(_TWO_THIRDS, v.mul(square, v.poly(square, _LOG)))
    factor_low = v.add(factor_low, _TWO_THIRDS_REST)
    cube, cube_low = v.two_product(s, square)
    cube_low = v.fma(s, square_low, v.fma(s_low, square, cube_low))
    term, term_low = v.two_product(cube, factor)
    term_low = v.fma(cube, factor_low, v.fma(cube_low, factor, term_low))
    high, rest = v.fast_two_sum(v.add(s, s), term)
    return high, v.add(rest, v.add(term_low, v.add(s_low, s_low)))


def log_sum(v: Lanes, e: str, high: str, rest: str) -> Pair:
    """e ln 2 + high + rest as a Pair."""
    total, carry = v.fast_two_sum(v.mul(e, LN2_HIGH), high)
    low = v.add(carry, v.fma(e, LN2_LOW, rest))
    return v.fast_two_sum(total, low)


def _finish(v: Lanes, result: str, x: str, zero: float = 0.0) -> str:
    """Special cases of a logarithm whose pole is at x = zero."""
    result = v.select(v.compare("olt", x, INF), result, x)
    result = v.select(v.compare("oeq", x, zero), -INF, result)
    return v.select(v.compare("olt", x, zero), NAN, result)


def log(v: Lanes, x: str) -> str:
    e, high, rest = log_pair(v, x)
    return _finish(v, log_sum(v, e, high, rest)[0], x)


def _times(v: Lanes, pair: Pair, constant: tuple[float, float]) -> Pair:
    high, low = v.two_product(pair[0], constant[0])
    return high, v.fma(pair[1], constant[0], v.fma(pair[0], constant[1], low))


def log2(v: Lanes, x: str) -> str:
    e, high, rest = log_pair(v, x)
    high, rest = _times(v, (high, rest), _INV_LN2)
    total, carry = v.fast_two_sum(e, high)
    return _finish(v, v.add(total, v.add(carry, rest)), x)


def log10(v: Lanes, x: str) -> str:
    e, high, rest = log_pair(v, x)
    high, rest = _times(v, (high, rest), _INV_LN10)
    total, carry = v.fast_two_sum(v.mul(e, _LOG10_2_HIGH), high)
    rest = v.add(carry, v.fma(e, _LOG10_2_LOW, rest))
    return _finish(v, v.add(total, rest), x)


def log1p_pair(v: Lanes, x: str, low: str | None = None) -> str:
    """log(1 + x + low), x > -1 and finite, without the special cases."""
    total, error = v.two_sum(v.const(1.0), x)
    if low is not None:
        error = v.add(error, low)
    e, high, rest = log_pair(v, total, error)
    return log_sum(v, e, high, rest)[0]


def log1p(v: Lanes, x: str) -> str:
    result = _finish(v, log1p_pair(v, x), x, -1.0)
    return v.select(v.compare("olt", v.abs(x), 2.0**-54), x, result)


def asinh(v: Lanes, x: str) -> str:
    """log1p(a + a^2 / (1 + sqrt(1 + a^2))), or log(a) + ln 2 where a^2 would overflow."""
    a = v.abs(x)
    large = v.compare("oge", a, 2.0**60)
    b = v.select(large, 1.0, a)
    square = v.mul(b, b)
    step = v.div(square, v.add(v.sqrt(v.add(square, 1.0)), 1.0))
    argument, low = v.two_sum(b, step)
    result = _log1p_or_log_twice(v, argument, low, a, large)
    result = v.select(v.compare("olt", a, INF), result, a)
    return v.copysign(v.select(v.compare("olt", a, 2.0**-28), a, result), x)


def _log1p_or_log_twice(v: Lanes, y: str, low: str, x: str, large: str) -> str:
    """log(1 + y + low), or log(2 x) where `large`."""
    total, error = v.two_sum(v.const(1.0), y)
    error = v.add(error, low)
    e, high, rest = log_pair(v, v.select(large, x, total), v.select(large, 0.0, error))
    e = v.select(large, v.add(e, 1.0), e)
    return log_sum(v, e, high, rest)[0]


def acosh(v: Lanes, x: str) -> str:
    """log1p(t + sqrt(2 t + t^2)), t = x - 1."""
    large = v.compare("oge", x, 2.0**60)
    t = v.sub(v.select(large, 2.0, x), 1.0)
    inside, inside_low = v.two_product(t, t)
    inside, carry = v.two_sum(v.add(t, t), inside)
    root = v.sqrt(inside)
    remainder = v.fma(v.neg(root), root, inside)
    remainder = v.add(remainder, v.add(carry, inside_low))
    positive = v.compare("ogt", root, 0.0)
    root_low = v.select(positive, v.div(remainder, v.add(root, root)), 0.0)
    argument, low = v.two_sum(t, root)
    result = _log1p_or_log_twice(v, argument, v.add(low, root_low), x, large)
    result = v.select(v.compare("olt", x, INF), result, x)
    return v.select(v.compare("olt", x, 1.0), NAN, result)


def atanh(v: Lanes, x: str) -> str:
    """log1p(2 a / (1 - a)) / 2."""
    a = v.abs(x)
    denominator, denominator_low = v.fast_two_sum(1.0, v.neg(v.clamp_above(a, 1.0)))
    twice = v.add(a, a)
    quotient = v.div(twice, denominator)
    rest = v.fma(v.neg(quotient), denominator, twice)
    low = v.div(v.fma(v.neg(quotient), denominator_low, rest), denominator)
    result = v.mul(log1p_pair(v, quotient, low), 0.5)
    result = v.select(v.compare("olt", a, 2.0**-28), a, result)
    result = v.select(v.compare("oeq", a, 1.0), INF, result)
    return v.copysign(v.select(v.compare("ole", a, 1.0), result, NAN), x)
