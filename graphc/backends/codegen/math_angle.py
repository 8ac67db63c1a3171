"""Argument reduction for the trigonometric functions: x modulo pi/2, for every finite x.

Imports: lanes, text.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache

from graphc.backends.codegen.lanes import Lanes, Pair
from graphc.backends.codegen.text import float_literal

# pi / 2 in three parts, for each width
_HALF_PI = {
    32: (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15),
    64: (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33),
}
_TWO_OVER_PI = 0.6366197723675814

# From here on the three parts do not hold enough bits.
_LARGE = {32: 2.0**17, 64: 2.0**27}
_TABLE_START = 2.0**4

# floor(2 / pi * 2^1280)
_TWO_OVER_PI_BITS = int(
    "A2F9836E4E441529FC2757D1F534DDC0DB6295993C439041FE5163ABDEBBC561B7246E3A424DD2E0"
    "06492EEA09D1921CFE1DEB1CB129A73EE88235F52EBB4484E99C7026B45F7E413991D639835339F4"
    "9C845F8BBDF9283B1FF897FFDE05980FEF2F118B5A0A6D1F6D367ECF27CB09B74F463F669E5FEA2D"
    "7527BAC7EBE5F17B3D0739F78A5292EA6BFB5FB11F8D5D0856033046FC7B6BABF0CFBC209AF4361D",
    16,
)
_TWO_OVER_PI_SCALE = 1280
_STEP = 16
_FIRST = -48
_ENTRIES = 64
_PARTS = 4


@cache
def two_over_pi_table() -> list[list[float]]:
    """Part p of entry i: the sum over p is 2^(16 i - 48) * 2 / pi modulo 4."""
    columns: list[list[float]] = [[] for _ in range(_PARTS)]
    for i in range(_ENTRIES):
        scaled = Fraction(_TWO_OVER_PI_BITS, 2**_TWO_OVER_PI_SCALE) * Fraction(2) ** (
            _FIRST + _STEP * i
        )
        rest = scaled % 4
        for column in columns:
            column.append(float(rest))
            rest -= Fraction(column[-1])
    return columns


def _declare_table(v: Lanes) -> str:
    """Declare the constant table in the module and return its name."""
    name = "graphc.two_over_pi"
    if name not in v.f.declarations:
        values = [x for column in two_over_pi_table() for x in column]
        text = ", ".join(f"double {float_literal(x, 'double')}" for x in values)
        v.f.declarations[name] = (
            f"@{name} = private unnamed_addr constant [{len(values)} x double] [{text}], align 64"
        )
    return name


def _load_parts(v: Lanes, entry: str) -> list[str]:
    """The parts of each lane's table entry, loaded lane by lane: this path is rare."""
    f, name = v.f, _declare_table(v)
    if f.lanes == 1:
        column = f.offset(f"@{name}", f.mul(entry, 8))
        parts = [f.offset(column, 8 * part * _ENTRIES) for part in range(_PARTS)]
        return [f.value(f"load double, ptr {part}, align 8") for part in parts]
    loop = f.open_loop(0, f.lanes, 1, [(v.type, "zeroinitializer")] * _PARTS)
    index = f.value(f"extractelement {v.int_type} {entry}, i64 {loop.index}")
    filled = []
    for part, column in enumerate(loop.carried):
        at = f.add(index, part * _ENTRIES)
        address = f.value(f"getelementptr double, ptr @{name}, i64 {at}")
        number = f.value(f"load double, ptr {address}, align 8")
        filled.append(
            f.value(f"insertelement {v.type} {column}, double {number}, i64 {loop.index}")
        )
    return f.close_loop(loop, filled)


def _distill(v: Lanes, terms: Sequence[str]) -> Pair:
    """The sum of a few terms as a Pair, through cancellation: error-free sweeps, then additions."""
    row = list(terms)
    for _ in range(2):
        for i in range(1, len(row)):
            row[i], row[i - 1] = v.two_sum(row[i], row[i - 1])
    low = row[0]
    for term in row[1:-1]:
        low = v.add(low, term)
    return v.two_sum(row[-1], low)


def _modulo_four(v: Lanes, x: str) -> str:
    return v.fma(v.rint(v.mul(x, 0.25)), -4.0, x)


def _reduce_large(v: Lanes, x: str) -> tuple[str, str, str]:
    """Payne and Hanek's reduction of float64 for |x| >= _TABLE_START.

    x = M 2^(16 j) with M an integer below 2^69, so M times (2^(16 j) * 2 / pi modulo 4) is right
    modulo 4: multiples of 4 quadrants drop out of each exact partial product.
    """
    regular = v.compare("olt", v.abs(x), float("inf"))
    large = v.compare("oge", v.abs(x), _TABLE_START)
    bounded = v.select(regular, v.select(large, x, _TABLE_START), _TABLE_START)
    biased = v.bit_op("lshr", v.bit_op("shl", v.to_bits(bounded), 1), 53)
    entry = v.bit_op("lshr", v.bit_op("sub", biased, 1075 + _FIRST), 4)
    inverse = v.bit_op("sub", v.int_const(1023 - _FIRST), v.bit_op("shl", entry, 4))
    multiple = v.mul(bounded, v.from_bits(v.bit_op("shl", inverse, 52)))
    terms = []
    for part in _load_parts(v, entry):
        product, error = v.two_product(multiple, part)
        terms += [_modulo_four(v, product), _modulo_four(v, error)]
    high, low = _distill(v, terms[::-1])
    shifted = v.add(high, v.shifter)
    # The fraction of a quadrant, renormalised: |high| may have been mostly integer.
    fraction, carry = v.two_sum(v.sub(high, v.unshift(shifted)), low)
    angle, error = v.two_product(fraction, _HALF_PI[64][0])
    rest = v.fma(fraction, _HALF_PI[64][1], v.fma(carry, _HALF_PI[64][0], error))
    angle, rest = v.fast_two_sum(angle, rest)
    quadrant = v.to_bits(shifted)
    return quadrant, v.select(regular, angle, float("nan")), v.select(regular, rest, 0.0)


def _reduce_small(v: Lanes, x: str) -> tuple[str, str, str]:
    """Cody and Waite's reduction in three parts, for |x| < _LARGE."""
    first, second, third = _HALF_PI[v.bits]
    shifted = v.shifted(x, _TWO_OVER_PI)
    n = v.neg(v.unshift(shifted))
    partial = v.fma(n, first, x)  # exact
    product, error = v.two_product(n, second)
    high, low = v.two_sum(partial, product)
    low = v.fma(n, third, v.add(low, error))
    return v.to_bits(shifted), *v.fast_two_sum(high, low)


def _reduce_wide(v: Lanes, x: str) -> tuple[str, str, str]:
    """The float32 reduction in float64."""
    f, wide = v.f, Lanes(v.f, "double")
    extended = f.value(f"fpext {v.type} {x} to {wide.type}")
    quadrant, angle, _ = _reduce_large(wide, extended)
    high = f.value(f"fptrunc {wide.type} {angle} to {v.type}")
    back = f.value(f"fpext {v.type} {high} to {wide.type}")
    low = f.value(f"fptrunc {wide.type} {wide.sub(angle, back)} to {v.type}")
    return f.value(f"trunc {wide.int_type} {quadrant} to {v.int_type}"), high, low


def reduce_angle(v: Lanes, x: str) -> tuple[str, str, str]:
    """(quadrant, high, low): x = quadrant * pi/2 + high + low; the quadrant's low two bits hold.

    The slow reduction runs only where some lane is _LARGE or not finite.
    """
    f = v.f
    small = _reduce_small(v, x)
    large = v.compare("uge", v.abs(x), _LARGE[v.bits])
    key = f.fresh("")
    rare, joined = f"large{key}", f"angle{key}"
    before = f.block
    f.branch_if(v.any(large), rare, joined)
    f.label(rare)
    slow = _reduce_large(v, x) if v.bits == 64 else _reduce_wide(v, x)
    mask, types = f.vector("i1"), (v.int_type, v.type, v.type)
    chosen = [
        f.value(f"select {mask} {large}, {t} {b}, {t} {a}")
        for t, a, b in zip(types, small, slow, strict=True)
    ]
    after = f.block
    f.branch(joined)
    f.label(joined)
    quadrant, high, low = (
        f.value(f"phi {t} [ {a}, %{before} ], [ {b}, %{after} ]")
        for t, a, b in zip(types, small, chosen, strict=True)
    )
    return quadrant, high, low
