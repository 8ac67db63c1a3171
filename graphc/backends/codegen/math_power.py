"""C99's pow: float64 through double-word logarithms, float32 through float64.

Imports: lanes, math_exp, math_log, text.
"""

from __future__ import annotations

from graphc.backends.codegen.lanes import Lanes
from graphc.backends.codegen.math_exp import clamp_exponent, exp_pair, exp_to_single
from graphc.backends.codegen.math_log import log_pair, log_sum

INF = float("inf")
NAN = float("nan")
LN2 = 0.6931471805599453

# (2 atanh(s) - 2 s) / s^3 in s^2, s <= 0.1716, relative error 2^-36
_LOG = (
    0.19363302729757043,
    0.22191369639323247,
    0.2857175498070281,
    0.39999998795477576,
    0.6666666666737611,
)


def power(v: Lanes, x: str, y: str) -> str:
    """pow in float64."""
    a = v.abs(x)
    high, rest = log_sum(v, *log_pair(v, a))
    high = v.select(v.compare("olt", a, INF), high, a)
    high = v.select(v.compare("oeq", a, 0.0), -INF, high)
    product = v.mul(y, high)
    error = v.fma(y, rest, v.fma(y, high, v.neg(product)))
    # Outside this range the result is 0 or infinity; the error term may be inf - inf there.
    bounded = clamp_exponent(v, product)
    error = v.select(v.compare("oeq", bounded, product), error, 0.0)
    one, one_rest, shifted = exp_pair(v, bounded, error)
    return _with_special_cases(v, x, y, v.scale(v.add(one, one_rest), shifted))


def power_single(v: Lanes, x: str, y: str) -> str:
    """pow in float32: |x|^y needs 34 bits of the logarithm, so float64 suffices unaided."""
    f, wide = v.f, Lanes(v.f, "double")
    a, exponent = (f.value(f"fpext {v.type} {t} to {wide.type}") for t in (v.abs(x), y))
    bits = wide.to_bits(a)
    biased = wide.bit_op("lshr", wide.bit_op("add", bits, 0x00095F619980C433), 52)
    scale = wide.bit_op("shl", wide.bit_op("sub", biased, wide.bias), 52)
    m = wide.from_bits(wide.bit_op("sub", bits, scale))
    e = wide.sub(wide.from_bits(wide.bit_op("or", biased, 0x4330000000000000)), 2.0**52 + 1023.0)
    s = wide.div(wide.sub(m, 1.0), wide.add(m, 1.0))
    square = wide.mul(s, s)
    tail = wide.mul(wide.mul(s, square), wide.poly(square, _LOG))
    log = wide.fma(e, LN2, wide.fma(s, 2.0, tail))
    log = wide.select(wide.compare("olt", a, INF), log, a)
    log = wide.select(wide.compare("oeq", a, 0.0), -INF, log)
    product = wide.clamp_above(wide.clamp_below(wide.mul(exponent, log), -150.0), 150.0)
    magnitude = exp_to_single(wide, product)
    single = f.value(f"fptrunc {wide.type} {magnitude} to {v.type}")
    return _with_special_cases(v, x, y, single)


def _with_special_cases(v: Lanes, x: str, y: str, magnitude: str) -> str:
    """pow(x, y) from |x|^y: the sign, the domain, and the cases that ignore a NaN."""
    f, mask = v.f, v.f.vector("i1")
    a = v.abs(x)
    # 1^y is one even for infinite y, where the exponent was 0 * inf.
    unit = v.select(v.compare("ord", y, y), 1.0, y)
    magnitude = v.select(v.compare("oeq", a, 1.0), unit, magnitude)
    whole = v.intrinsic("trunc", y)
    half = v.mul(y, 0.5)
    is_integer = v.compare("oeq", whole, y)
    half_fraction = v.compare("une", v.intrinsic("trunc", half), half)
    odd = f.value(f"and {mask} {is_integer}, {half_fraction}")
    signed = v.select(odd, v.copysign(magnitude, x), magnitude)
    # A negative finite number has no real power of fractional exponent.
    negative = v.compare("olt", x, 0.0)
    finite = v.compare("olt", a, INF)
    fractional = v.compare("one", whole, y)
    undefined = f.value(f"and {mask} {negative}, {finite}")
    undefined = f.value(f"and {mask} {undefined}, {fractional}")
    result = v.select(undefined, NAN, signed)
    trivial = f.value(f"or {mask} {v.compare('oeq', y, 0.0)}, {v.compare('oeq', x, 1.0)}")
    return v.select(trivial, 1.0, result)
