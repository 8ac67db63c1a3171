"""The cube root and the error function in float64, and the complementary one in float32.

Imports: lanes, math_exp.
"""

from __future__ import annotations

from graphc.backends.codegen.lanes import Lanes
from graphc.backends.codegen.math_exp import exp_pair, exp_to_single

INF = float("inf")

# erf(x) / x - 1 in x^2, |x| <= 1
_ERF = (
    -2.3237518130201512e-11,
    2.1377310090297942e-10,
    -1.5923932999503168e-09,
    1.5447442295817834e-08,
    -1.6439054818520178e-07,
    1.6467831548631928e-06,
    -1.4925962101669903e-05,
    0.0001205534489300798,
    -0.0008548327338458968,
    0.005223977631038373,
    -0.026866170645763545,
    0.11283791670959249,
    -0.3761263890318388,
    0.1283791670955126,
)
# (1 + 2 x) e^(x^2) erfc(x) in t = (x - 3) / (x + 3), 1/2 <= x <= 28
_ERFC = (
    7.739850245003266e-09,
    7.208623919346362e-08,
    -8.20276703956735e-08,
    -5.861818661852207e-07,
    3.0071968638841223e-07,
    3.4547399319992603e-06,
    -6.998669406690488e-07,
    -2.009426545314572e-05,
    4.938307925927028e-06,
    0.00012509793194391121,
    -0.00010515730690841114,
    -0.0007798320706467368,
    0.0018886900163098616,
    0.0025293917986872077,
    -0.023770514891318067,
    0.06830802734482308,
    -0.11927366341642054,
    0.12964515870274101,
    -0.04756229435343321,
    -0.13562110612458103,
    1.2530080582697296,
)
# (a + 3) e^(a^2) erfc(a) in t = (a - 3) / (a + 3), 0 <= a <= 10.3, relative error 2^-34
_ERFC_SINGLE = (
    3.9750897370189635e-05,
    9.630702672347642e-05,
    -0.0002872571731309452,
    -0.0005460521722400861,
    0.003037781308924869,
    -0.001212480201351828,
    -0.026827814512956582,
    0.1195277429867379,
    -0.31046722391940634,
    0.5902283580512353,
    -0.8833944538837283,
    1.074006907085083,
)
# m^(1/3) on 1 <= m < 2, relative error 2^-16
_CBRT = (
    -0.010425274118756449,
    0.08502447452075088,
    -0.2982667289658472,
    0.7159085229810622,
    0.5077694517808452,
)


def cbrt(v: Lanes, x: str) -> str:
    """2^(e/3) times a polynomial, one Newton step, and one with an exact residue."""
    a = v.abs(x)
    small = v.compare("olt", a, 2.0**-1022)
    scaled = v.select(small, v.mul(a, 2.0**54), a)
    bits = v.to_bits(scaled)
    biased = v.bit_op("lshr", bits, 52)
    e = v.sub(v.from_bits(v.bit_op("or", biased, 0x4330000000000000)), 2.0**52 + 1023.0)
    third = v.intrinsic("floor", v.mul(v.add(e, 0.5), 1.0 / 3.0))
    rest = v.fma(third, -3.0, e)
    fraction = v.bit_op("and", bits, (1 << 52) - 1)
    m = v.from_bits(v.bit_op("or", fraction, 0x3FF0000000000000))
    one, two = v.compare("oeq", rest, 1.0), v.compare("oeq", rest, 2.0)
    factor = v.select(two, 1.5874010519681996, v.select(one, 1.2599210498948732, 1.0))
    m_full = v.mul(m, v.select(two, 4.0, v.select(one, 2.0, 1.0)))
    y = v.mul(v.poly(m, _CBRT), factor)
    for _ in range(2):
        square, square_low = v.two_product(y, y)
        residue = v.fma(v.neg(square), y, m_full)
        residue = v.fma(v.neg(square_low), y, residue)
        y = v.add(y, v.div(residue, v.mul(square, 3.0)))
    third = v.select(small, v.sub(third, 18.0), third)
    result = v.mul(y, v.pow2(v.to_bits(v.shifted(third, 1.0))))
    result = v.copysign(result, x)
    regular = v.compare("olt", a, INF)
    result = v.select(regular, result, x)
    return v.select(v.compare("oeq", a, 0.0), x, result)


def _erfc_large(v: Lanes, a: str) -> str:
    """erfc(a), 1/2 <= a <= 28: e^(-a^2) g(t) / (1 + 2 a)."""
    t = v.div(v.sub(a, 3.0), v.add(a, 3.0))
    g = v.poly(t, _ERFC)
    square, square_low = v.two_product(a, a)
    high, rest, shifted = exp_pair(v, v.neg(square), v.neg(square_low))
    denominator, denominator_low = v.fast_two_sum(v.add(a, a), 1.0)
    quotient = v.div(g, denominator)
    residue = v.fma(v.neg(quotient), denominator, g)
    residue = v.fma(v.neg(quotient), denominator_low, residue)
    power, power_low = v.fast_two_sum(high, rest)
    low = v.fma(power_low, quotient, v.mul(power, v.div(residue, denominator)))
    return v.scale(v.fma(power, quotient, low), shifted)


def erf(v: Lanes, x: str) -> str:
    a = v.abs(x)
    square = v.mul(x, x)
    small = v.fma(a, v.poly(square, _ERF), a)
    large = v.sub(1.0, _erfc_large(v, v.clamp_above(v.clamp_below(a, 0.5), 6.5)))
    return v.copysign(v.select(v.compare("olt", a, 1.0), small, large), x)


def erfc(v: Lanes, x: str) -> str:
    a = v.abs(x)
    square = v.mul(x, x)
    correction = v.fma(x, v.poly(square, _ERF), x)
    middle = v.sub(1.0, correction)
    tail = _erfc_large(v, v.clamp_above(v.clamp_below(a, 0.5), 28.0))
    tail = v.select(v.compare("olt", x, 0.0), v.sub(2.0, tail), tail)
    return v.select(v.compare("olt", a, 0.5), middle, tail)


def erfc_single(v: Lanes, x: str) -> str:
    """erfc in float32: one formula for every |x| in float64, which needs 31 bits of it."""
    f, wide = v.f, Lanes(v.f, "double")
    extended = f.value(f"fpext {v.type} {x} to {wide.type}")
    a = wide.clamp_above(wide.abs(extended), 10.25)  # erfc rounds to zero there
    r = wide.div(1.0, wide.add(a, 3.0))
    t = wide.fma(r, -6.0, 1.0)
    scaled = wide.mul(wide.poly(t, _ERFC_SINGLE), r)
    tail = wide.mul(scaled, exp_to_single(wide, wide.neg(wide.mul(a, a))))
    result = wide.select(wide.compare("olt", extended, 0.0), wide.sub(2.0, tail), tail)
    return f.value(f"fptrunc {wide.type} {result} to {v.type}")
