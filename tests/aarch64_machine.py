"""Kernels compiled for AArch64 and run by Unicorn, a processor emulator: no such machine is needed.

LLVM's object is linked here, by the ELF for the Arm 64-bit Architecture (AArch64), ARM IHI 0056.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import llvmlite.binding as llvm
import numpy as np
from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, Uc
from unicorn.arm64_const import (
    UC_ARM64_REG_CPACR_EL1,
    UC_ARM64_REG_LR,
    UC_ARM64_REG_SP,
    UC_ARM64_REG_X0,
)

CODE, STACK, DATA = 0x100000, 0x10000000, 0x20000000
STACK_BYTES, CODE_BYTES, PAGE = 1 << 22, 1 << 22, 4096
RETURN = CODE + CODE_BYTES - 16
"""Where a kernel returns to: nothing runs there."""

_HEADER, _SECTION = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ")
_SYMBOL, _RELOCATION = struct.Struct("<IBBHQQ"), struct.Struct("<QQq")
_RELA, _SYMTAB, _ALLOC = 4, 2, 2

_PAGE_DISTANCE, _LOW_ADD, _CALLS = 275, 277, {282, 283}
_LOW_LOADS = {278: 0, 284: 1, 285: 2, 286: 3, 299: 4}
"""Relocations of loads with a 12-bit offset, and the logarithm of the bytes each loads."""


def assemble(text: str) -> bytes:
    """The object file of a module, for a processor with NEON."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(text)
    module.verify()
    machine = llvm.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine(
        cpu="neoverse-n1", features="+neon", opt=2, reloc="static", codemodel="small"
    )
    return bytes(machine.emit_object(module))


class Linked:
    """The sections of an object at their addresses from CODE on."""

    def __init__(self, data: bytes) -> None:
        header = _HEADER.unpack_from(data)
        at, size, count = header[6], header[11], header[12]
        self.sections = [_SECTION.unpack_from(data, at + i * size) for i in range(count)]
        self.data = data
        self.places: dict[int, int] = {}
        self.code = bytearray()
        for i, s in enumerate(self.sections):
            if s[2] & _ALLOC and s[5]:
                self.code += bytes(-len(self.code) % max(s[8], 1))
                self.places[i] = CODE + len(self.code)
                self.code += data[s[4] : s[4] + s[5]]
        (table,) = (s for s in self.sections if s[1] == _SYMTAB)
        self.symbols = list(_SYMBOL.iter_unpack(data[table[4] : table[4] + table[5]]))
        self.names = self.sections[table[6]]
        for s in self.sections:
            if s[1] == _RELA and s[7] in self.places:
                for offset, info, addend in _RELOCATION.iter_unpack(data[s[4] : s[4] + s[5]]):
                    place = self.places[s[7]] + offset
                    self._relocate(place, info & 0xFFFFFFFF, self._address(info >> 32) + addend)

    def _name(self, symbol: tuple[int, ...]) -> str:
        start = self.names[4] + symbol[0]
        return self.data[start : self.data.index(b"\0", start)].decode()

    def _address(self, number: int) -> int:
        symbol = self.symbols[number]
        assert symbol[3] in self.places, f"{self._name(symbol)!r} is called, and is nowhere"
        return self.places[symbol[3]] + symbol[4]

    def address(self, name: str) -> int:
        """Where a function begins."""
        numbers = [i for i, s in enumerate(self.symbols) if self._name(s) == name]
        return self._address(numbers[0])

    def _relocate(self, place: int, kind: int, target: int) -> None:
        at = place - CODE
        (word,) = struct.unpack_from("<I", self.code, at)
        if kind == _PAGE_DISTANCE:
            pages = (target >> 12) - (place >> 12)
            word |= (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
        elif kind == _LOW_ADD:
            word |= (target & 0xFFF) << 10
        elif kind in _LOW_LOADS:
            word |= (target & 0xFFF) >> _LOW_LOADS[kind] << 10
        elif kind in _CALLS:
            word |= (target - place) >> 2 & 0x3FFFFFF
        else:
            raise NotImplementedError(f"relocation {kind}")
        struct.pack_into("<I", self.code, at, word)


class Processor:
    """A kernel in an emulated processor."""

    def __init__(self, text: str, name: str = "kernel") -> None:
        linked = Linked(assemble(text))
        self.entry = linked.address(name)
        self.machine = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self.machine.mem_map(CODE, CODE_BYTES)
        self.machine.mem_map(STACK, STACK_BYTES)
        self.machine.mem_write(CODE, bytes(linked.code))
        # vector instructions are allowed
        self.machine.reg_write(UC_ARM64_REG_CPACR_EL1, 3 << 20)

    def run(
        self,
        buffers: Sequence[np.ndarray],
        sizes: Sequence[int],
        ranges: Sequence[tuple[int, int]],
    ) -> None:
        """Run ranges of blocks.  Each buffer ends where unmapped memory begins."""
        mapped: list[tuple[int, int]] = []

        def placed(data: bytes) -> int:
            pages = -(-max(len(data), 1) // PAGE) * PAGE
            start = mapped[-1][0] + mapped[-1][1] + PAGE if mapped else DATA
            self.machine.mem_map(start, pages)
            mapped.append((start, pages))
            address = start + pages - len(data)
            self.machine.mem_write(address, data)
            return address

        addresses = [placed(b.tobytes()) for b in buffers]
        args = placed(np.array(addresses, np.int64).tobytes())
        table = placed(np.array(sizes, np.int64).tobytes())
        for first, last in ranges:
            for i, value in enumerate((args, table, first, last)):
                self.machine.reg_write(UC_ARM64_REG_X0 + i, value)
            self.machine.reg_write(UC_ARM64_REG_SP, STACK + STACK_BYTES)
            self.machine.reg_write(UC_ARM64_REG_LR, RETURN)
            self.machine.emu_start(self.entry, RETURN)
        for address, b in zip(addresses, buffers, strict=True):
            b.view(np.uint8)[:] = np.frombuffer(self.machine.mem_read(address, b.nbytes), np.uint8)
        for start, pages in mapped:
            self.machine.mem_unmap(start, pages)
