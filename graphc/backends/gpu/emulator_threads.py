"""A kernel whose threads wait for each other, for the host: each thread is a coroutine.

A thread waits for its CTA at barriers and for its warp at shuffles, votes, warp barriers and matrix
products.  Imports: emulator_context, emulator_copies, emulator_rewrite, emulator_text,
emulator_warp, errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphc.backends.gpu.emulator_context import expand, load_word, word_at
from graphc.backends.gpu.emulator_rewrite import (
    LIMIT,
    Called,
    HostText,
    Row,
    base_of,
    host_lines,
)
from graphc.backends.gpu.emulator_text import Access, KernelText, Root, pointer_roots
from graphc.backends.gpu.emulator_warp import PRODUCTS, SLOT_BYTES, Product, deposit
from graphc.errors import CompileError

_SHUFFLE = re.compile(r"shfl\.sync\.(down|up|bfly|idx)\.(i32|f32)(p?)$")
_VOTE = re.compile(r"vote\.(ballot|any|all)\.sync$")
_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global\.(4|8|16)(\.s)?$")
_MATRIX = re.compile(r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.b16")

_BARRIERS = ("barrier.cta.sync.aligned.all", "barrier0")

Arguments = Sequence[tuple[str, str]]


def waits(kernel: KernelText) -> bool:
    """Whether threads of a kernel wait for each other or share memory."""
    if kernel.shared_bytes:
        return True
    marks = ("nvvm.barrier", "nvvm.bar.", "nvvm.shfl", "nvvm.vote", "nvvm.mma", "nvvm.cp.async")
    return any("@llvm." in line and any(m in line for m in marks) for line in kernel.lines())


def copies(kernel: KernelText) -> bool:
    """Whether a kernel copies to shared memory asynchronously."""
    return any("@llvm.nvvm.cp.async" in line for line in kernel.lines())


@dataclass
class ThreadText(HostText):
    """The coroutine of one thread while it is written.

    inline  whether accesses are checked in place, which takes three times as long to compile and a
            third of the time to run
    """

    inline: bool = False

    def begin(self) -> None:
        super().begin()
        self.start += [
            *load_word("%emu.pool", "pool", "ptr"),
            *load_word("%emu.stride", "stride"),
            *load_word("%emu.cta.i64", "running_cta"),
            "%emu.thread = trunc i64 %emu.thread.i64 to i32",
            "%emu.cta = trunc i64 %emu.cta.i64 to i32",
            "%emu.lane = and i32 %emu.thread, 31",
            *(f"%emu.{w}.at = {word_at(w)}" for w in ("waits", "slot")),
        ]

    def access(self, line: str, access: Access) -> str:
        """Have an access checked by a call, which gives the pointer to use: a fault ends the launch
        when the thread next waits."""
        roots = self.roots.get(access.pointer, ())
        spaces = {root.space for root in roots}
        root = roots[0] if len(roots) == 1 and not self.inline else None
        if len(roots) > 1 and spaces == {"shared"} and not self.inline:
            names = " or ".join(root.name for root in roots)
            root = Root("shared", names, 0, self.kernel.shared_bytes)
        if root is None or not spaces <= {"shared", "global"}:
            return super().access(line, access)
        return self.checked(self.site(line, access, [root]), access, root)

    def checked(self, site: int, access: Access, root: Root) -> str:
        """The pointer to use for an access to memory of one kind."""
        ordered = access.kind != "atomic" and root.space in self.granules
        row = Row(root, access.bytes, access.align, ordered)
        if row not in self.rows:
            self.rows.append(row)
        function = self.runtime("write" if access.kind == "store" else "read")
        return self.value(
            f"call ptr {function}(ptr %emu, ptr {self.plain(access.pointer)}, "
            f"i64 {self.rows.index(row)}, i64 {site})"
        )

    def intrinsic(self, line: str, name: str, called: str, given: Arguments) -> None:
        if called in _BARRIERS:
            if given and given[0][1] != "0":
                raise CompileError(f"the emulator knows barrier 0 only: {line}")
            self._wait(self.site(line), 1)
        elif called == "bar.warp.sync":
            self._meet(line, given[0][1], ())
        elif found := _SHUFFLE.match(called):
            self._shuffle(line, name, found.groups(), given)
        elif found := _VOTE.match(called):
            self._vote(line, name, found.group(1), given)
        elif called in PRODUCTS:
            self._product(line, name, PRODUCTS[called], given)
        elif found := _COPY.match(called):
            self._copy(line, int(found.group(1)), given)
        elif called.startswith("cp.async."):
            self._copies(called, given)
        elif found := _MATRIX.match(called):
            self._matrix(line, name, int(found.group(1)), bool(found.group(2)), given)
        else:
            super().intrinsic(line, name, called, given)

    # ---- waiting

    def _wait(self, site: int, kind: int) -> None:
        """Wait for the warp (kind 0) or the CTA (kind 1)."""
        n = self.fresh()
        self.emit(
            f"store i64 {2 * site + kind}, ptr %emu.waits.at, align 8",
            f"%emu.woken.{n} = call i8 @llvm.coro.suspend(token none, i1 false)",
            f"switch i8 %emu.woken.{n}, label %emu.suspend [ i8 0, label %emu.on.{n} ]",
        )
        self.label(f"emu.on.{n}")

    def _meet(self, line: str, mask: str, values: Arguments) -> None:
        """Leave values, and wait for the warp."""
        site = self.site(line)
        if mask != "-1":
            all_lanes = self.value(f"icmp eq i32 {mask}, -1")
            self.require(all_lanes, "mask", site, self.value(f"zext i32 {mask} to i64"))
        if values:
            slot = self.value("load ptr, ptr %emu.slot.at, align 8")
            self.emit(*deposit(values, slot, self.fresh()))
        self._wait(site, 0)

    def _shuffle(self, line: str, name: str, form: Sequence[str], given: Arguments) -> None:
        kind, element, with_predicate = form
        (_, mask), value, (_, by), (_, clamp) = given
        self._meet(line, mask, [value])
        called = f"(ptr %emu, i32 {by}, i32 {clamp})"
        scalar = "float" if element == "f32" else "i32"
        bits = f"call i32 {self.runtime(f'shuffle.{kind}')}{called}"
        if not with_predicate:
            self.emit(f"{name} = bitcast i32 {self.value(bits)} to {scalar}")
            return
        read = self.value(f"bitcast i32 {self.value(bits)} to {scalar}")
        source = self.value(f"call i32 {self.runtime(f'source.{kind}')}{called}")
        within = self.value(f"icmp ult i32 {source}, 32")
        pair = f"{{ {scalar}, i1 }}"
        first = self.value(f"insertvalue {pair} poison, {scalar} {read}, 0")
        self.emit(f"{name} = insertvalue {pair} {first}, i1 {within}, 1")

    def _vote(self, line: str, name: str, kind: str, given: Arguments) -> None:
        (_, mask), (_, predicate) = given
        self._meet(line, mask, [("i32", self.value(f"zext i1 {predicate} to i32"))])
        bits = self.value(f"call i32 {self.runtime('ballot')}(ptr %emu)")
        if kind == "ballot":
            self.emit(f"{name} = add i32 {bits}, 0")
        else:
            test = "ne i32 {}, 0" if kind == "any" else "eq i32 {}, -1"
            self.emit(f"{name} = icmp {test.format(bits)}")

    def _product(self, line: str, name: str, product: Product, given: Arguments) -> None:
        registers = sum(product.registers)
        self._meet(line, "-1", given[:registers])
        sums = ", ".join(f"float {value}" for _, value in given[registers:])
        self.emit(
            f"{name} = call {{ float, float, float, float }} {self.runtime(product.name)}("
            f"ptr %emu, {sums})"
        )

    # ---- copies that arrive later

    def _copy(self, line: str, size: int, given: Arguments) -> None:
        """Begin a copy from global to shared memory; what is read may be less than is written."""
        target = Access("store", f"<{size} x i8>", given[0][1], size)
        source = Access("load", f"<{size} x i8>", given[1][1], size)
        to, origin, read = self.access(line, target), self.plain(given[1][1]), str(size)
        if len(given) == 2:
            origin = self.access(line, source)
        else:
            read = self._copied_part(line, source, given[2][1])
        self.emit(
            f"call void {self.runtime('copy')}(ptr %emu, ptr {to}, ptr {origin}, i64 {size}, "
            f"i64 {read}, i64 {self.site(line)})"
        )

    def _copied_part(self, line: str, source: Access, given: str) -> str:
        """Require that the bytes a copy reads, if any, are inside an argument."""
        site, roots, address = self.place(line, source)
        read = self.value(f"zext i32 {given} to i64")
        none = self.value(f"icmp eq i64 {read}, 0")
        ok = self.value(f"icmp ule i64 {read}, {source.bytes}")
        less = self.value(f"sub i64 {read}, 1")
        inside = ""
        for root in roots:
            if root.space != "global":
                raise CompileError(f"not a copy from global memory: {line}")
            bound = self.value(
                f"call i64 @llvm.usub.sat.i64(i64 %emu.bytes.{root.number}, i64 {less})"
            )
            offset = self.value(f"sub i64 {address}, {base_of(root)}")
            here = self.value(f"icmp ult i64 {offset}, {bound}")
            inside = self.value(f"or i1 {inside}, {here}") if inside else here
        aligned = self.value(f"and i1 {inside}, {self.aligned(address, source.align)}")
        either = self.value(f"or i1 {none}, {aligned}")
        self.require(self.value(f"and i1 {ok}, {either}"), "access", site, address)
        self.touch(site, source, address, roots, read)
        return read

    def _copies(self, called: str, given: Arguments) -> None:
        """Close a group of copies, or wait for groups."""
        if called not in ("cp.async.commit.group", "cp.async.wait.all", "cp.async.wait.group"):
            raise CompileError(f"the emulator does not know llvm.nvvm.{called}")
        if called != "cp.async.wait.group":
            self.emit(f"call void {self.runtime('commit')}(ptr %emu)")
        if called != "cp.async.commit.group":
            left = given[0][1] if given else "0"
            self.emit(f"call void {self.runtime('deliver')}(ptr %emu, i64 {left})")

    # ---- matrices from shared memory

    def _matrix(self, line: str, name: str, count: int, transposed: bool, given: Arguments) -> None:
        """Lane 8 * i + r brings the address of row r of matrix i, and each lane takes two elements
        of each matrix."""
        site, roots, address = self.place(line, Access("load", "<8 x i16>", given[0][1], 16))
        if len(roots) > 1:
            raise CompileError(f"rows of several arrays: {line}")
        unused = self.value(f"icmp sge i32 %emu.lane, {8 * count}")  # these may bring anything
        ok = self.value(f"or i1 {unused}, {self.aligned(address, 16)}")
        self.require(ok, "access", site, address)
        high = self.value(f"lshr i64 {address}, 32")
        low, high = (self.value(f"trunc i64 {half} to i32") for half in (address, high))
        self._meet(line, "-1", [("i32", low), ("i32", high)])
        result = "i32" if count == 1 else f"{{ {', '.join(['i32'] * count)} }}"
        warp_at = self.value(word_at("met"))
        warp = self.value(f"load ptr, ptr {warp_at}, align 8")
        made = "poison"
        for i in range(count):
            taken = self._taken(site, roots[0], warp, i, transposed)
            if count == 1:
                self.emit(f"{name} = add i32 {taken}, 0")
            else:
                target = name if i == count - 1 else f"%emu.matrix.{self.fresh()}"
                self.emit(f"{target} = insertvalue {result} {made}, i32 {taken}, {i}")
                made = target

    def _taken(self, site: int, root: Root, warp: str, matrix: int, transposed: bool) -> str:
        """The two elements of a matrix that are this lane's, in one register."""
        lane = self.value("zext i32 %emu.lane to i64")
        quarter = self.value(f"lshr i64 {lane}, 2")
        inside = self.value(f"and i64 {lane}, 3")
        pair = self.value(f"shl i64 {inside}, 1")
        parts = []
        for part in (0, 1):
            other = self.value(f"add i64 {pair}, {part}")
            row, column = (other, quarter) if transposed else (quarter, other)
            source = self.value(f"add i64 {row}, {8 * matrix}")
            offset = self.value(f"mul i64 {source}, {SLOT_BYTES}")
            slot = self.value(f"getelementptr i8, ptr {warp}, i64 {offset}")
            start = self.value(f"load ptr, ptr {slot}, align 8")
            at = self.value(f"getelementptr i16, ptr {start}, i64 {column}")
            where = self.checked(site, Access("load", "i16", at, 2), root)
            read = self.value(f"load i16, ptr {where}, align 2")
            parts.append(self.value(f"zext i16 {read} to i32"))
        high = self.value(f"shl i32 {parts[1]}, 16")
        return self.value(f"or i32 {parts[0]}, {high}")


def thread_text(
    kernel: KernelText, threads: int, granules: Mapping[str, int], quick: bool
) -> tuple[str, Called]:
    """The module of a kernel whose threads wait for each other, and what it calls:
    `ptr @emulate.thread(ptr, i64 thread)` begins a thread."""
    host = ThreadText(kernel, threads, pointer_roots(kernel), granules)
    host.inline = not quick and not granules
    host.begin()
    host.body()
    text = [
        *host_lines(kernel, LIMIT + _COROUTINE_INTRINSICS),
        "define ptr @emulate.thread(ptr %emu, i64 %emu.thread.i64) presplitcoroutine nounwind {",
        "emu.begin:",
        *host.start,
        *expand(_BEGIN).splitlines(),
        *host.bases,  # private memory is in the frame from here on
        f"br label %{kernel.blocks[0][0]}",
        *host.patched(),
        "emu.returned:",
        "br label %emu.stop",
        *host.fault_block(),
        *_END.splitlines(),
    ]
    return "\n".join(text) + "\n", Called(host.sites, host.functions, host.rows)


_COROUTINE_INTRINSICS = """\
declare token @llvm.coro.id(i32, ptr, ptr, ptr)
declare i64 @llvm.coro.size.i64()
declare ptr @llvm.coro.begin(token, ptr)
declare i8 @llvm.coro.suspend(token, i1)
declare void @llvm.coro.end(ptr, i1, token)
"""

_BEGIN = """\
%emu.id = call token @llvm.coro.id(i32 16, ptr null, ptr null, ptr null)
%emu.size = call i64 @llvm.coro.size.i64()
%emu.fits = icmp ule i64 %emu.size, %emu.stride
br i1 %emu.fits, label %emu.fit, label %emu.large
emu.large:
  PUT needed, %emu.size
ret ptr null
emu.fit:
%emu.offset = mul i64 %emu.thread.i64, %emu.stride
%emu.frame = getelementptr i8, ptr %emu.pool, i64 %emu.offset
%emu.handle = call ptr @llvm.coro.begin(token %emu.id, ptr %emu.frame)
store i64 %emu.budget, ptr %emu.steps, align 8
"""

_END = """\
emu.stop:
store i64 -1, ptr %emu.waits.at, align 8
%emu.last = call i8 @llvm.coro.suspend(token none, i1 true)
switch i8 %emu.last, label %emu.suspend [ i8 0, label %emu.never ]
emu.never:
unreachable
emu.suspend:
call void @llvm.coro.end(ptr %emu.handle, i1 false, token none)
ret ptr %emu.handle
}
"""
