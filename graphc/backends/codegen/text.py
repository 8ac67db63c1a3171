"""LLVM text, one function at a time.

Values are strings; every emitted line is final, so no LLVM pass has to clean up after it.  Loops
are top-tested with phis patched when the loop is closed: safe for zero trips, and loop-carried
values stay in registers.  Their numbers and addresses are frozen: LLVM then leaves off analysing
them for strength reduction, which took a third of the time of compiling and gained nothing.
Vectors have LANES elements of any dtype; LLVM splits them to the machine's width.  A function may
have one lane instead, as those have that a GPU runs once per thread: its values are scalars.
Imports: kernel, types, dims.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from graphc.dims import Dim, DimLike
from graphc.types import DType

LANES = 16

KERNEL_ATTRIBUTES = 'nounwind "no-trapping-math"="true" "prefer-vector-width"="512"'
"""What LLVM is told about every function we write."""

_SCALAR = {
    "f32": "float",
    "f64": "double",
    "i8": "i8",
    "u8": "i8",
    "i16": "i16",
    "u16": "i16",
    "i32": "i32",
    "u32": "i32",
    "i64": "i64",
    "u64": "i64",
    "bool": "i1",
}


def scalar_type(dtype: DType) -> str:
    """The LLVM type of one element in a register (bool is i1)."""
    return _SCALAR[dtype.name]


def memory_type(dtype: DType) -> str:
    """The LLVM type of one element in memory (bool is i8)."""
    return "i8" if dtype.is_bool else _SCALAR[dtype.name]


def vector(scalar: str) -> str:
    """The LLVM vector type of LANES `scalar`s."""
    return f"<{LANES} x {scalar}>"


def suffix(scalar: str, lanes: int = LANES) -> str:
    """How LLVM mangles a vector type in intrinsic names: v16f32, v16i64."""
    return f"v{lanes}{_mangled(scalar)}"


def _mangled(scalar: str) -> str:
    return {"float": "f32", "double": "f64"}.get(scalar, scalar)


def float_literal(value: float, scalar: str) -> str:
    """A float or double constant; LLVM writes both as the bits of a double."""
    if scalar == "float":
        value = _round_to_single(value)
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def _round_to_single(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def literal(value: float | int | bool, scalar: str) -> str:
    """A constant of an LLVM scalar type."""
    if scalar in ("float", "double"):
        return float_literal(float(value), scalar)
    if scalar == "i1":
        return "true" if value else "false"
    return str(int(value))


def splat_literal(value: float | int | bool, scalar: str) -> str:
    """A constant vector with all lanes equal."""
    return f"splat ({scalar} {literal(value, scalar)})"


LANE_INDEX = "<" + ", ".join(f"i64 {i}" for i in range(LANES)) + ">"
"""The constant 0, 1, ... LANES-1 as i64."""


@dataclass
class Loop:
    """An open loop: its index and the values it carries (one phi each)."""

    header: str
    exit: str
    index: str
    carried: list[str]
    _types: list[str]
    _inits: list[str]
    _start: str
    _step: str
    _before: str
    _slots: list[int] = field(default_factory=list)


class FunctionText:
    """Emits the body of one LLVM function; `declarations` collects the intrinsics it calls,
    `uses` counts what is written out at length.

    lanes  elements of its vectors: LANES, or 1 where its values are scalars
    """

    def __init__(self, name: str, lanes: int = LANES) -> None:
        self.name = name
        self.lanes = lanes
        self.lines: list[str] = []
        self.block = "entry"
        self.declarations: dict[str, str] = {}
        self.uses: dict[tuple[str, str], int] = {}
        self.sizes: dict[Dim, str] = {}
        self.bases: list[str] = []
        self._count = 0
        self._known = _Known()
        self._splats: dict[str, str] = {}

    # ---- lines, names, blocks

    def fresh(self, hint: str = "v") -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def value(self, text: str) -> str:
        """Emit `%v = text` and return `%v`."""
        name = "%" + self.fresh()
        self.lines.append(f"  {name} = {text}")
        return name

    def emit(self, text: str) -> None:
        self.lines.append("  " + text)

    def known(self, text: str) -> str:
        """`value` of an expression without side effects; the name it has where it is known."""
        found = self._known.get(text)
        if found is None:
            found = self.value(text)
            self._known.add(text, found)
        return found

    def label(self, name: str) -> None:
        self.lines.append(name + ":")
        self.block = name
        self._known.label()

    def branch(self, target: str) -> None:
        self.emit(f"br label %{target}")

    def branch_if(self, condition: str, yes: str, no: str) -> None:
        self.emit(f"br i1 {condition}, label %{yes}, label %{no}")
        self._known.fork()

    def call(self, result: str, name: str, *args: tuple[str, str], flags: str = "") -> str:
        """Call a function or intrinsic with (type, value) arguments; declares it. '' if void."""
        types = ", ".join(t for t, _ in args)
        self.declarations[name] = f"declare {result} @{name}({types})"
        text = f"call {flags}{result} @{name}({', '.join(f'{t} {v}' for t, v in args)})"
        if result == "void":
            self.emit(text)
            return ""
        return self.value(text)

    # ---- i64 arithmetic, folded where constant, done once where its result is known

    def add(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        if a == "0":
            return b
        if b == "0":
            return a
        if _is_number(a) and _is_number(b):
            return str(int(a) + int(b))
        return self.known(f"add nsw i64 {a}, {b}")

    def sub(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        if b == "0":
            return a
        if _is_number(a) and _is_number(b):
            return str(int(a) - int(b))
        return self.known(f"sub nsw i64 {a}, {b}")

    def mul(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        if a == "0" or b == "0":
            return "0"
        if a == "1":
            return b
        if b == "1":
            return a
        if _is_number(a) and _is_number(b):
            return str(int(a) * int(b))
        return self.known(f"mul nsw i64 {a}, {b}")

    def udiv(self, a: str | int, b: str | int) -> str:
        """a // b for 0 <= a < 2**52 and b > 0: indices and sizes of what lies in memory.

        Divides numbers of floating point, which is exact for these, however they are rounded.
        LLVM takes a tenth of the time it takes for integers, which it divides in two ways.
        """
        a, b = str(a), str(b)
        if b == "1":
            return a
        if _is_number(a) and _is_number(b):
            return str(int(a) // int(b))
        if _is_power_of_two(b):
            return self.known(f"lshr i64 {a}, {int(b).bit_length() - 1}")
        if self.lanes == 1:  # a GPU divides integers faster
            return self.known(f"udiv i64 {a}, {b}")
        ratio = self.known(f"fdiv double {self._double(a)}, {self._double(b)}")
        return self.known(f"fptosi double {ratio} to i64")

    def urem(self, a: str | int, b: str | int) -> str:
        """a % b for the numbers `udiv` takes."""
        a, b = str(a), str(b)
        if b == "1":
            return "0"
        if _is_number(a) and _is_number(b):
            return str(int(a) % int(b))
        if _is_power_of_two(b):
            return self.known(f"and i64 {a}, {int(b) - 1}")
        return self.sub(a, self.mul(self.udiv(a, b), b))

    def _double(self, a: str) -> str:
        if _is_number(a):
            return float_literal(float(int(a)), "double")
        return self.known(f"sitofp i64 {a} to double")

    def smin(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        if a == b:
            return a
        if _is_number(a) and _is_number(b):
            return str(min(int(a), int(b)))
        return self.call("i64", "llvm.smin.i64", ("i64", a), ("i64", b))

    def smax(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        if a == b:
            return a
        if _is_number(a) and _is_number(b):
            return str(max(int(a), int(b)))
        return self.call("i64", "llvm.smax.i64", ("i64", a), ("i64", b))

    def dim(self, d: DimLike) -> str:
        """An i64 size: a constant, or the value read from the sizes table."""
        return str(d) if isinstance(d, int) else self.sizes[d]

    # ---- pointers and vectors

    def offset(self, pointer: str, byte_offset: str | int) -> str:
        if str(byte_offset) == "0":
            return pointer
        return self.known(f"getelementptr i8, ptr {pointer}, i64 {byte_offset}")

    def vector(self, scalar: str) -> str:
        """The LLVM type of this function's values of a scalar type."""
        return scalar if self.lanes == 1 else f"<{self.lanes} x {scalar}>"

    def constant(self, value: float | int | bool, scalar: str) -> str:
        """A constant with all lanes equal."""
        return literal(value, scalar) if self.lanes == 1 else splat_literal(value, scalar)

    def suffix(self, scalar: str) -> str:
        """How LLVM mangles `vector(scalar)` in intrinsic names."""
        return _mangled(scalar) if self.lanes == 1 else suffix(scalar, self.lanes)

    def any(self, mask: str) -> str:
        """One i1: whether a mask is on in some lane."""
        if self.lanes == 1:
            return mask
        name = f"llvm.vector.reduce.or.{self.suffix('i1')}"
        return self.call("i1", name, (self.vector("i1"), mask))

    def first(self, scalar: str, x: str) -> str:
        """The first lane."""
        if self.lanes == 1:
            return x
        return self.value(f"extractelement {self.vector(scalar)} {x}, i32 0")

    def splat(self, scalar: str, value: str, lanes: int | None = None) -> str:
        """A vector with every lane equal to a scalar value (which may be a literal).

        Of `lanes` elements, if they are given, even if that is one; otherwise of this function's.
        """
        if lanes is None and self.lanes == 1:
            self._splats[value] = value
            return value
        lanes = self.lanes if lanes is None else lanes
        t = f"<{lanes} x {scalar}>"
        if _is_number(value):
            made = f"splat ({scalar} {value})"
        else:
            one = self.value(f"insertelement {t} poison, {scalar} {value}, i32 0")
            made = self.value(
                f"shufflevector {t} {one}, {t} poison, <{lanes} x i32> zeroinitializer"
            )
        self._splats[made] = value
        return made

    def uniform(self, x: str) -> str | None:
        """The scalar a vector was made of by `splat`; None for other vectors."""
        return self._splats.get(x)

    def intrinsic(self, name: str, scalar: str, *operands: str, lanes: int | None = None) -> str:
        """Call `llvm.<name>` on vectors of one type, giving the same type."""
        t = self.vector(scalar) if lanes is None else f"<{lanes} x {scalar}>"
        # Which of two zeros is the larger is left open, as NumPy leaves it: LLVM takes three
        # instructions then instead of five.
        flags = "nsz " if name in ("maximum", "minimum") else ""
        kind = self.suffix(scalar) if lanes is None else suffix(scalar, lanes)
        return self.call(t, f"llvm.{name}.{kind}", *((t, x) for x in operands), flags=flags)

    def prefetch(self, address: str, level: int = 1, *, write: bool = False) -> None:
        """Ask for a cache line that is soon read, or written, in the first or second cache."""
        kinds = (("i32", str(int(write))), ("i32", str(4 - level)), ("i32", "1"))
        self.call("void", "llvm.prefetch.p0", ("ptr", address), *kinds)

    # ---- loops

    def open_loop(
        self,
        start: str | int,
        stop: str | int,
        step: str | int,
        carried: Sequence[tuple[str, str]] = (),
    ) -> Loop:
        """Open `for i in range(start, stop, step)` carrying (type, initial value) pairs."""
        k = self.fresh("")
        header, body, exit_ = f"h{k}", f"b{k}", f"x{k}"
        before = self.block
        self.branch(header)
        self.label(header)
        names = ["%" + self.fresh() for _ in range(1 + len(carried))]
        slots = list(range(len(self.lines), len(self.lines) + len(names)))
        self.lines.extend("" for _ in names)
        types, inits = [t for t, _ in carried], [v for _, v in carried]
        for name, type_ in zip(names, ("i64", *types), strict=True):
            if _is_address(type_):
                self.emit(f"{name} = freeze {type_} {name}.in")
        test = self.value(f"icmp slt i64 {names[0]}, {stop}")
        self.emit(f"br i1 {test}, label %{body}, label %{exit_}")
        self._known.open()
        self.label(body)
        return Loop(
            header, exit_, names[0], names[1:], types, inits, str(start), str(step), before, slots
        )

    def close_loop(self, loop: Loop, carried: Sequence[str] = ()) -> list[str]:
        """Close the loop with the next values of what it carries; returns the values after it."""
        self._known.close()
        following = self.value(f"add nuw nsw i64 {loop.index}, {loop._step}")
        rows = [
            (loop.index, "i64", loop._start, following),
            *zip(loop.carried, loop._types, loop._inits, carried, strict=True),
        ]
        for slot, (name, type_, init, then) in zip(loop._slots, rows, strict=True):
            phi = name + ".in" if _is_address(type_) else name
            self.lines[slot] = (
                f"  {phi} = phi {type_} [ {init}, %{loop._before} ], [ {then}, %{self.block} ]"
            )
        self.branch(loop.header)
        self.label(loop.exit)
        return loop.carried

    # ---- the kernel ABI

    def open_kernel(self, buffers: int, sizes: Sequence[Dim]) -> None:
        """Begin `void name(ptr args, ptr sizes, i64 b0, i64 b1)` and load its tables."""
        self.lines.append(
            f"define void @{self.name}(ptr noalias %args, ptr noalias %sizes, i64 %b0, i64 %b1) "
            f"{KERNEL_ATTRIBUTES} {{"
        )
        self.lines.append("entry:")
        for i in range(buffers):
            p = self.offset("%args", 8 * i)
            self.bases.append(self.value(f"load ptr, ptr {p}, align 8"))
        for i, d in enumerate(sizes):
            p = self.offset("%sizes", 8 * i)
            self.sizes[d] = self.value(f"load i64, ptr {p}, align 8")

    def close_kernel(self) -> None:
        self.emit("ret void")
        self.lines.append("}")

    def __str__(self) -> str:
        return "\n".join(self.lines) + "\n"


class _Known:
    """Which values a later line may use again: those computed on every way that leads to it.

    A loop knows what is known around it, and is forgotten when it is left.  After a branch that is
    not a loop's, what is computed is forgotten at each label.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._order: list[str] = []  # expressions in the order they became known
        self._outer: list[tuple[int, int | None]] = []
        self._fork: int | None = None  # how many were known at the first branch of this loop

    def get(self, text: str) -> str | None:
        return self._names.get(text)

    def add(self, text: str, name: str) -> None:
        self._names[text] = name
        self._order.append(text)

    def open(self) -> None:
        """A loop begins."""
        self._outer.append((len(self._order), self._fork))
        self._fork = None

    def close(self) -> None:
        """The innermost loop ends."""
        size, self._fork = self._outer.pop()
        self._forget(size)

    def fork(self) -> None:
        """A branch."""
        if self._fork is None:
            self._fork = len(self._order)

    def label(self) -> None:
        """A label."""
        if self._fork is not None:
            self._forget(self._fork)

    def _forget(self, size: int) -> None:
        for text in self._order[size:]:
            del self._names[text]
        del self._order[size:]


def _is_power_of_two(text: str) -> bool:
    return text.isdigit() and int(text) > 0 and int(text) & (int(text) - 1) == 0


def _is_address(type_: str) -> bool:
    """Whether values of a type are numbers or addresses, one each."""
    return type_ == "ptr" or type_[0] == "i"


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdigit()
