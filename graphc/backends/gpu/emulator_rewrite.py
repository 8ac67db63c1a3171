"""A kernel's text for the host: every access is checked, every loop counted.

A kernel whose threads never wait for each other becomes two loops, over CTAs and their threads,
around its body.  The others become coroutines: see `emulator_threads`.
Imports: emulator_context, emulator_text, errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graphc.backends.gpu.emulator_context import PARAMETER, fault_number, load_word, store_word
from graphc.backends.gpu.emulator_text import (
    Access,
    KernelText,
    Root,
    access_of,
    pointer_roots,
)
from graphc.errors import CompileError

_SPACE = re.compile(r" addrspace\(\d\)")
_CAST = re.compile(r"^(%[\w.$]+) = addrspacecast ptr (\S+) to ptr$")
_METADATA = re.compile(r", ![\w.]+.*$")
_INTRINSIC = re.compile(r"^(?:(%[\w.$]+) = )?.*?call .*?@llvm\.nvvm\.([\w.]+)\((.*)\)")
_PHI_FROM = re.compile(r", %([-\w.$]+) \]")
_BFLOAT = re.compile(
    r"^(%[\w.$]+) = fptrunc (?:\w+ )*?((?:<\d+ x )?float>?) (\S.*) to (.*bfloat>?)$"
)
_BFLOAT_ARITHMETIC = re.compile(r" = (?:f(?:add|sub|mul|div|rem)|[su]itofp|fcmp|fptrunc) .*bfloat")

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


@dataclass
class HostText:
    """The host's text while it is written.

    final   the block that each of the kernel's own blocks ends in
    """

    kernel: KernelText
    threads: int
    roots: Mapping[str, Sequence[Root]]
    sites: list[Site] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    start: list[str] = field(default_factory=list)
    faults: list[tuple[str, int, str, str]] = field(default_factory=list)
    final: dict[str, str] = field(default_factory=dict)
    block: str = ""
    _count: int = 0
    _limits: dict[tuple[str, int], str] = field(default_factory=dict)

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
        for word in ("blocks", "threads", "reversed", "budget"):
            self.start += load_word(f"%emu.{word}", word)
        self.start += load_word("%emu.table", "parameters", "ptr")
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
            self.start += [line, f"{base_of(self.kernel.roots[name])} = ptrtoint ptr {name} to i64"]
            return
        if found := _INTRINSIC.match(line):
            self.intrinsic(line, found.group(1) or "", found.group(2), arguments(found.group(3)))
            return
        access = access_of(line)
        if access is not None:
            self.access(line, access)
            line = _METADATA.sub("", line)
        elif line == "ret void":
            line = "br label %emu.returned"
        elif seen.intersection(self.kernel.targets(line)):
            self._count_step(line)
        elif found := _BFLOAT.match(_SPACE.sub("", line)):
            self._to_bfloat(*found.groups())
            return
        elif _BFLOAT_ARITHMETIC.search(line):
            raise CompileError(f"the emulator does not compute in bfloat: {line}")
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

    def access(self, line: str, access: Access) -> int:
        """Require that an access is inside what its pointer is derived from, and aligned."""
        roots = self.roots.get(access.pointer)
        if not roots:
            raise CompileError(f"the emulator cannot tell what {access.pointer} points to")
        site = self.site(line, access, roots)
        address = self.value(f"ptrtoint ptr {self.plain(access.pointer)} to i64")
        inside = [
            self.value(
                f"icmp ult i64 {self.value(f'sub i64 {address}, {base_of(root)}')}, "
                f"{self.limit(root, access.bytes)}"
            )
            for root in roots
        ]
        ok = inside[0]
        for other in inside[1:]:
            ok = self.value(f"or i1 {ok}, {other}")
        if access.align > 1:
            low = self.value(f"and i64 {address}, {access.align - 1}")
            ok = self.value(f"and i1 {ok}, {self.value(f'icmp eq i64 {low}, 0')}")
        self.require(ok, "access", site, address)
        return site

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
        else:
            raise CompileError(f"the emulator does not know llvm.nvvm.{called}")

    def _to_bfloat(self, name: str, source: str, value: str, target: str) -> None:
        """Round to nearest even, which not every host can do itself; NaN is 0x7FFF, as on a GPU."""
        lanes = re.match(r"<(\d+) x ", source)

        def kind(scalar: str) -> str:
            return f"<{lanes.group(1)} x {scalar}>" if lanes else scalar

        def constant(scalar: str, number: int) -> str:
            return f"splat ({scalar} {number})" if lanes else str(number)

        wide, short = kind("i32"), kind("i16")
        bits = self.value(f"bitcast {source} {value} to {wide}")
        high = self.value(f"lshr {wide} {bits}, {constant('i32', 16)}")
        odd = self.value(f"and {wide} {high}, {constant('i32', 1)}")
        half = self.value(f"add {wide} {odd}, {constant('i32', 0x7FFF)}")
        moved = self.value(f"add {wide} {bits}, {half}")
        kept = self.value(f"lshr {wide} {moved}, {constant('i32', 16)}")
        rounded = self.value(f"trunc {wide} {kept} to {short}")
        nan = self.value(f"fcmp uno {source} {value}, {value}")
        chosen = self.value(
            f"select {kind('i1')} {nan}, {short} {constant('i16', 0x7FFF)}, {short} {rounded}"
        )
        self.emit(f"{name} = bitcast {short} {chosen} to {target}")

    # ---- the end

    def fault_block(self, following: Sequence[str]) -> list[str]:
        """The block where faults are recorded."""
        if not self.faults:
            return []
        rows = (("code", 1), ("site", 2), ("value", 3))
        phis = [
            f"%emu.fault.{name} = phi i64 "
            + ", ".join(f"[ {fault[at]}, %{fault[0]} ]" for fault in self.faults)
            for name, at in rows
        ]
        return [
            "emu.fault:",
            *phis,
            *store_word("fault", "%emu.fault.code", "f"),
            *store_word("site", "%emu.fault.site", "f"),
            *store_word("value", "%emu.fault.value", "f"),
            *store_word("cta", "%emu.cta.i64", "f"),
            *store_word("thread", "%emu.thread.i64", "f"),
            *following,
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


def loop_text(kernel: KernelText, threads: int) -> tuple[str, Sequence[Site]]:
    """The module of a kernel whose threads do not wait, and its sites: `void @emulate(ptr)`."""
    host = HostText(kernel, threads, pointer_roots(kernel))
    host.begin()
    host.body()
    last = host.fault_block(["br label %emu.end"])
    text = [
        *(line for line in kernel.before if "@llvm.usub.sat.i64(" not in line),
        "declare i64 @llvm.usub.sat.i64(i64, i64)",
        "define void @emulate(ptr %emu) nounwind {",
        "emu.begin:",
        *host.start,
        *_LOOPS.format(threads=threads, last=threads - 1, first=kernel.blocks[0][0]).splitlines(),
        *host.patched(),
        *_NEXT.splitlines(),
        *last,
        "emu.end:",
        "ret void",
        "}",
    ]
    return "\n".join(text) + "\n", host.sites


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
%emu.t.more = icmp slt i64 %emu.t, {threads}
%emu.t.other = sub i64 {last}, %emu.t
%emu.thread.i64 = select i1 %emu.backwards, i64 %emu.t.other, i64 %emu.t
%emu.thread = trunc i64 %emu.thread.i64 to i32
%emu.lane = and i32 %emu.thread, 31
store i64 %emu.budget, ptr %emu.steps, align 8
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
