"""Which processor this is, asked of the processor itself, so that LLVM need not be loaded to know.

What CPUID and XGETBV say about features is what LLVM goes by; equal answers mean that code made by
one process runs in the other.  Imports: image.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from functools import cache

from graphc.backends.llvm.image import Image, MappedImage

_CPUID = bytes.fromhex(  # cpuid(leaf, subleaf, out), by the System V calling convention
    "53"  # push rbx
    "89f8"  # mov eax, edi
    "89f1"  # mov ecx, esi
    "4989d0"  # mov r8, rdx
    "0fa2"  # cpuid
    "418900"  # mov [r8], eax
    "41895804"  # mov [r8 + 4], ebx
    "41894808"  # mov [r8 + 8], ecx
    "4189500c"  # mov [r8 + 12], edx
    "5b"  # pop rbx
    "c3"  # ret
)
_XGETBV = bytes.fromhex(  # xgetbv(): which registers the system saves
    "31c9"  # xor ecx, ecx
    "0f01d0"  # xgetbv
    "48c1e220"  # shl rdx, 32
    "4809d0"  # or rax, rdx
    "c3"  # ret
)

_HAS_XGETBV = 1 << 27
_EAX, _EBX, _ECX, _EDX = range(4)

_FEATURES = (
    (0, 0, (_EBX, _ECX, _EDX)),  # the maker
    (1, 0, (_EAX, _ECX, _EDX)),  # family, model, stepping; EBX names the core this runs on
    (7, 0, (_EBX, _ECX, _EDX)),
    (7, 1, (_EAX, _EBX, _ECX, _EDX)),
    (13, 1, (_EAX,)),
    (20, 0, (_EBX,)),
    (25, 0, (_EBX,)),
    (30, 1, (_EAX,)),
    (36, 0, (_EBX,)),
    (0x80000001, 0, (_ECX, _EDX)),
    (0x80000008, 0, (_EBX,)),
)
"""(leaf, subleaf, the registers of the answer that tell of features)."""


@cache
def processor() -> bytes | None:
    """Everything that tells processors of different features apart; None if it cannot be asked."""
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform == "win32":
        return None
    if struct.calcsize("P") != 8:
        return None
    try:
        code = MappedImage(Image(_CPUID + _XGETBV, {}))
    except (OSError, LookupError, ImportError):
        return None
    word = ctypes.c_uint32
    ask = ctypes.CFUNCTYPE(None, word, word, ctypes.c_void_p)(code.address)
    answer = (word * 4)()

    def leaf(number: int, inner: int) -> list[int]:
        ask(number, inner, ctypes.addressof(answer))
        return list(answer)

    found: list[int] = []
    for number, inner, registers in _FEATURES:
        known = number <= leaf(number & 0x80000000, 0)[_EAX]
        answers = leaf(number, inner) if known else [0] * 4
        found += [answers[r] for r in registers]
    saved = 0
    if leaf(1, 0)[_ECX] & _HAS_XGETBV:
        saved = ctypes.CFUNCTYPE(ctypes.c_uint64)(code.address + len(_CPUID))()
    return struct.pack(f"<{len(found)}IQ", *found, saved)
