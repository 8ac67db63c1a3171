"""The short floats of a GPU, as LLVM text for a host that need not have them.

A bfloat is an i16 on the host: it is moved, widened and rounded to, never computed with.
Imports: errors.
"""

from __future__ import annotations

import re

from graphc.errors import CompileError

_ROUND = re.compile(r"^(%[\w.$]+) = fptrunc (?:\w+ )*?((?:<\d+ x )?float>?) (\S.*) to .*bfloat>?$")
_WIDEN = re.compile(r"^(%[\w.$]+) = fpext (?:\w+ )*?((?:<\d+ x )?bfloat>?) (\S.*) to (.*float>?)$")
_ARITHMETIC = re.compile(r" = (?:f(?:add|sub|mul|div|rem|neg|cmp|ptrunc|pext)|[su]itofp|call) ")
_BITS = re.compile(r"\b0xR([0-9A-Fa-f]{4})\b")
_ZERO = re.compile(r"bfloat -?0\.0\S*(?=[,>)]|$)")


def bfloat_lines(line: str, tag: str) -> list[str]:
    """The lines that do what a line with bfloats does; `tag` makes names unique."""
    if found := _ROUND.match(line):
        return _rounded(*found.groups(), tag=tag)
    if found := _WIDEN.match(line):
        return _widened(*found.groups(), tag=tag)
    if _ARITHMETIC.search(line):
        raise CompileError(f"the emulator does not compute in bfloat: {line}")
    line = _BITS.sub(lambda bits: str(int(bits.group(1), 16)), _ZERO.sub("bfloat 0", line))
    return [line.replace("bfloat", "i16")]


def _kind(like: str, scalar: str) -> str:
    """A scalar type, or a vector of it where `like` is a vector."""
    return re.sub(r"\b(b?float)\b", scalar, like)


def _all(like: str, scalar: str, number: int) -> str:
    return f"splat ({scalar} {number})" if like.startswith("<") else str(number)


def _rounded(name: str, source: str, value: str, *, tag: str) -> list[str]:
    """Round to nearest even; NaN is 0x7FFF, as on a GPU."""
    wide, short, x = _kind(source, "i32"), _kind(source, "i16"), f"%emu.{tag}"

    def number(n: int) -> str:
        return _all(source, "i32", n)

    nan = _all(source, "i16", 0x7FFF)
    return [
        f"{x}.b = bitcast {source} {value} to {wide}",
        f"{x}.h = lshr {wide} {x}.b, {number(16)}",
        f"{x}.o = and {wide} {x}.h, {number(1)}",
        f"{x}.a = add {wide} {x}.o, {number(0x7FFF)}",
        f"{x}.m = add {wide} {x}.b, {x}.a",
        f"{x}.k = lshr {wide} {x}.m, {number(16)}",
        f"{x}.r = trunc {wide} {x}.k to {short}",
        f"{x}.n = fcmp uno {source} {value}, {value}",
        f"{name} = select {_kind(source, 'i1')} {x}.n, {short} {nan}, {short} {x}.r",
    ]


def _widened(name: str, source: str, value: str, target: str, *, tag: str) -> list[str]:
    if "double" in target:
        raise CompileError("the emulator widens bfloat to float only")
    wide, x = _kind(source, "i32"), f"%emu.{tag}"
    return [
        f"{x}.w = zext {_kind(source, 'i16')} {value} to {wide}",
        f"{x}.h = shl {wide} {x}.w, {_all(source, 'i32', 16)}",
        f"{name} = bitcast {wide} {x}.h to {target}",
    ]


def tf32_lines(name: str, value: str, tag: str) -> list[str]:
    """Round a float to nearest, ties away from zero, to 10 bits; NaN is 0x7FFFFFFF."""
    x = f"%emu.{tag}"
    return [
        f"{x}.b = bitcast float {value} to i32",
        f"{x}.m = add i32 {x}.b, 4096",
        f"{x}.k = and i32 {x}.m, -8192",
        f"{x}.n = fcmp uno float {value}, {value}",
        f"{name} = select i1 {x}.n, i32 2147483647, i32 {x}.k",
    ]
