"""Inverse trigonometric functions, in float32 and float64 alike.

Imports: lanes.
"""

from __future__ import annotations

from graphc.backends.codegen.lanes import Lanes

INF = float("inf")

# pi and its parts, each with what rounding took
_PI = {
    32: (3.1415927410125732, -8.742277657347586e-08),
    64: (3.141592653589793, 1.2246467991473532e-16),
}
_HALF_PI = {
    32: (1.5707963705062866, -4.371138828673793e-08),
    64: (1.5707963267948966, 6.123233995736766e-17),
}
_QUARTER_PI = {
    32: (0.7853981852531433, -2.1855694143368964e-08),
    64: (0.7853981633974483, 3.061616997868383e-17),
}
_EXTREMES = {32: (2.0**-100, 2.0**120), 64: (2.0**-990, 2.0**1000)}

# (asin(x) - x) / x^3 in x^2, |x| <= 1/2
_ASIN = {
    32: (
        0.0343598909676075,
        0.01669260859489441,
        0.031213855370879173,
        0.0445871464908123,
        0.07500148564577103,
        0.1666666567325592,
    ),
    64: (
        0.03113162436213714,
        -0.021797813077077413,
        0.02146510302244774,
        0.0022087202475272985,
        0.009557214288167509,
        0.009575854819411471,
        0.01157263649870239,
        0.013963203747661398,
        0.017352853308654465,
        0.02237215589218777,
        0.03038194451633372,
        0.04464285714194767,
        0.07500000000000534,
        0.16666666666666666,
    ),
}
# (atan(t) - t) / t^3 in t^2, |t| <= tan(pi / 8)
_ATAN = {
    32: (
        -0.06430033594369888,
        0.10735991597175598,
        -0.14263056218624115,
        0.1999950259923935,
        -0.3333333134651184,
    ),
    64: (
        0.01546475403499142,
        -0.033760685686075105,
        0.045168527566090674,
        -0.052219583574184575,
        0.058776241428201974,
        -0.06666294193064885,
        0.07692287792297929,
        -0.09090908391411012,
        0.1111111109581892,
        -0.14285714285526005,
        0.1999999999999892,
        -0.3333333333333333,
    ),
}


def _asin_tail(v: Lanes, x: str, square: str) -> str:
    """asin(x) - x for |x| <= 1/2."""
    return v.mul(v.mul(x, square), v.poly(square, _ASIN[v.bits]))


def _complement(v: Lanes, a: str) -> tuple[str, str]:
    """asin(sqrt((1 - a) / 2)) as root + tail, for 1/2 <= a <= 1."""
    w = v.mul(v.sub(1.0, a), 0.5)
    root = v.sqrt(w)
    residue = v.fma(v.neg(root), root, w)
    positive = v.compare("ogt", w, 0.0)
    root_low = v.select(positive, v.div(residue, v.add(root, root)), 0.0)
    return root, v.add(root_low, _asin_tail(v, root, w))


def asin(v: Lanes, x: str) -> str:
    """x + tail, or pi/2 - 2 asin(sqrt((1 - a) / 2)) where a = |x| >= 1/2."""
    a = v.abs(x)
    small = v.add(a, _asin_tail(v, a, v.mul(a, a)))
    root, tail = _complement(v, a)
    high, low = v.fast_two_sum(_HALF_PI[v.bits][0], v.mul(root, -2.0))
    low = v.add(v.fma(tail, -2.0, low), _HALF_PI[v.bits][1])
    result = v.select(v.compare("olt", a, 0.5), small, v.add(high, low))
    return v.copysign(result, x)


def acos(v: Lanes, x: str) -> str:
    a = v.abs(x)
    high, low = v.fast_two_sum(_HALF_PI[v.bits][0], v.neg(x))
    low = v.sub(v.add(low, _HALF_PI[v.bits][1]), _asin_tail(v, x, v.mul(x, x)))
    middle = v.add(high, low)
    root, tail = _complement(v, a)
    twice, twice_tail = v.add(root, root), v.add(tail, tail)
    high, low = v.fast_two_sum(_PI[v.bits][0], v.neg(twice))
    left = v.add(high, v.sub(v.add(low, _PI[v.bits][1]), twice_tail))
    outer = v.select(v.compare("olt", x, 0.0), left, v.add(twice, twice_tail))
    return v.select(v.compare("olt", a, 0.5), middle, outer)


def _atan_ratio(v: Lanes, y: str, x: str) -> tuple[str, str]:
    """atan(y / x) as a sum, for 0 <= y <= x."""
    upper = v.compare("ogt", y, v.mul(x, 0.41421356237309503))
    total, total_low = v.fast_two_sum(x, y)
    numerator = v.select(upper, v.sub(y, x), y)
    denominator = v.select(upper, total, x)
    low = v.select(upper, total_low, 0.0)
    t = v.div(numerator, denominator)
    residue = v.fma(v.neg(t), low, v.fma(v.neg(t), denominator, numerator))
    square = v.mul(t, t)
    tail = v.fma(v.mul(t, square), v.poly(square, _ATAN[v.bits]), v.div(residue, denominator))
    high, low = v.fast_two_sum(v.select(upper, _QUARTER_PI[v.bits][0], 0.0), t)
    return high, v.add(v.add(low, v.select(upper, _QUARTER_PI[v.bits][1], 0.0)), tail)


def _subtract_from(v: Lanes, constant: tuple[float, float], high: str, low: str) -> tuple[str, str]:
    total, carry = v.fast_two_sum(constant[0], v.neg(high))
    return total, v.sub(v.add(carry, constant[1]), low)


def atan(v: Lanes, x: str) -> str:
    a = v.abs(x)
    steep = v.compare("ogt", a, 1.0)
    y, bounded = v.select(steep, 1.0, a), v.select(steep, a, 1.0)
    high, low = _atan_ratio(v, y, bounded)
    other, other_low = _subtract_from(v, _HALF_PI[v.bits], high, low)
    result = v.add(v.select(steep, other, high), v.select(steep, other_low, low))
    result = v.select(v.compare("oeq", a, INF), _HALF_PI[v.bits][0], result)
    return v.copysign(result, x)


def atan2(v: Lanes, y: str, x: str) -> str:
    """The angle of (x, y), C99 special cases."""
    a, b = v.abs(y), v.abs(x)
    # Two infinities are a diagonal, two zeros the axis of x.
    both = v.compare("oeq", v.intrinsic("minimum", a, b), INF)
    a, b = v.select(both, 1.0, a), v.select(both, 1.0, b)
    steep = v.compare("ogt", a, b)
    least, most = v.select(steep, b, a), v.select(steep, a, b)
    # Keep the sum and the quotient's residue away from overflow and underflow.
    small, large = _EXTREMES[v.bits]
    factor = v.select(v.compare("ogt", most, large), 2.0**-30, 1.0)
    factor = v.select(v.compare("olt", most, small), 2.0**30, factor)
    infinite = v.compare("oeq", most, INF)
    empty = v.compare("oeq", most, 0.0)
    least = v.select(infinite, 0.0, v.mul(least, factor))
    most = v.select(infinite, 1.0, v.select(empty, 1.0, v.mul(most, factor)))
    high, low = _atan_ratio(v, least, most)
    other, other_low = _subtract_from(v, _HALF_PI[v.bits], high, low)
    high, low = v.select(steep, other, high), v.select(steep, other_low, low)
    other, other_low = _subtract_from(v, _PI[v.bits], high, low)
    left = v.f.value(f"icmp slt {v.int_type} {v.to_bits(x)}, zeroinitializer")
    result = v.add(v.select(left, other, high), v.select(left, other_low, low))
    unordered = v.compare("uno", x, y)
    return v.select(unordered, v.add(x, y), v.copysign(result, y))
