"""LLVM text of one thread of a GPU kernel: `FunctionText` with one lane, and what threads share.

A thread's values are scalars.  Threads of a warp exchange values by shuffles, those of a CTA meet
at barriers; all threads that take part must get there.  Imports: codegen, dims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.backends.codegen.text import FunctionText
from graphc.dims import Dim

WARP = 32

_ALL = ("i32", "-1")
"""The mask of all lanes of a warp."""


class ThreadText(FunctionText):
    """Emits the body of a GPU kernel, as one of its threads runs it."""

    def __init__(self, name: str) -> None:
        super().__init__(name, lanes=1)

    def open_grid_kernel(self, buffers: int, sizes: Sequence[Dim], threads: int) -> None:
        """Begin `name(ptr %a0, ..., i64 %s0, ...)`, for CTAs of so many threads."""
        self.bases = [f"%a{i}" for i in range(buffers)]
        self.sizes = {d: f"%s{i}" for i, d in enumerate(sizes)}
        parameters = [f"ptr align 16 {base}" for base in self.bases]
        parameters += [f"i64 {size}" for size in self.sizes.values()]
        self.lines.append(
            f"define ptx_kernel void @{self.name}({', '.join(parameters)}) "
            f'nounwind "nvvm.reqntid"="{threads}" {{'
        )
        self.lines.append("entry:")

    # ---- who it is

    def thread(self) -> str:
        """Which thread of its CTA it is, as i64."""
        return self._register("tid")

    def cta(self) -> str:
        """Which CTA of the grid it is in, as i64."""
        return self._register("ctaid")

    def _register(self, name: str) -> str:
        self.declarations[name] = f"declare i32 @llvm.nvvm.read.ptx.sreg.{name}.x()"
        number = self.known(f"call i32 @llvm.nvvm.read.ptx.sreg.{name}.x()")
        return self.known(f"zext i32 {number} to i64")

    def when(self, condition: str, body: Callable[[], None]) -> None:
        """Code that runs where a condition holds."""
        key = self.fresh("")
        self.branch_if(condition, f"y{key}", f"z{key}")
        self.label(f"y{key}")
        body()
        self.branch(f"z{key}")
        self.label(f"z{key}")

    # ---- what threads share

    def shared(self, type_: str, count: int) -> str:
        """Room for values of a type that all threads of the CTA have."""
        name = f"@{self.name}.{self.fresh('shared')}"
        m = "i8" if type_ == "i1" else type_
        self.declarations[name] = (
            f"{name} = internal addrspace(3) global [{count} x {m}] undef, align 16"
        )
        return name

    def store_shared(self, type_: str, room: str, index: str, value: str) -> None:
        """Write one of the values."""
        m, size = _in_memory(type_)
        if type_ == "i1":
            value = self.value(f"zext i1 {value} to i8")
        place = self.value(f"getelementptr {m}, ptr addrspace(3) {room}, i64 {index}")
        self.emit(f"store {m} {value}, ptr addrspace(3) {place}, align {size}")

    def load_shared(self, type_: str, room: str, index: str) -> str:
        """Read one of the values."""
        m, size = _in_memory(type_)
        place = self.value(f"getelementptr {m}, ptr addrspace(3) {room}, i64 {index}")
        value = self.value(f"load {m}, ptr addrspace(3) {place}, align {size}")
        return self.value(f"trunc i8 {value} to i1") if type_ == "i1" else value

    def barrier(self) -> None:
        """Wait for all threads of the CTA; what they wrote before is visible behind."""
        self.call("void", "llvm.nvvm.barrier.cta.sync.aligned.all", ("i32", "0"))

    def warp_sync(self) -> None:
        """Wait for all threads of the warp; what they wrote before is visible behind."""
        self.call("void", "llvm.nvvm.bar.warp.sync", _ALL)

    def shuffle_xor(self, type_: str, value: str, distance: int) -> str:
        """The value of the lane whose number differs in these bits."""
        return self._shuffle("bfly", type_, value, str(distance))

    def shuffle_from(self, type_: str, value: str, lane: str) -> str:
        """The value of a lane, given as i32."""
        return self._shuffle("idx", type_, value, lane)

    def _shuffle(self, kind: str, type_: str, value: str, lane: str) -> str:
        if type_ in ("float", "i32"):
            suffix = "f32" if type_ == "float" else "i32"
            name = f"llvm.nvvm.shfl.sync.{kind}.{suffix}"
            return self.call(type_, name, _ALL, (type_, value), ("i32", lane), ("i32", "31"))
        if type_ == "double":
            bits = self.value(f"bitcast double {value} to i64")
            moved = self._shuffle(kind, "i64", bits, lane)
            return self.value(f"bitcast i64 {moved} to double")
        if type_ == "i64":
            low = self.value(f"trunc i64 {value} to i32")
            high = self.value(f"trunc i64 {self.value(f'lshr i64 {value}, 32')} to i32")
            halves = [self._shuffle(kind, "i32", x, lane) for x in (low, high)]
            low, high = (self.value(f"zext i32 {x} to i64") for x in halves)
            return self.value(f"or i64 {low}, {self.value(f'shl i64 {high}, 32')}")
        wide = self.value(f"zext {type_} {value} to i32")
        return self.value(f"trunc i32 {self._shuffle(kind, 'i32', wide, lane)} to {type_}")


def _in_memory(type_: str) -> tuple[str, int]:
    """The type that values of a type have in memory, and its bytes."""
    sizes = {"float": 4, "double": 8}
    m = "i8" if type_ == "i1" else type_
    return m, sizes.get(m) or int(m[1:]) // 8
