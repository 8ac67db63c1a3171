"""Machine code as bytes that run wherever they are put: objects linked, and images mapped.

LLVM's objects for x86-64 are linked here into an `Image`: code and constants that refer to each
other by distance, and a table of the addresses they need from outside.  Putting one into memory
takes no linker and no LLVM.  What is not understood, other machines' objects included, is refused,
and the caller has LLVM load the object.  Imports: nothing of graphc.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

_PAGE = 4096
_ALIGN = 64

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")

_ELF64_LITTLE = b"\x7fELF\x02\x01\x01"
_RELOCATABLE, _X86_64 = 1, 62
_PROGBITS, _SYMTAB, _RELA, _NOBITS, _REL, _UNWIND = 1, 2, 4, 8, 9, 0x70000001
_WRITE, _ALLOC, _TLS = 1, 2, 0x400
_UNDEFINED, _RESERVED = 0, 0xFF00

_DISTANCE = {2, 4}
"""R_X86_64_PC32 and PLT32: the distance to a symbol, in 32 bits."""

_THROUGH_TABLE = {9, 41, 42}
"""R_X86_64_GOTPCREL, GOTPCRELX, REX_GOTPCRELX: the distance to a word holding its address."""

_CALLS = 4


class NotLinkable(Exception):
    """An object holds something this linker does not know."""


@dataclass(frozen=True)
class Image:
    """Code that runs at any address.

    code     the bytes, to be put at a multiple of 64, or of a page if some are writable
    symbols  where each function begins
    imports  (name, where the image wants its address as a word), for what it uses from outside
    data     how many bytes at the start stay writable, whole pages
    """

    code: bytes
    symbols: Mapping[str, int]
    imports: tuple[tuple[str, int], ...] = ()
    data: int = 0


# ---- linking -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


def link(data: bytes) -> Image:
    """The image of an object file; raises NotLinkable for what it does not understand."""
    try:
        return _Linker(data).image()
    except (struct.error, IndexError, ValueError, KeyError) as error:
        raise NotLinkable(f"malformed object: {error!r}") from None


class _Linker:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.sections = self._read_sections()
        self.symbols = self._read_symbols()
        self.at: dict[int, int] = {}  # section -> its offset in the image
        self.code = bytearray()
        self.slots: dict[str, int] = {}  # name -> offset of the word with its address
        self.stubs: dict[str, int] = {}  # name -> offset of a jump to it

    def image(self) -> Image:
        needed = [
            (i, s)
            for i, s in enumerate(self.sections)
            if s.flags & _ALLOC and s.size and not _is_unwinding(s)
        ]
        for number, section in needed:
            if section.flags & _WRITE:
                self._place(number, section)
        self._pad(_PAGE)
        data = len(self.code)
        for number, section in needed:
            if not section.flags & _WRITE:
                self._place(number, section)
        for section in self.sections:
            if section.kind == _RELA and section.info in self.at:
                self._relocate(section)
            elif section.kind == _REL:
                raise NotLinkable("relocations without addends")
        named = {
            name: self.at[section] + value
            for name, section, value, is_global in self.symbols
            if is_global and section in self.at
        }
        return Image(bytes(self.code), named, tuple(self.slots.items()), data)

    def _read_sections(self) -> list[_Section]:
        ident, kind, machine, _, _, _, table, _, _, _, _, size, count, names = _HEADER.unpack_from(
            self.data
        )
        if not ident.startswith(_ELF64_LITTLE) or (kind, machine) != (_RELOCATABLE, _X86_64):
            raise NotLinkable("not an x86-64 ELF object")
        if size != _SECTION.size:
            raise NotLinkable("unknown section headers")
        rows = [_SECTION.unpack_from(self.data, table + i * size) for i in range(count)]
        strings = rows[names][4]
        return [
            _Section(self._string(strings + r[0]), r[1], r[2], r[4], r[5], r[6], r[7], r[8])
            for r in rows
        ]

    def _string(self, at: int) -> str:
        return self.data[at : self.data.index(b"\0", at)].decode()

    def _read_symbols(self) -> list[tuple[str, int, int, bool]]:
        """(name, section, offset in it, whether other modules see it) of each symbol."""
        found: list[tuple[str, int, int, bool]] = []
        for table in self.sections:
            if table.kind != _SYMTAB:
                continue
            strings = self.sections[table.link].offset
            for at in range(table.offset, table.offset + table.size, _SYMBOL.size):
                name, info, _, section, value, _ = _SYMBOL.unpack_from(self.data, at)
                found.append((self._string(strings + name), section, value, info >> 4 != 0))
        return found

    def _place(self, number: int, section: _Section) -> None:
        if section.flags & _TLS or section.kind not in (_PROGBITS, _NOBITS):
            raise NotLinkable(f"section {section.name} is neither code nor data")
        if section.align > _ALIGN:
            raise NotLinkable(f"section {section.name} is aligned to {section.align} bytes")
        self._pad(max(section.align, 1))
        self.at[number] = len(self.code)
        end = section.offset + section.size
        if section.kind == _PROGBITS and end > len(self.data):
            raise NotLinkable("a section beyond the end")
        self.code += (
            bytes(section.size) if section.kind == _NOBITS else self.data[section.offset : end]
        )

    def _pad(self, align: int) -> None:
        self.code += bytes(-len(self.code) % align)

    def _relocate(self, table: _Section) -> None:
        place = self.at[table.info]
        limit = place + self.sections[table.info].size
        for at in range(table.offset, table.offset + table.size, _RELOCATION.size):
            offset, info, addend = _RELOCATION.unpack_from(self.data, at)
            kind, symbol = info & 0xFFFFFFFF, self.symbols[info >> 32]
            where = place + offset
            if where + 4 > limit:
                raise NotLinkable("a relocation outside its section")
            distance = self._target(kind, symbol) + addend - where
            struct.pack_into("<i", self.code, where, distance)

    def _target(self, kind: int, symbol: tuple[str, int, int, bool]) -> int:
        """Where in the image a relocation of this kind leads."""
        name, section, value, _ = symbol
        if kind in _DISTANCE and section in self.at:
            return self.at[section] + value
        if section != _UNDEFINED or not name:
            raise NotLinkable(f"relocation {kind} to {name or 'a section left out'}")
        if kind == _CALLS:
            return self._stub(name)
        if kind in _THROUGH_TABLE:
            return self._slot(name)
        raise NotLinkable(f"relocation {kind} to {name}")

    def _slot(self, name: str) -> int:
        if name not in self.slots:
            self._pad(8)
            self.slots[name] = len(self.code)
            self.code += bytes(8)
        return self.slots[name]

    def _stub(self, name: str) -> int:
        if name not in self.stubs:
            slot = self._slot(name)
            self._pad(8)
            self.stubs[name] = len(self.code)
            # jmp *slot(%rip)
            self.code += b"\xff\x25" + struct.pack("<i", slot - len(self.code) - 6)
        return self.stubs[name]


def _is_unwinding(section: _Section) -> bool:
    """Tables for exceptions, which no code of ours throws."""
    return section.kind == _UNWIND or section.name == ".eh_frame"


def joined(images: Sequence[Image]) -> tuple[Image, list[int]]:
    """One image of several, without their symbols, and where each begins.

    Raises LookupError for several with writable data.
    """
    if len(images) == 1:
        return images[0], [0]
    if any(image.data for image in images):
        raise LookupError("writable data in one of several images")
    code = bytearray()
    starts: list[int] = []
    imports: list[tuple[str, int]] = []
    for image in images:
        code += bytes(-len(code) % _ALIGN)
        starts.append(len(code))
        imports += [(name, len(code) + slot) for name, slot in image.imports]
        code += image.code
    return Image(bytes(code), {}, tuple(imports)), starts


# ---- mapping -----------------------------------------------------------------------------------


class MappedImage:
    """An image in executable memory, which is given back when this object goes.

    What is executable is not writable, from before its first use on.
    """

    def __init__(self, image: Image) -> None:
        """Raises OSError where the system refuses such memory, LookupError for a missing import."""
        import mmap

        code = bytearray(image.code)
        for name, slot in image.imports:
            struct.pack_into("<Q", code, slot, process_address(name))
        size = max(len(code) + -len(code) % _PAGE, _PAGE)
        writable = mmap.PROT_READ | mmap.PROT_WRITE
        self._memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, writable)
        self._memory[: len(code)] = bytes(code)
        self._held = ctypes.c_char.from_buffer(self._memory)
        self.address = ctypes.addressof(self._held)
        executable = mmap.PROT_READ | mmap.PROT_EXEC
        if _protect(self.address + image.data, size - image.data, executable):
            raise OSError("memory cannot be made executable")


def process_address(name: str) -> int:
    """The address of a C function of this process; raises LookupError if there is none."""
    process = _process()
    function = getattr(process, name, None) if process is not None else None
    if function is None:
        raise LookupError(name)
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@cache
def _process() -> ctypes.CDLL | None:
    """Everything this process has loaded; None on Windows, which has no such handle."""
    return ctypes.CDLL(None) if sys.platform != "win32" else None


def _protect(address: int, size: int, protection: int) -> int:
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return int(protect(address, size, protection))
