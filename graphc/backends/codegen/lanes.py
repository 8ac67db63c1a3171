"""Floating-point vectors of one element type: the notation the vector mathematics is written in.

`Lanes` names each LLVM instruction on `<16 x float>` or `<16 x double>` once, with the integer view
of the same width for exponent tricks, and the error-free transformations of double-word arithmetic.
Imports: text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.backends.codegen.text import FunctionText, float_literal

Pair = tuple[str, str]
"""An unevaluated sum (high, low) with |low| at most half an ulp of high."""


class Lanes:
    """Vector arithmetic of one float type, emitted into one function."""

    def __init__(self, f: FunctionText, scalar: str) -> None:
        self.f = f
        self.scalar = scalar
        self.type = f.vector(scalar)
        single = scalar == "float"
        self.bits = 32 if single else 64
        self.mantissa = 23 if single else 52
        self.bias = 127 if single else 1023
        self.integer = "i32" if single else "i64"
        self.int_type = f.vector(self.integer)
        # Adding 1.5 * 2^mantissa leaves the nearest integer in the low mantissa bits.
        self.shifter = 1.5 * 2.0**self.mantissa

    # ---- constants

    def const(self, value: float) -> str:
        return self.f.constant(value, self.scalar)

    def int_const(self, value: int) -> str:
        return self.f.constant(value, self.integer)

    # ---- arithmetic; a Python number stands for a constant vector

    def operand(self, x: str | float) -> str:
        return x if isinstance(x, str) else self.const(x)

    def _binary(self, op: str, a: str | float, b: str | float) -> str:
        return self.f.value(f"{op} {self.type} {self.operand(a)}, {self.operand(b)}")

    def add(self, a: str | float, b: str | float) -> str:
        return self._binary("fadd", a, b)

    def sub(self, a: str | float, b: str | float) -> str:
        return self._binary("fsub", a, b)

    def mul(self, a: str | float, b: str | float) -> str:
        return self._binary("fmul", a, b)

    def div(self, a: str | float, b: str | float) -> str:
        return self._binary("fdiv", a, b)

    def neg(self, a: str) -> str:
        return self.f.value(f"fneg {self.type} {a}")

    def fma(self, a: str | float, b: str | float, c: str | float) -> str:
        return self.intrinsic("fma", a, b, c)

    def intrinsic(self, name: str, *operands: str | float) -> str:
        return self.f.intrinsic(name, self.scalar, *(self.operand(x) for x in operands))

    def abs(self, a: str) -> str:
        return self.intrinsic("fabs", a)

    def sqrt(self, a: str) -> str:
        return self.intrinsic("sqrt", a)

    def rint(self, a: str) -> str:
        return self.intrinsic("roundeven", a)

    def copysign(self, a: str | float, b: str) -> str:
        return self.intrinsic("copysign", a, b)

    def poly(self, x: str, coefficients: Sequence[float]) -> str:
        """Horner's scheme; coefficients are ordered from the highest power down."""
        total = self.const(coefficients[0])
        for c in coefficients[1:]:
            total = self.fma(total, x, c)
        return total

    def stored(self, value: float) -> str:
        """A constant read from memory each time, which multiply-adds do on the way.

        LLVM gives constants registers of their own; where they are too many it reads them there.
        """
        if self.f.lanes == 1:
            return self.const(value)
        literal = float_literal(value, self.scalar)
        name = f"graphc.constant.{self.scalar}.{literal}"
        self.f.declarations[name] = (
            f"@{name} = private unnamed_addr constant {self.type} splat ({self.scalar} {literal}), "
            "align 64"
        )
        return self.f.value(f"load {self.type}, ptr @{name}, align 64")

    def long_poly(self, x: str, coefficients: Sequence[float]) -> str:
        """`poly` in a function of more constants than a processor has registers."""
        total = self.stored(coefficients[0])
        for c in coefficients[1:]:
            total = self.fma(total, x, self.stored(c))
        return total

    # ---- comparison and choice

    def compare(self, predicate: str, a: str | float, b: str | float) -> str:
        """`fcmp`: predicate 'olt', 'ult', 'oeq', ..."""
        return self.f.value(f"fcmp {predicate} {self.type} {self.operand(a)}, {self.operand(b)}")

    def select(self, condition: str, a: str | float, b: str | float) -> str:
        mask, t = self.f.vector("i1"), self.type
        return self.f.value(
            f"select {mask} {condition}, {t} {self.operand(a)}, {t} {self.operand(b)}"
        )

    def clamp_above(self, x: str, limit: float) -> str:
        """min(x, limit), NaN kept."""
        return self.select(self.compare("ogt", x, limit), limit, x)

    def clamp_below(self, x: str, limit: float) -> str:
        """max(x, limit), NaN kept."""
        return self.select(self.compare("olt", x, limit), limit, x)

    def any(self, condition: str) -> str:
        """One i1: whether the condition holds in some lane."""
        return self.f.any(condition)

    # ---- the integer view

    def to_bits(self, x: str) -> str:
        return self.f.value(f"bitcast {self.type} {x} to {self.int_type}")

    def from_bits(self, x: str) -> str:
        return self.f.value(f"bitcast {self.int_type} {x} to {self.type}")

    def bit_op(self, op: str, a: str, b: str | int) -> str:
        """An integer instruction ('add', 'shl', 'and', ...) on integer vectors."""
        right = b if isinstance(b, str) else self.int_const(b)
        return self.f.value(f"{op} {self.int_type} {a}, {right}")

    def shifted(self, x: str, factor: float) -> str:
        """round(x * factor) in the low bits of a float: `pow2` and `unshift` read it."""
        return self.fma(x, factor, self.shifter)

    def unshift(self, shifted: str) -> str:
        return self.sub(shifted, self.shifter)

    def pow2(self, shifted: str) -> str:
        """2^n for a shifted integer n with 2^n normal."""
        biased = self.bit_op("add", shifted, self.bias)
        return self.from_bits(self.bit_op("shl", biased, self.mantissa))

    def power(self, x: str, factor: float) -> Pair:
        """n = round(x * factor) as a float, and 2^n, for 2^n normal."""
        biased = self.fma(x, factor, self.shifter + self.bias)
        n = self.sub(biased, self.shifter + self.bias)
        return n, self.from_bits(self.bit_op("shl", self.to_bits(biased), self.mantissa))

    def times_pow2(self, x: str, shifted: str) -> str:
        """x * 2^n for a shifted integer n, x and the product normal: exact."""
        raised = self.bit_op("shl", self.to_bits(shifted), self.mantissa)
        return self.from_bits(self.bit_op("add", self.to_bits(x), raised))

    def sign(self, x: str) -> str:
        """The sign bit of x, the other bits of the integer zero."""
        return self.bit_op("and", self.to_bits(x), -(1 << (self.bits - 1)))

    def flip(self, x: str, sign: str) -> str:
        """x with its sign changed where the bit `sign` is set."""
        return self.from_bits(self.bit_op("xor", self.to_bits(x), sign))

    def scale(self, x: str, shifted: str) -> str:
        """x * 2^n, n a shifted integer in twice the exponent range: rounds once."""
        n = self.unshift(shifted)
        half = self.to_bits(self.shifted(n, 0.5))
        rest = self.bit_op("sub", self.to_bits(shifted), half)
        return self.mul(self.mul(x, self.pow2(half)), self.pow2(rest))

    # ---- error-free transformations

    def fast_two_sum(self, a: str | float, b: str | float) -> Pair:
        """a + b as a Pair, for |a| >= |b| (or a = 0)."""
        total = self.add(a, b)
        return total, self.sub(b, self.sub(total, a))

    def two_sum(self, a: str, b: str) -> Pair:
        total = self.add(a, b)
        second = self.sub(total, a)
        return total, self.add(self.sub(a, self.sub(total, second)), self.sub(b, second))

    def two_product(self, a: str | float, b: str | float) -> Pair:
        high = self.mul(a, b)
        return high, self.fma(a, b, self.neg(high))


Function = Callable[..., str]
"""A vector function: called with `Lanes` and operands, returns the result."""


def repeat_while(
    f: FunctionText,
    state: Sequence[tuple[str, str]],
    test: Callable[[Sequence[str]], str],
    step: Callable[[Sequence[str]], Sequence[str]],
) -> list[str]:
    """A loop over (type, initial value) states that runs `step` while the i1 `test` is true."""
    key = f.fresh("")
    header, body, done = f"w{key}", f"wb{key}", f"wx{key}"
    before = f.block
    f.branch(header)
    f.label(header)
    names = ["%" + f.fresh() for _ in state]
    slots = range(len(f.lines), len(f.lines) + len(names))
    f.lines.extend("" for _ in names)
    f.branch_if(test(names), body, done)
    f.label(body)
    following = step(names)
    for slot, name, (type_, initial), then in zip(slots, names, state, following, strict=True):
        f.lines[slot] = f"  {name} = phi {type_} [ {initial}, %{before} ], [ {then}, %{f.block} ]"
    f.branch(header)
    f.label(done)
    return names
