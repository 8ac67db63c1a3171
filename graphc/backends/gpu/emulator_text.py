"""What the emulator reads in a kernel's LLVM text: its parameters, its blocks, its memory, and what
each pointer is derived from.

One instruction is one line; nothing is understood beyond the forms that kernels for a GPU are
written in, and what is not understood is refused.  Imports: errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from graphc.errors import CompileError

_DEFINE = re.compile(r"^define\s+(.*?)@([\w.$]+)\((.*?)\)")
_LABEL = re.compile(r"^([-\w.$]+):")
_GLOBAL = re.compile(
    r"^@([\w.$]+)\s*=\s*(?:\w+\s+)*?(?:addrspace\((\d)\)\s+)?"
    r"(?:global|constant)\s+(\[[^=]*?\])\s*(.*)$"
)
_NAME = r"[%@][\w.$]+"
_POINTER = r"ptr(?: addrspace\(\d\))?"
_DERIVED = re.compile(
    rf"^(%[\w.$]+) = (?:getelementptr .*?, {_POINTER} ({_NAME})"
    rf"|addrspacecast {_POINTER} ({_NAME}) to .*|freeze {_POINTER} ({_NAME}))"
)
_SELECTED = re.compile(
    rf"^(%[\w.$]+) = select i1 [^,]+, {_POINTER} ({_NAME}), {_POINTER} ({_NAME})"
)
_PHI = re.compile(rf"^(%[\w.$]+) = phi {_POINTER} (.*)$")
_INCOMING = re.compile(rf"\[\s*({_NAME}),")
_ALLOCA = re.compile(r"^(%[\w.$]+) = alloca ([^,]+)(?:, align (\d+))?$")
_LOAD = re.compile(rf"^(%[\w.$]+) = load ([^,]+), ({_POINTER}) ({_NAME})(?:, align (\d+))?")
_STORE = re.compile(rf"^store (.*), ({_POINTER}) ({_NAME})(?:, align (\d+))?(?:, !.*)?$")
_ATOMIC = re.compile(
    rf"^(?:%[\w.$]+ = )?(?:cmpxchg|atomicrmw) (?:\w+ )*?({_POINTER}) ({_NAME}), (\w+)"
)
_TARGET = re.compile(r"label %([-\w.$]+)")

_SCALAR_BYTES = {"float": 4, "double": 8, "half": 2, "bfloat": 2, "ptr": 8}


def type_bytes(text: str) -> int:
    """The bytes a value of an LLVM type takes in memory; raises CompileError for other types."""
    text = text.strip()
    if text in _SCALAR_BYTES:
        return _SCALAR_BYTES[text]
    if re.fullmatch(r"i\d+", text):
        return (int(text[1:]) + 7) // 8
    array = re.fullmatch(r"[\[<]\s*(\d+) x (.*?)\s*[\]>]", text)
    if array is None:
        raise CompileError(f"the emulator does not know the size of the type {text}")
    return int(array.group(1)) * type_bytes(array.group(2))


def first_type(text: str) -> str:
    """The type that `type value` begins with."""
    if text[0] not in "<[":
        return text.split(" ", 1)[0]
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "<[") - (c in ">]")
        if depth == 0:
            return text[: i + 1]
    raise CompileError(f"the emulator does not understand {text!r}")


@dataclass(frozen=True)
class Access:
    """One line that reads or writes memory.

    kind      'load', 'store' or 'atomic'
    """

    kind: str
    type: str
    pointer: str
    align: int

    @property
    def bytes(self) -> int:
        return type_bytes(self.type)


def access_of(line: str) -> Access | None:
    """The access a line makes; None for other lines."""
    if found := _LOAD.match(line):
        _, kind, _, pointer, align = found.groups()
        return Access("load", kind, pointer, int(align or type_bytes(kind)))
    if found := _STORE.match(line):
        value, _, pointer, align = found.groups()
        kind = first_type(value)
        return Access("store", kind, pointer, int(align or type_bytes(kind)))
    if found := _ATOMIC.match(line):
        _, pointer, kind = found.groups()
        return Access("atomic", kind, pointer, type_bytes(kind))
    if re.match(r"(?:%\S+ = )?(?:load|store|cmpxchg|atomicrmw|fence)\b", line):
        raise CompileError(f"the emulator does not understand this access: {line}")
    return None


@dataclass(frozen=True)
class Root:
    """Memory of its own that pointers are derived from.

    space   'global' for the memory of a parameter, 'shared', 'private' or 'constant'
    number  of the parameter; of others, where it begins in the CTA's shared memory
    bytes   its size; of a parameter it is known at launch only
    """

    space: str
    name: str
    number: int
    bytes: int


@dataclass
class KernelText:
    """A kernel's module, taken apart.

    before       lines beside the kernel's function that stay: declarations, helper functions
    parameters   (type, name) of each
    blocks       label and lines of each block, in order
    roots        by name
    """

    name: str
    before: list[str] = field(default_factory=list)
    parameters: list[tuple[str, str]] = field(default_factory=list)
    blocks: list[tuple[str, list[str]]] = field(default_factory=list)
    roots: dict[str, Root] = field(default_factory=dict)
    shared_bytes: int = 0

    def lines(self) -> Iterator[str]:
        for _, lines in self.blocks:
            yield from lines

    def targets(self, line: str) -> Sequence[str]:
        """The labels a line may go to."""
        return _TARGET.findall(line) if line.startswith(("br ", "switch ")) else ()


def parse_kernel(text: str, name: str) -> KernelText:
    """Take apart the module of the kernel `name`; raises CompileError for what is not known."""
    kernel = KernelText(name)
    inside = helper = given_pointers = False
    for line in _joined(text):
        if inside:
            if line == "}":
                inside = False
            else:
                _body_line(kernel, line)
        elif helper or line.startswith("define "):
            if not helper and _DEFINE.match(line) and _DEFINE.match(line).group(2) == name:  # type: ignore[union-attr]
                _head(kernel, line)
                inside = True
                continue
            helper = line != "}"
            if line.startswith("define "):
                given_pointers = "ptr" in line
            if "llvm.nvvm" in line or _reaches_memory(line, given_pointers):
                raise CompileError(f"only the kernel itself may access memory: {line}")
            kernel.before.append(line)
        else:
            _module_line(kernel, line)
    if not kernel.blocks:
        raise CompileError(f"the text has no kernel {name}")
    for line in kernel.lines():
        if found := _ALLOCA.match(line):
            kernel.roots[found.group(1)] = Root(
                "private", found.group(1), 0, type_bytes(found.group(2))
            )
    return kernel


def _reaches_memory(line: str, given_pointers: bool) -> bool:
    """Whether a line of a helper accesses more than the module's constants."""
    access = access_of(line)
    if access is None:
        return False
    return given_pointers or "addrspace" in line or line.startswith("store ")


def _joined(text: str) -> Iterator[str]:
    """The lines without comments and margins, each instruction on one line."""
    held = ""
    for line in text.splitlines():
        if '"' not in line:
            line = line.split(";", 1)[0]
        held = f"{held} {line.strip()}".strip()
        if held.startswith("switch ") and "]" not in held:
            continue
        if held:
            yield held
        held = ""


def _module_line(kernel: KernelText, line: str) -> None:
    if line.startswith(("target ", "source_filename", "!", "attributes ")):
        return
    if line.startswith("declare "):
        if "@llvm.nvvm." not in line:
            kernel.before.append(line)
        return
    found = _GLOBAL.match(line)
    if found is None:
        raise CompileError(f"the emulator does not understand this line: {line}")
    name, space, kind, rest = found.groups()
    size = type_bytes(kind)
    if space == "3":
        align = re.search(r"align (\d+)", rest)
        step = int(align.group(1)) if align else 16
        start = -(-kernel.shared_bytes // step) * step
        kernel.roots["@" + name] = Root("shared", "@" + name, start, size)
        kernel.shared_bytes = start + size
        return
    kernel.roots["@" + name] = Root("constant", "@" + name, 0, size)
    kernel.before.append(re.sub(r" addrspace\(\d\)", "", line))


def _head(kernel: KernelText, line: str) -> None:
    if "ptx_kernel" not in line or " void " not in line:
        raise CompileError(f"not the head of a kernel: {line}")
    listed = re.search(rf"@{re.escape(kernel.name)}\((.*)\)", line)
    assert listed is not None
    for i, parameter in enumerate(p for p in listed.group(1).split(",") if p.strip()):
        words = parameter.split()
        kernel.parameters.append((words[0], words[-1]))
        if words[0] == "ptr":
            kernel.roots[words[-1]] = Root("global", words[-1], i, 0)


def _body_line(kernel: KernelText, line: str) -> None:
    found = _LABEL.match(line)
    if found is not None:
        kernel.blocks.append((found.group(1), []))
        return
    if not kernel.blocks:
        kernel.blocks.append(("entry", []))
    kernel.blocks[-1][1].append(line)


def pointer_roots(kernel: KernelText) -> Mapping[str, Sequence[Root]]:
    """What each pointer of the kernel may point into."""
    sources: dict[str, list[str]] = {}
    for line in kernel.lines():
        if found := _DERIVED.match(line):
            sources[found.group(1)] = [g for g in found.groups()[1:] if g]
        elif found := _SELECTED.match(line):
            sources[found.group(1)] = list(found.groups()[1:])
        elif found := _PHI.match(line):
            sources[found.group(1)] = _INCOMING.findall(found.group(2))
    known: dict[str, Sequence[Root]] = {name: (root,) for name, root in kernel.roots.items()}
    for name in sources:
        if name not in known:
            _find_roots(name, sources, known)
    return known


def _find_roots(
    name: str, sources: Mapping[str, Sequence[str]], known: dict[str, Sequence[Root]]
) -> None:
    """Add the roots of one pointer: those of all it is made of, however it goes round."""
    found: dict[str, Root] = {}
    seen, waiting = {name}, [name]
    while waiting:
        current = waiting.pop()
        if current in known:
            found.update((root.name, root) for root in known[current])
            continue
        if current not in sources:
            raise CompileError(f"the emulator cannot tell what {current} points to")
        for source in sources[current]:
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    known[name] = tuple(sorted(found.values(), key=lambda root: (root.space, root.number)))
