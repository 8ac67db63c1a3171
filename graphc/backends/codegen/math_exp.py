"""The exponential family, from one reduced exponential kept as an unevaluated sum.

Every function works in float64; `exp2`, `expm1`, `sinh` and `cosh` in float32 too.

Imports: lanes.
"""

from __future__ import annotations

from graphc.backends.codegen.lanes import Lanes, Pair

LOG2_E = 1.4426950408889634
# ln 2 in two parts; n times the first is exact
_LN2_SPLIT = {
    32: (0.693359375, -0.00021219444170128554),
    64: (6.93147180369123816490e-01, 1.90821492927058770002e-10),
}
# ln 2 rounded, and what rounding took
_LN2 = {
    32: (0.6931471824645996, -1.9046542121259336e-09),
    64: (0.6931471805599453, 2.3190468138462996e-17),
}
# Below the first e^x rounds to zero, above the second e^x / 2 overflows.
_RANGE = {32: (-106.0, 91.0), 64: (-760.0, 720.0)}
_RANGE_OF_EXP2 = {32: (-160.0, 130.0), 64: (-1100.0, 1030.0)}

# (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2
_EXP = {
    32: (
        0.00019713614892680198,
        0.0013930522836744785,
        0.008333598263561726,
        0.041666511446237564,
        0.1666666567325592,
        0.5,
    ),
    64: (
        2.089243114305338e-09,
        2.510546837408962e-08,
        2.755733912718743e-07,
        2.755725470321731e-06,
        2.4801587259050063e-05,
        0.0001984126987548788,
        0.0013888888888910422,
        0.008333333333325883,
        0.04166666666666664,
        0.1666666666666667,
        0.5,
    ),
}
# (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2, relative error 2^-27
_EXP_TO_SINGLE = (
    0.00019713614892680198,
    0.0013930522836744785,
    0.008333598263561726,
    0.041666511446237564,
    0.1666666567325592,
    0.5,
)
# (sinh(x) - x) / x^3 in x^2, |x| <= 1
_SINH = {
    32: (
        2.7589458113652654e-06,
        0.00019846373470500112,
        0.0083332983776927,
        0.1666666716337204,
    ),
    64: (
        1.3142150105105731e-14,
        7.261076492704135e-13,
        1.6064821001631934e-10,
        2.505206436268943e-08,
        2.755731940358731e-06,
        0.00019841269840893872,
        0.00833333333333368,
        0.16666666666666666,
    ),
}
# (tanh(x) - x) / x^3 in x^2, |x| <= 0.55
_TANH = (
    -2.0224180239304145e-05,
    8.455144580546985e-05,
    -0.0002342802195194051,
    0.0005888119361476924,
    -0.0014556354831588396,
    0.0035921068965707775,
    -0.008863234114638439,
    0.02186948848016935,
    -0.0539682539670931,
    0.13333333333332342,
    -0.3333333333333333,
)


def _reduce(v: Lanes, x: str, low: str | None) -> tuple[str, str, str]:
    """x + low = n ln 2 + r + r_low; returns (r, r_low, shifted n)."""
    shifted = v.shifted(x, LOG2_E)
    n = v.unshift(shifted)
    first, second = _LN2_SPLIT[v.bits]
    partial = v.fma(n, -first, x)
    correction = v.mul(n, second)
    r = v.sub(partial, correction)
    r_low = v.sub(v.sub(partial, r), correction)
    if low is not None:
        # Normalised anew: low may be far above an ulp of r, and e^r neglects the product r * r_low.
        r, r_low = v.two_sum(r, v.add(r_low, low))
    return r, r_low, shifted


def exp_pair(v: Lanes, x: str, low: str | None = None) -> tuple[str, str, str]:
    """e^(x + low) = 2^n (high + rest) with n shifted, for |x| < 2^20; rest is not normalised."""
    r, r_low, shifted = _reduce(v, x, low)
    return *_one_plus(v, r, r_low), shifted


def _one_plus(v: Lanes, r: str, r_low: str) -> Pair:
    tail = v.fma(v.mul(r, r), v.poly(r, _EXP[v.bits]), r_low)
    high, rest = v.fast_two_sum(1.0, r)
    return high, v.add(rest, tail)


def clamp_exponent(v: Lanes, x: str) -> str:
    """x within the range where e^x is neither zero nor infinite for certain."""
    low, high = _RANGE[v.bits]
    return v.clamp_above(v.clamp_below(x, low), high)


def exp(v: Lanes, x: str) -> str:
    high, rest, shifted = exp_pair(v, clamp_exponent(v, x))
    return v.scale(v.add(high, rest), shifted)


def exp_to_single(wide: Lanes, x: str) -> str:
    """e^x in float64 with the 31 bits that a result in float32 needs, |x| <= 600."""
    shifted = wide.shifted(x, LOG2_E)
    r = wide.fma(wide.unshift(shifted), -_LN2[64][0], x)
    value = wide.fma(wide.mul(r, r), wide.poly(r, _EXP_TO_SINGLE), wide.add(r, 1.0))
    return wide.mul(value, wide.pow2(wide.to_bits(shifted)))


def exp2(v: Lanes, x: str) -> str:
    low, high = _RANGE_OF_EXP2[v.bits]
    bounded = v.clamp_above(v.clamp_below(x, low), high)
    shifted = v.shifted(bounded, 1.0)
    fraction = v.sub(bounded, v.unshift(shifted))
    ln2, ln2_rest = _LN2[v.bits]
    r, error = v.two_product(fraction, ln2)
    one, rest = _one_plus(v, r, v.fma(fraction, ln2_rest, error))
    return v.scale(v.add(one, rest), shifted)


def expm1(v: Lanes, x: str) -> str:
    """2^n ((1 - 2^-n) + (e^r - 1)), exact cancellation included."""
    bounded = v.clamp_above(v.clamp_below(x, -40.0), _RANGE[v.bits][1])
    r, r_low, shifted = _reduce(v, bounded, None)
    tail = v.fma(v.mul(r, r), v.poly(r, _EXP[v.bits]), r_low)
    n = v.unshift(shifted)
    opposite = v.to_bits(v.shifted(v.clamp_above(n, 64.0), -1.0))
    base, base_low = v.fast_two_sum(1.0, v.neg(v.pow2(opposite)))
    high, rest = v.fast_two_sum(base, r)
    total = v.add(high, v.add(v.add(rest, base_low), tail))
    result = v.scale(total, shifted)
    return v.select(v.compare("olt", v.abs(x), 2.0**-54), x, result)


def _half_exp(v: Lanes, a: str) -> Pair:
    """e^a / 2 as a normalised Pair, a >= 0; the high part overflows to infinity with cosh(a)."""
    high, rest, shifted = exp_pair(v, v.clamp_above(a, _RANGE[v.bits][1]))
    high, rest = v.fast_two_sum(high, rest)
    less = v.sub(shifted, 1.0)
    return v.scale(high, less), v.scale(rest, less)


def sinh(v: Lanes, x: str) -> str:
    a = v.abs(x)
    square = v.mul(x, x)
    small = v.fma(v.mul(x, square), v.poly(square, _SINH[v.bits]), x)
    high, rest = _half_exp(v, a)
    rest = v.sub(rest, v.div(0.25, high))
    large = v.add(high, rest)
    return v.copysign(v.select(v.compare("olt", a, 1.0), small, large), x)


def cosh(v: Lanes, x: str) -> str:
    high, rest = _half_exp(v, v.abs(x))
    return v.add(high, v.add(rest, v.div(0.25, high)))


def tanh(v: Lanes, x: str) -> str:
    """x + x^3 P(x^2) near zero, else 1 - 2 / (e^2|x| + 1)."""
    a = v.abs(x)
    square = v.mul(x, x)
    small = v.fma(v.mul(x, square), v.poly(square, _TANH), x)
    bounded = v.clamp_above(a, 22.0)
    high, rest, shifted = exp_pair(v, v.add(bounded, bounded))
    power = v.scale(v.add(high, rest), shifted)
    large = v.sub(1.0, v.div(2.0, v.add(power, 1.0)))
    return v.copysign(v.select(v.compare("olt", a, 0.55), small, large), x)


def sigmoid(v: Lanes, x: str) -> str:
    """e / (1 + e) or 1 / (1 + e) with e = e^-|x|, so small results keep their precision."""
    high, rest, shifted = exp_pair(v, clamp_exponent(v, v.neg(v.abs(x))))
    high, rest = v.fast_two_sum(high, rest)
    power, power_low = v.scale(high, shifted), v.scale(rest, shifted)
    denominator, denominator_low = v.fast_two_sum(1.0, power)
    denominator_low = v.add(denominator_low, power_low)
    negative = v.compare("olt", x, 0.0)
    numerator = v.select(negative, power, 1.0)
    quotient = v.div(numerator, denominator)
    residue = v.fma(v.neg(quotient), denominator, numerator)
    residue = v.add(residue, v.select(negative, power_low, 0.0))
    residue = v.fma(v.neg(quotient), denominator_low, residue)
    return v.add(quotient, v.div(residue, denominator))
