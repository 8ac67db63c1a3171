"""What the lanes of a warp do together, as LLVM text: shuffles, votes and matrix products.

At a meeting each lane leaves what it brings in a slot of its own; once all have, each goes on and
reads the slots of its warp.  Imports: emulator_context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.backends.gpu.emulator_context import load_word

SLOT_BYTES = 64
"""What a thread hands to its warp at a meeting."""

_SHUFFLES = {
    # the lane read, and whether it is one of the lane's segment
    "down": ("add i32 %lane, %by", "icmp sle i32 %there, %last"),
    "up": ("sub i32 %lane, %by", "icmp sge i32 %there, %last"),
    "bfly": ("xor i32 %lane, %by", "icmp sle i32 %there, %last"),
    "idx": ("or i32 %first, %inside", "icmp sle i32 %there, %last"),
}

_SOURCE = """
; the lane that a shuffle reads, as PTX defines it; 32 more if that is outside its segment
define i32 @emu.source.{kind}(ptr %emu, i32 %by0, i32 %clamp) alwaysinline {{
  %thread = WORD i64 running
  %thread32 = trunc i64 %thread to i32
  %lane = and i32 %thread32, 31
  %by = and i32 %by0, 31
  %shifted = lshr i32 %clamp, 8
  %segment = and i32 %shifted, 31
  %rest = xor i32 %segment, 31
  %bound = and i32 %clamp, 31
  %first = and i32 %lane, %segment
  %inside = and i32 %by, %rest
  %above = and i32 %bound, %rest
  %last = or i32 %first, %above
  %there = {there}
  %within = {within}
  %outside = or i32 %lane, 32
  %source = select i1 %within, i32 %there, i32 %outside
  ret i32 %source
}}

define i32 @emu.shuffle.{kind}(ptr %emu, i32 %by, i32 %clamp) {{
  %source = call i32 @emu.source.{kind}(ptr %emu, i32 %by, i32 %clamp)
  %low = and i32 %source, 31
  %lane = zext i32 %low to i64
  %warp = WORD ptr met
  %o = mul i64 %lane, SLOT_BYTES
  %at = getelementptr i8, ptr %warp, i64 %o
  %value = load i32, ptr %at, align 4
  ret i32 %value
}}
"""

BALLOT = """
; a bit for each lane whose slot is not 0
define i32 @emu.ballot(ptr %emu) {
entry:
  %warp = WORD ptr met
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %bits = phi i32 [ 0, %entry ], [ %more, %loop ]
  %o = mul i64 %i, SLOT_BYTES
  %at = getelementptr i8, ptr %warp, i64 %o
  %x = load i32, ptr %at, align 4
  %set = icmp ne i32 %x, 0
  %one = zext i1 %set to i32
  %shift = trunc i64 %i to i32
  %bit = shl i32 %one, %shift
  %more = or i32 %bits, %bit
  %next = add i64 %i, 1
  %on = icmp slt i64 %next, 32
  br i1 %on, label %loop, label %done
done:
  ret i32 %more
}
"""


def warp_text() -> str:
    """The functions of shuffles and votes."""
    return BALLOT + "".join(
        _SOURCE.format(kind=kind, there=there, within=within)
        for kind, (there, within) in _SHUFFLES.items()
    )


@dataclass(frozen=True)
class Product:
    """A matrix product of a warp, 16 x k by k x 8, added to 16 x 8 floats.

    element   'tf32', 'bf16' or 'f16'
    """

    k: int
    element: str

    @property
    def packed(self) -> int:
        """How many elements a register holds."""
        return 1 if self.element == "tf32" else 2

    @property
    def registers(self) -> tuple[int, int]:
        """How many registers of each operand a lane brings."""
        chunks = self.k // (4 * self.packed)
        return 2 * chunks, chunks

    @property
    def name(self) -> str:
        return f"mma.{self.element}.{self.k}"


PRODUCTS = {
    "mma.m16n8k4.row.col.tf32": Product(4, "tf32"),
    "mma.m16n8k8.row.col.tf32": Product(8, "tf32"),
    "mma.m16n8k8.row.col.bf16": Product(8, "bf16"),
    "mma.m16n8k16.row.col.bf16": Product(16, "bf16"),
    "mma.m16n8k8.row.col.f32.f32": Product(8, "f16"),
    "mma.m16n8k16.row.col.f32.f32": Product(16, "f16"),
}

_READ = {
    # of tf32 the 13 low bits do not count; a bf16 is the high half of a float
    "tf32": ("i32", ["{x}.m = and i32 {x}.b, -8192", "{x}.f = bitcast i32 {x}.m to float"]),
    "bf16": (
        "i16",
        [
            "{x}.w = zext i16 {x}.b to i32",
            "{x}.m = shl i32 {x}.w, 16",
            "{x}.f = bitcast i32 {x}.m to float",
        ],
    ),
    "f16": ("half", ["{x}.f = fpext half {x}.b to float"]),
}


def product_text(product: Product) -> str:
    """The function of one lane's four sums.

    Products are exact and added in double precision to what is there, k ascending, and the sum is
    rounded once: tensor cores do not say in what order or how wide they add.
    """
    result = "{ float, float, float, float }"
    lines = [
        f"define {result} @emu.{product.name}("
        "ptr %emu, float %c0, float %c1, float %c2, float %c3) {",
        *load_word("%warp", "met", "ptr"),
        *load_word("%thread", "running"),
        "%lane64 = and i64 %thread, 31",
        "%row = lshr i64 %lane64, 2",
        "%pair = and i64 %lane64, 3",
        f"%row.o = mul i64 %row, {4 * SLOT_BYTES}",
        f"%pair.o = mul i64 %pair, {8 * SLOT_BYTES}",
        "%a = getelementptr i8, ptr %warp, i64 %row.o",
        "%b = getelementptr i8, ptr %warp, i64 %pair.o",
        *(f"%s{r}.0 = fpext float %c{r} to double" for r in range(4)),
    ]
    for k in range(product.k):
        chunk, inside = divmod(k, 4 * product.packed)
        lane, part = divmod(inside, product.packed)
        place = lane * SLOT_BYTES + part * 2
        first = product.registers[0] * 4
        for half in (0, 1):
            lines += _element(product, f"%a{half}.{k}", "%a", place + (half + 2 * chunk) * 4)
            other = place + first + chunk * 4 + half * 4 * SLOT_BYTES
            lines += _element(product, f"%b{half}.{k}", "%b", other)
        lines += [
            f"%s{r}.{k + 1} = call double @llvm.fma.f64("
            f"double %a{r // 2}.{k}, double %b{r % 2}.{k}, double %s{r}.{k})"
            for r in range(4)
        ]
    made = "poison"
    for r in range(4):
        lines.append(f"%f{r} = fptrunc double %s{r}.{product.k} to float")
        lines.append(f"%r{r} = insertvalue {result} {made}, float %f{r}, {r}")
        made = f"%r{r}"
    declared = "declare double @llvm.fma.f64(double, double, double)"
    return "\n".join([declared, *lines, f"ret {result} {made}", "}"]) + "\n"


def _element(product: Product, name: str, base: str, place: int) -> list[str]:
    """Lines that read one element of an operand as a double."""
    kind, convert = _READ[product.element]
    return [
        f"{name}.at = getelementptr i8, ptr {base}, i64 {place}",
        f"{name}.b = load {kind}, ptr {name}.at, align 2",
        *(line.format(x=name) for line in convert),
        f"{name} = fpext float {name}.f to double",
    ]


def deposit(values: Sequence[tuple[str, str]], slot: str, tag: str) -> list[str]:
    """Lines that leave 4-byte values in a slot."""
    lines = []
    for i, (kind, value) in enumerate(values):
        at = f"%emu.slot.{tag}.{i}"
        lines.append(f"{at} = getelementptr i8, ptr {slot}, i64 {4 * i}")
        lines.append(f"store {kind} {value}, ptr {at}, align 4")
    return lines
