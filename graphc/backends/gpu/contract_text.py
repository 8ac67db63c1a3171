"""LLVM text of a contraction for a GPU: thread numbers, shared memory, barriers, narrow division.

One function, one lane: what is written is what each thread does.  Indices are i64 as on the CPU;
those known to be below 2**31 are divided in 32 bits, which takes a GPU a fifth of the time.
Imports: codegen.text, codegen.contract_access, kernel, dims, types.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.backends.codegen.contract_access import Group, Operand, Record, guards_axis, linear
from graphc.backends.codegen.text import FunctionText
from graphc.dims import DimLike, mul, static_product
from graphc.kernel import Access, Contraction, sizes_of

SMALL = 1 << 31
"""Numbers from 0 to below this are divided in 32 bits."""


class DeviceText(FunctionText):
    """The text of one kernel, which each thread of a grid runs; `shared` are its shared arrays."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 1)
        self.shared: list[str] = []
        self._narrow: dict[str, str] = {}  # numbers below SMALL, and the same as i32

    # ---- the kernel and its threads

    def open_grid(self, c: Contraction, threads: int) -> None:
        """Begin `ptx_kernel void name(ptr ..., i64 ...)`, for CTAs of so many threads."""
        # A and B are read by all CTAs and so written by none; other buffers may be one memory
        listed = [
            f"ptr {'noalias readonly ' if i < 2 else ''}align 16 %a{i}" for i in range(len(c.bufs))
        ]
        sizes = sizes_of(c)
        listed += [f"i64 %s{i}" for i in range(len(sizes))]
        self.lines.append(
            f"define ptx_kernel void @{self.name}({', '.join(listed)}) "
            f'nounwind "nvvm.reqntid"="{threads}" {{'
        )
        self.lines.append("entry:")
        self.bases = [f"%a{i}" for i in range(len(c.bufs))]
        self.sizes = {d: f"%s{i}" for i, d in enumerate(sizes)}

    def thread(self) -> str:
        """The number of this thread in its CTA."""
        return self.special("tid.x")

    def cta(self) -> str:
        """The number of this thread's CTA."""
        return self.special("ctaid.x")

    def special(self, register: str) -> str:
        name = f"llvm.nvvm.read.ptx.sreg.{register}"
        self.declarations[name] = f"declare i32 @{name}()"
        return self.widened(self.known(f"call i32 @{name}()"))

    def barrier(self) -> None:
        """Wait for all threads of the CTA."""
        self.call("void", "llvm.nvvm.barrier.cta.sync.aligned.all", ("i32", "0"))

    def share(self, hint: str, scalar: str, count: int) -> str:
        """An array in shared memory; returns its address."""
        address = f"@{self.name}.{hint}"
        self.shared.append(
            f"{address} = internal addrspace(3) global [{count} x {scalar}] undef, align 16"
        )
        return address

    def shared_at(self, address: str, byte_offset: str | int) -> str:
        """An address in shared memory, some bytes on."""
        if str(byte_offset) == "0":
            return address
        return self.known(f"getelementptr i8, ptr addrspace(3) {address}, i64 {byte_offset}")

    # ---- numbers

    def widened(self, narrow: str) -> str:
        """An i32 that is not negative, as i64."""
        wide = self.known(f"zext i32 {narrow} to i64")
        self._narrow[wide] = narrow
        return wide

    def small(self, x: str) -> str:
        """x, of which is known that it is at least 0 and below SMALL."""
        if not x.isdigit() and x not in self._narrow:
            self._narrow[x] = self.value(f"trunc i64 {x} to i32")
        return x

    def narrowed(self, x: str) -> str | None:
        """A number as i32, if it is known to be below SMALL."""
        if x.isdigit():
            return x if int(x) < SMALL else None
        return self._narrow.get(x)

    def udiv(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        narrow = self.narrowed(a), self.narrowed(b)
        if b == "1" or None in narrow or (a.isdigit() and b.isdigit()):
            return super().udiv(a, b)
        return self.widened(self.known(f"udiv i32 {narrow[0]}, {narrow[1]}"))

    def urem(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        narrow = self.narrowed(a), self.narrowed(b)
        if b == "1" or None in narrow or (a.isdigit() and b.isdigit()):
            return super().urem(a, b)
        return self.widened(self.known(f"urem i32 {narrow[0]}, {narrow[1]}"))

    def below(self, a: str, b: str) -> str:
        """Whether a < b; '' where it always is."""
        if a.isdigit() and b.isdigit() and int(a) < int(b):
            return ""
        return self.known(f"icmp slt i64 {a}, {b}")

    # ---- memory

    def guarded_loads(
        self, kind: str, align: int, wanted: Sequence[tuple[str, str]], outside: str
    ) -> list[str]:
        """Values of (address, condition or ''), `outside` where the condition does not hold."""
        found = []
        for address, inside in wanted:
            text = f"load {kind}, ptr {address}, align {align}"
            if not inside:
                found.append(self.value(text))
                continue
            before, yes, no = self.block, self.fresh("in"), self.fresh("out")
            self.branch_if(inside, yes, no)
            self.label(yes)
            one = self.value(text)
            self.branch(no)
            self.label(no)
            found.append(self.value(f"phi {kind} [ {outside}, %{before} ], [ {one}, %{yes} ]"))
        return found

    def module(self) -> str:
        """The whole module."""
        return "\n".join([*self.shared, *self.declarations.values(), str(self)])


# ---- groups of axes, walked as one flat index


def groups(c: Contraction) -> tuple[Group, Group, Group, Group]:
    """Batch, m, n and k axes."""
    found = []
    first = 0
    for extents in (c.batch, c.m, c.n, c.k):
        found.append(Group(tuple(range(first, first + len(extents))), extents))
        first += len(extents)
    return found[0], found[1], found[2], found[3]


def size_of(f: FunctionText, group: Group) -> str:
    """How many indices a group has."""
    size = "1"
    for extent in group.extents:
        size = f.mul(size, f.dim(extent))
    return size


def is_small(group: Group) -> bool:
    """Whether indices of a group are certainly below SMALL."""
    size = static_product(group.extents)
    return size is not None and size < SMALL


def coordinates(f: DeviceText, group: Group, flat: str) -> dict[int, str]:
    """The axes' indices at a flat row-major index."""
    coords: dict[int, str] = {}
    for i in range(len(group.axes) - 1, 0, -1):
        extent = group.extents[i]
        divisor = f.dim(extent) if extent != 0 else "1"  # nothing runs then
        coords[group.axes[i]] = f.urem(flat, divisor)
        flat = f.udiv(flat, divisor)
    if group.axes:
        coords[group.axes[0]] = flat
    return coords


def flat_step(access: Access, group: Group) -> DimLike | None:
    """How far an access moves per step of a group's flat index, if always as far and unguarded."""
    step: DimLike | None = None
    whole: DimLike = 0
    for axis, extent in zip(reversed(group.axes), reversed(group.extents), strict=True):
        if guards_axis(access, axis):
            return None
        if extent == 1:
            continue
        moved = linear(access, axis)
        if step is None:
            step = moved
        elif moved != whole:
            return None
        whole = mul(moved, extent)
    return 0 if step is None else step


def part_of(f: DeviceText, operand: Operand, group: Group, flat: str) -> Record:
    """What a group's flat index adds to the record of an operand."""
    step = flat_step(operand.access, group)
    if step is None:
        return operand.part(f, coordinates(f, group, flat))
    return [f.mul(flat, f.dim(step)) if step != 0 else "0", *("0" for _ in operand.guards)]
