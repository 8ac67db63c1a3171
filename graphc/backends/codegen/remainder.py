"""Exact float remainders: C's fmod and NumPy's remainder and floor_divide.

Imports: lanes.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.backends.codegen.lanes import Lanes, repeat_while

INF = float("inf")


def truncated_remainder(v: Lanes, a: str, b: str) -> str:
    """C's fmod: exact, with the sign of a."""
    if v.scalar == "double":
        return _fmod(v, a, b)
    wide = Lanes(v.f, "double")
    x, y = (v.f.value(f"fpext {v.type} {x} to {wide.type}") for x in (a, b))
    return v.f.value(f"fptrunc {wide.type} {_fmod(wide, x, y)} to {v.type}")


def _fmod(v: Lanes, a: str, b: str) -> str:
    """Subtract multiples q * b, q a 53-bit approximation of r / b, until |r| < |b|.

    Each step is exact: q is within an ulp of r / b, so r - q * b is a multiple of ulp(q) * ulp(b)
    no larger than ulp(q) * |b|, which has at most 53 bits.
    """
    f, mask = v.f, v.f.vector("i1")
    divisor = v.abs(b)
    finite = v.compare("olt", v.abs(a), INF)
    positive = v.compare("ogt", divisor, 0.0)
    regular = f.value(f"and {mask} {finite}, {positive}")
    start = v.select(regular, v.abs(a), 0.0)

    def unfinished(state: Sequence[str]) -> str:
        return v.any(v.compare("oge", v.abs(state[0]), v.select(regular, divisor, INF)))

    def subtract(state: Sequence[str]) -> list[str]:
        rest = state[0]
        # A quotient that overflows is taken of a divisor scaled up, twice if need be.
        overflow = v.compare("oeq", v.abs(v.div(rest, divisor)), INF)
        scaled = v.select(overflow, v.mul(divisor, 2.0**1000), divisor)
        overflow = v.compare("oeq", v.abs(v.div(rest, scaled)), INF)
        scaled = v.select(overflow, v.mul(scaled, 2.0**100), scaled)
        quotient = v.intrinsic("trunc", v.div(rest, scaled))
        following = v.fma(v.neg(quotient), scaled, rest)
        # Finished lanes keep their remainder (their quotient is zero, unless b is infinite).
        done = v.compare("olt", v.abs(rest), divisor)
        return [v.select(done, rest, following)]

    rest = repeat_while(f, [(v.type, start)], unfinished, subtract)[0]
    rest = v.select(v.compare("olt", rest, 0.0), v.add(rest, divisor), rest)
    rest = v.copysign(rest, a)
    # fmod(inf, b), fmod(a, 0) and NaN operands are NaN.
    return v.select(regular, rest, v.mul(v.mul(a, b), float("nan")))


def remainder(v: Lanes, a: str, b: str) -> str:
    """numpy.remainder: the remainder has the sign of b."""
    return _divmod(v, a, b)[1]


def floor_divide(v: Lanes, a: str, b: str) -> str:
    """numpy.floor_divide: the floor of the exact quotient; a / b where b is zero."""
    quotient, _ = _divmod(v, a, b)
    return v.select(v.compare("oeq", b, 0.0), v.div(a, b), quotient)


def _divmod(v: Lanes, a: str, b: str) -> tuple[str, str]:
    f, mask = v.f, v.f.vector("i1")
    rest = truncated_remainder(v, a, b)
    quotient = v.div(v.sub(a, rest), b)
    nonzero = v.compare("une", rest, 0.0)
    negative_rest = v.compare("olt", rest, 0.0)
    negative_divisor = v.compare("olt", b, 0.0)
    differ = f.value(f"xor {mask} {negative_rest}, {negative_divisor}")
    adjust = f.value(f"and {mask} {nonzero}, {differ}")
    quotient = v.select(adjust, v.sub(quotient, 1.0), quotient)
    modulus = v.select(adjust, v.add(rest, b), rest)
    modulus = v.select(nonzero, modulus, v.copysign(0.0, b))
    # The quotient is an integer up to rounding: snap it.
    floored = v.intrinsic("floor", quotient)
    above = v.compare("ogt", v.sub(quotient, floored), 0.5)
    snapped = v.select(above, v.add(floored, 1.0), floored)
    zero = v.copysign(0.0, v.div(a, b))
    return v.select(v.compare("oeq", quotient, 0.0), zero, snapped), modulus
