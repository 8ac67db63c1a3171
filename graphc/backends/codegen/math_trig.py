"""Sine, cosine and tangent, in float32 and float64 alike.

Imports: lanes, math_angle.
"""

from __future__ import annotations

from graphc.backends.codegen.lanes import Lanes, Pair
from graphc.backends.codegen.math_angle import reduce_angle

# (sin(x) - x) / x^3 in x^2, |x| <= pi / 4
_SIN = {
    32: (-0.00019582538516260684, 0.008332711644470692, -0.166666641831398),
    64: (
        -7.079128582863316e-13,
        1.6048294028445262e-10,
        -2.5052026797003744e-08,
        2.7557318923413566e-06,
        -0.0001984126984072899,
        0.008333333333332915,
        -0.16666666666666666,
    ),
}
# (cos(x) - 1 + x^2 / 2) / x^4 in x^2, |x| <= pi / 4
_COS = {
    32: (2.454279820085503e-05, -0.0013888267567381263, 0.0416666641831398),
    64: (
        3.474783218131106e-14,
        -1.1444828218554475e-11,
        2.0876556948116573e-09,
        -2.7557318480835555e-07,
        2.480158730024346e-05,
        -0.0013888888888887846,
        0.041666666666666664,
    ),
}


def _sin_pair(v: Lanes, high: str, low: str, square: str) -> Pair:
    cubic = v.mul(v.mul(high, square), v.poly(square, _SIN[v.bits]))
    return high, v.fma(low, v.fma(square, -0.5, 1.0), cubic)


def _cos_pair(v: Lanes, high: str, low: str, square: str) -> Pair:
    half = v.mul(square, 0.5)
    top, rest = v.fast_two_sum(1.0, v.neg(half))
    quartic = v.fma(v.mul(square, square), v.poly(square, _COS[v.bits]), v.neg(v.mul(high, low)))
    return top, v.add(rest, quartic)


def _odd(v: Lanes, quadrant: str) -> str:
    bit = v.bit_op("and", quadrant, 1)
    return v.f.value(f"icmp ne {v.int_type} {bit}, zeroinitializer")


def _wave(v: Lanes, x: str, quarter: int) -> str:
    """sin(x + quarter * pi/2)."""
    quadrant, high, low = reduce_angle(v, x)
    if quarter:
        quadrant = v.bit_op("add", quadrant, quarter)
    square = v.mul(high, high)
    sine = v.add(*_sin_pair(v, high, low, square))
    cosine = v.add(*_cos_pair(v, high, low, square))
    value = v.select(_odd(v, quadrant), cosine, sine)
    sign = v.bit_op("shl", v.bit_op("and", quadrant, 2), v.bits - 2)
    return v.from_bits(v.bit_op("xor", v.to_bits(value), sign))


def sin(v: Lanes, x: str) -> str:
    result = _wave(v, x, 0)
    return v.select(v.compare("olt", v.abs(x), 2.0**-27), x, result)


def cos(v: Lanes, x: str) -> str:
    return _wave(v, x, 1)


def tan(v: Lanes, x: str) -> str:
    """sin / cos, or -cos / sin in odd quadrants, both kept as Pairs through the division."""
    quadrant, high, low = reduce_angle(v, x)
    square = v.mul(high, high)
    s, s_low = v.fast_two_sum(*_sin_pair(v, high, low, square))
    c, c_low = v.fast_two_sum(*_cos_pair(v, high, low, square))
    odd = _odd(v, quadrant)
    top, top_low = v.select(odd, v.neg(c), s), v.select(odd, v.neg(c_low), s_low)
    bottom, bottom_low = v.select(odd, s, c), v.select(odd, s_low, c_low)
    quotient = v.div(top, bottom)
    residue = v.add(v.fma(v.neg(quotient), bottom, top), top_low)
    residue = v.fma(v.neg(quotient), bottom_low, residue)
    result = v.add(quotient, v.div(residue, bottom))
    return v.select(v.compare("olt", v.abs(x), 2.0**-27), x, result)
