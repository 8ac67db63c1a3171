"""A kernel's text for the host: every access is checked, every loop counted.

A kernel whose threads never wait for each other becomes two loops, over CTAs and their threads,
around its body.  The others become coroutines: see `emulator_threads`.
Imports: emulator_context, emulator_rounding, emulator_shadow, emulator_text, emulator_warp, errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd

from graphc.backends.gpu.emulator_context import PARAMETER, RUNTIME, fault_number, load_word
from graphc.backends.gpu.emulator_rounding import bfloat_lines, tf32_lines
from graphc.backends.gpu.emulator_shadow import GLOBAL_SHADOW_BYTES
from graphc.backends.gpu.emulator_text import (
    Access,
    KernelText,
    Root,
    access_of,
    pointer_roots,
)
from graphc.backends.gpu.emulator_warp import PRODUCTS
from graphc.errors import CompileError

_SPACE = re.compile(r" addrspace\(\d\)")
_CAST = re.compile(r"^(%[\w.$]+) = addrspacecast ptr (\S+) to ptr$")
_METADATA = re.compile(r", ![\w.]+.*$")
_INTRINSIC = re.compile(r"^(?:(%[\w.$]+) = )?.*?call .*?@llvm\.nvvm\.([\w.]+)\((.*)\)")
_MOVED = re.compile(r"@llvm\.nvvm\.(?:cp\.async\.c[ag]\.shared\.global\.(\d+)|ldmatrix)")
_PHI_FROM = re.compile(r", %([-\w.$]+) \]")

INDICES = {
    "read.ptx.sreg.tid.x": "%emu.thread",
    "read.ptx.sreg.ctaid.x": "%emu.cta",
    "read.ptx.sreg.ntid.x": "{threads}",
    "read.ptx.sreg.nctaid.x": "%emu.blocks.i32",
    "read.ptx.sreg.laneid": "%emu.lane",
    "read.ptx.sreg.warpsize": "32",
}
"""What a thread may read about itself."""


@dataclass(frozen=True)
class Site:
    """A line of the kernel at which something may go wrong."""

    line: str
    access: Access | None = None
    roots: Sequence[Root] = ()


@dataclass(frozen=True)
class Row:
    """Accesses of one kind: how many bytes of what, how they are aligned, and whether their order
    with those of other threads is of interest."""

    root: Root
    bytes: int
    align: int
    ordered: bool


@dataclass(frozen=True)
class Called:
    """What a kernel's text names by number: sites, functions of all kernels, kinds of accesses."""

    sites: Sequence[Site]
    functions: Sequence[str]
    rows: Sequence[Row]


@dataclass
class HostText:
    """The host's text while it is written.

    start     lines before the body
    bases     lines between these that say where a thread's private memory is
    final     the block that each of the kernel's own blocks ends in
    granules  bytes of global and of shared memory that share a shadow, where accesses are recorded
    """

    kernel: KernelText
    threads: int
    roots: Mapping[str, Sequence[Root]]
    granules: Mapping[str, int]
    sites: list[Site] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    start: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    faults: list[tuple[str, int, str, str]] = field(default_factory=list)
    final: dict[str, str] = field(default_factory=dict)
    block: str = ""
    _count: int = 0
    _limits: dict[tuple[str, int], str] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    # ---- lines, names, blocks

    def fresh(self) -> str:
        self._count += 1
        return f"{self._count}"

    def emit(self, *lines: str) -> None:
        self.lines += lines

    def value(self, text: str) -> str:
        name = f"%emu.{self.fresh()}"
        self.lines.append(f"{name} = {text}")
        return name

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.block = name

    def site(self, line: str, access: Access | None = None, roots: Sequence[Root] = ()) -> int:
        """The number of a new site."""
        self.sites.append(Site(line, access, roots))
        return len(self.sites)

    def require(self, ok: str, fault: str, site: int, value: str) -> None:
        """Go on if `ok` holds; otherwise the launch ends here with this fault."""
        following = f"emu.ok.{self.fresh()}"
        self.emit(f"br i1 {ok}, label %{following}, label %emu.fault")
        self.faults.append((self.block, fault_number(fault), str(site), value))
        self.label(following)

    # ---- parameters and limits, at the start

    def begin(self) -> None:
        """Read the context and the parameters."""
        for word in ("blocks", "reversed", "budget"):
            self.start += load_word(f"%emu.{word}", word)
        self.start += load_word("%emu.table", "parameters", "ptr")
        self.start += load_word("%emu.functions", "functions", "ptr")
        self.runtime("record")
        self.start += [
            "%emu.blocks.i32 = trunc i64 %emu.blocks to i32",
            "%emu.steps = alloca i64, align 8",
        ]
        for i, (kind, name) in enumerate(self.kernel.parameters):
            self._parameter(i, kind, name)
        if self.kernel.shared_bytes:
            self.start += load_word("%emu.shared", "shared", "ptr")
        for root in self.kernel.roots.values():
            if root.space == "shared":
                pointer = shared_name(root.name)
                self.start.append(
                    f"{pointer} = getelementptr i8, ptr %emu.shared, i64 {root.number}"
                )
            if root.space in ("shared", "constant"):
                pointer = shared_name(root.name) if root.space == "shared" else root.name
                self.start.append(f"{base_of(root)} = ptrtoint ptr {pointer} to i64")

    def runtime(self, name: str) -> str:
        """The address of a function that all kernels share."""
        function = f"%emu.run.{name}"
        if name not in self.functions:
            self.functions.append(name)
            number = (*RUNTIME, *(p.name for p in PRODUCTS.values())).index(name)
            self.start += [
                f"{function}.at = getelementptr ptr, ptr %emu.functions, i64 {number}",
                f"{function} = load ptr, ptr {function}.at, align 8",
            ]
        return function

    def _parameter(self, i: int, kind: str, name: str) -> None:
        at = f"%emu.parameter.{i}"
        first = len(PARAMETER) * i
        self.start.append(f"{at} = getelementptr i64, ptr %emu.table, i64 {first}")
        self.start.append(f"{name} = load {kind}, ptr {at}, align 8")
        if kind != "ptr":
            return
        self.start += [
            f"%emu.base.{i} = ptrtoint ptr {name} to i64",
            f"{at}.b = getelementptr i64, ptr %emu.table, i64 {first + 1}",
            f"%emu.bytes.{i} = load i64, ptr {at}.b, align 8",
            f"{at}.s = getelementptr i64, ptr %emu.table, i64 {first + 2}",
            f"%emu.shadow.{i} = load ptr, ptr {at}.s, align 8",
            f"%emu.start.{i} = and i64 %emu.base.{i}, -{self.granules.get('global', 1)}",
        ]

    def limit(self, root: Root, size: int) -> str:
        """Offsets below this are where an access of `size` bytes may begin."""
        if root.space != "global":
            return str(max(root.bytes - size + 1, 0))
        key = root.name, size
        if key not in self._limits:
            name = self._limits[key] = f"%emu.limit.{root.number}.{size}"
            self.start.append(
                f"{name} = call i64 @llvm.usub.sat.i64(i64 %emu.bytes.{root.number}, "
                f"i64 {size - 1})"
            )
        return self._limits[key]

    # ---- the body

    def body(self) -> None:
        """Write the kernel's own blocks."""
        seen: set[str] = set()
        for label, lines in self.kernel.blocks:
            self.label(label)
            seen.add(label)
            for line in lines:
                self._line(line, seen)
            self.final[label] = self.block

    def _line(self, line: str, seen: set[str]) -> None:
        if " = alloca " in line:
            name = line.split(" ", 1)[0]
            self.start.append(line)
            self.bases.append(f"{base_of(self.kernel.roots[name])} = ptrtoint ptr {name} to i64")
            return
        if found := _INTRINSIC.match(line):
            self.intrinsic(line, found.group(1) or "", found.group(2), arguments(found.group(3)))
            return
        access = access_of(line)
        if access is not None:
            pointer = self.plain(access.pointer)
            before, after = _METADATA.sub("", self.plain(line)).rsplit(f"ptr {pointer}", 1)
            line = f"{before}ptr {self.access(line, access)}{after}"
        elif line == "ret void":
            line = "br label %emu.returned"
        elif seen.intersection(self.kernel.targets(line)):
            self._count_step(line)
        if "bfloat" in line:
            self.emit(*bfloat_lines(self.plain(line), self.fresh()))
        else:
            self.emit(self.plain(line))

    def plain(self, line: str) -> str:
        """A line with all pointers in one address space."""
        line = re.sub(
            r"@[\w.$]+",
            lambda m: (
                shared_name(m.group())
                if m.group() in self.kernel.roots and self.kernel.roots[m.group()].space == "shared"
                else m.group()
            ),
            _SPACE.sub("", line),
        )
        return _CAST.sub(r"\1 = getelementptr i8, ptr \2, i64 0", line)

    def access(self, line: str, access: Access) -> str:
        """Require that an access is inside what its pointer is derived from, aligned, and in order
        with those of other threads; returns the pointer to use."""
        site, roots, address = self.place(line, access)
        ok = self._inside(address, roots, access.bytes)
        if access.align > 1:
            ok = self.value(f"and i1 {ok}, {self.aligned(address, access.align)}")
        self.require(ok, "access", site, address)
        if access.kind != "atomic":
            self.touch(site, access, address, roots)
        return self.plain(access.pointer)

    def place(self, line: str, access: Access) -> tuple[int, Sequence[Root], str]:
        """A site for an access, what its pointer is derived from, and its address."""
        roots = self.roots.get(access.pointer)
        if not roots:
            raise CompileError(f"the emulator cannot tell what {access.pointer} points to")
        address = self.value(f"ptrtoint ptr {self.plain(access.pointer)} to i64")
        return self.site(line, access, roots), roots, address

    def _inside(self, address: str, roots: Sequence[Root], size: int) -> str:
        """Whether so many bytes are inside one of the roots."""
        ok = ""
        for root in roots:
            offset = self.value(f"sub i64 {address}, {base_of(root)}")
            inside = self.value(f"icmp ult i64 {offset}, {self.limit(root, size)}")
            ok = self.value(f"or i1 {ok}, {inside}") if ok else inside
        return ok

    def aligned(self, address: str, align: int) -> str:
        low = self.value(f"and i64 {address}, {align - 1}")
        return self.value(f"icmp eq i64 {low}, 0")

    def touch(
        self, site: int, access: Access, address: str, roots: Sequence[Root], size: str = ""
    ) -> None:
        """Record who reads or writes global memory; `size` is how many bytes, if that is not
        known here."""
        granule = self.granules.get("global")
        if granule is None or not any(root.space == "global" for root in roots):
            return
        if not all(root.space == "global" for root in roots):
            raise CompileError(f"a pointer into memory of several kinds: {access.pointer}")
        count = str(access.bytes // granule)
        if size:
            count = self.value(f"lshr i64 {size}, {granule.bit_length() - 1}")
        entry = self._shadow(address, roots, granule)
        writes = "true" if access.kind == "store" else "false"
        bad = self.value(
            f"call i1 {self.runtime('touch.global')}(ptr %emu, ptr {entry}, i64 {count}, "
            f"i64 {site}, i1 {writes})"
        )
        following = f"emu.ok.{self.fresh()}"
        self.emit(f"br i1 {bad}, label %emu.stop, label %{following}")
        self.label(following)

    def _shadow(self, address: str, roots: Sequence[Root], granule: int) -> str:
        """Where the shadow of an address in global memory is."""
        start, shadow = f"%emu.start.{roots[0].number}", f"%emu.shadow.{roots[0].number}"
        for root in roots[1:]:
            offset = self.value(f"sub i64 {address}, {base_of(root)}")
            its = self.value(f"icmp ult i64 {offset}, %emu.bytes.{root.number}")
            other = f"%emu.start.{root.number}", f"%emu.shadow.{root.number}"
            start = self.value(f"select i1 {its}, i64 {other[0]}, i64 {start}")
            shadow = self.value(f"select i1 {its}, ptr {other[1]}, ptr {shadow}")
        offset = self.value(f"sub i64 {address}, {start}")
        number = self.value(f"lshr i64 {offset}, {granule.bit_length() - 1}")
        place = self.value(f"mul i64 {number}, {GLOBAL_SHADOW_BYTES}")
        return self.value(f"getelementptr i8, ptr {shadow}, i64 {place}")

    def _count_step(self, line: str) -> None:
        """Count an iteration of a loop."""
        left = self.value("load i64, ptr %emu.steps, align 8")
        now = self.value(f"sub i64 {left}, 1")
        self.emit(f"store i64 {now}, ptr %emu.steps, align 8")
        ok = self.value(f"icmp sgt i64 {now}, 0")
        self.require(ok, "budget", self.site(line), "0")

    def intrinsic(
        self, line: str, name: str, called: str, given: Sequence[tuple[str, str]]
    ) -> None:
        """Write what an intrinsic of NVPTX does."""
        if called in INDICES:
            read = INDICES[called].format(threads=self.threads)
            self.emit(f"{name} = add i32 {read}, 0")
        elif called == "f2tf32.rna":
            self.emit(*tf32_lines(name, given[0][1], self.fresh()))
        elif not called.startswith("membar."):  # memory is always up to date
            raise CompileError(f"the emulator does not know llvm.nvvm.{called}")

    # ---- the end

    def fault_block(self) -> list[str]:
        """The block where faults are recorded."""
        if not self.faults:
            return []
        rows = (("code", 1), ("site", 2), ("value", 3))
        phis = [
            f"%emu.fault.{name} = phi i64 "
            + ", ".join(f"[ {fault[at]}, %{fault[0]} ]" for fault in self.faults)
            for name, at in rows
        ]
        called = ", ".join(
            f"i64 %emu.{name}" for name in ("fault.code", "fault.site", "fault.value")
        )
        return [
            "emu.fault:",
            *phis,
            f"call void %emu.run.record(ptr %emu, {called})",
            "br label %emu.stop",
        ]

    def patched(self) -> list[str]:
        """The body, with what phis come from renamed to the blocks that now end in a branch."""

        def renamed(found: re.Match[str]) -> str:
            return f", %{self.final.get(found.group(1), found.group(1))} ]"

        return [_PHI_FROM.sub(renamed, s) if " = phi " in s else s for s in self.lines]


def shared_name(name: str) -> str:
    """What the host calls an array of shared memory."""
    return f"%emu.in.{name[1:]}"


def base_of(root: Root) -> str:
    """The address, as a number, at which a root begins."""
    return f"%emu.base.{root.number if root.space == 'global' else root.name[1:]}"


def arguments(text: str) -> list[tuple[str, str]]:
    """The (type, value) pairs of a call."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "<[{(") - (c in ">]})")
        if c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    found = []
    for part in (p.strip() for p in parts):
        if part:
            kind, _, value = part.partition("> ") if part[0] == "<" else part.partition(" ")
            found.append((kind + (">" if part[0] == "<" else ""), value.split(" ")[-1]))
    return found


def host_lines(kernel: KernelText, declarations: str) -> list[str]:
    """The lines beside the kernel's function and more; each intrinsic declared once."""
    declared = declarations.splitlines()
    names = {line.split("@", 1)[1].split("(", 1)[0] for line in declared}
    kept = [
        line
        for line in kernel.before
        if not (line.startswith("declare ") and line.split("@", 1)[1].split("(", 1)[0] in names)
    ]
    return [*kept, *declared]


def granules_of(kernel: KernelText, spaces: Sequence[str]) -> dict[str, int]:
    """The largest power of two that all accesses to a space of memory are multiples of."""
    roots = pointer_roots(kernel)
    found = dict.fromkeys(spaces, 16)
    for line in kernel.lines():
        access = access_of(line)
        for root in roots.get(access.pointer, ()) if access else ():
            if access is not None and root.space in found:
                found[root.space] = gcd(found[root.space], access.bytes, access.align)
        if access is None and (moved := _MOVED.search(line)):
            found = {space: gcd(size, int(moved.group(1) or 2)) for space, size in found.items()}
    return found


LIMIT = "declare i64 @llvm.usub.sat.i64(i64, i64)\n"


def loop_text(kernel: KernelText, threads: int, granules: Mapping[str, int]) -> tuple[str, Called]:
    """The module of a kernel whose threads do not wait, `void @emulate(ptr)`, and what it calls."""
    host = HostText(kernel, threads, pointer_roots(kernel), granules)
    host.begin()
    for word in ("running", "running_cta", "me", "stamp"):
        host.start += load_word(f"%emu.{word}", word)
    host.body()
    text = [
        *host_lines(kernel, LIMIT),
        "define void @emulate(ptr %emu) nounwind {",
        "emu.begin:",
        *host.start,
        *host.bases,
        *_LOOPS.format(last=threads - 1, first=kernel.blocks[0][0]).splitlines(),
        *host.patched(),
        *_NEXT.splitlines(),
        *host.fault_block(),
        "emu.stop:",
        "br label %emu.end",
        "emu.end:",
        "ret void",
        "}",
    ]
    return "\n".join(text) + "\n", Called(host.sites, host.functions, host.rows)


_LOOPS = """\
%emu.backwards = icmp ne i64 %emu.reversed, 0
%emu.blocks.less = sub i64 %emu.blocks, 1
br label %emu.ctas
emu.ctas:
%emu.c = phi i64 [ 0, %emu.begin ], [ %emu.c.next, %emu.cta.done ]
%emu.c.more = icmp slt i64 %emu.c, %emu.blocks
%emu.c.other = sub i64 %emu.blocks.less, %emu.c
%emu.cta.i64 = select i1 %emu.backwards, i64 %emu.c.other, i64 %emu.c
%emu.cta = trunc i64 %emu.cta.i64 to i32
br i1 %emu.c.more, label %emu.threads.loop, label %emu.end
emu.threads.loop:
%emu.t = phi i64 [ 0, %emu.ctas ], [ %emu.t.next, %emu.returned ]
%emu.t.more = icmp sle i64 %emu.t, {last}
%emu.t.other = sub i64 {last}, %emu.t
%emu.thread.i64 = select i1 %emu.backwards, i64 %emu.t.other, i64 %emu.t
%emu.thread = trunc i64 %emu.thread.i64 to i32
%emu.lane = and i32 %emu.thread, 31
store i64 %emu.budget, ptr %emu.steps, align 8
store i64 %emu.thread.i64, ptr %emu.running.at, align 8
store i64 %emu.cta.i64, ptr %emu.running_cta.at, align 8
%emu.t.shifted = shl i64 %emu.thread.i64, 2
%emu.me.now = or i64 %emu.stamp, %emu.t.shifted
store i64 %emu.me.now, ptr %emu.me.at, align 8
br i1 %emu.t.more, label %{first}, label %emu.cta.done
"""

_NEXT = """\
emu.returned:
%emu.t.next = add i64 %emu.t, 1
br label %emu.threads.loop
emu.cta.done:
%emu.c.next = add i64 %emu.c, 1
br label %emu.ctas
"""
