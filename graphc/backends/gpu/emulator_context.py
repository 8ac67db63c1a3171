"""The words that a launch in the emulator and the generated code share.

`CONTEXT` are 64-bit words, one launch's own; `PARAMETERS` of them per parameter of the kernel
follow in a table of their own.  Imports: nothing of graphc.
"""

from __future__ import annotations

import re

CONTEXT = (
    "fault",  # 0, or which fault was the first
    "site",  # the number of the line it happened at
    "cta",
    "thread",
    "value",  # an address, or what else there is to say
    "blocks",
    "threads",
    "reversed",  # whether the last CTA and the last thread of each begin
    "budget",  # how many iterations of loops a thread may make
    "parameters",  # the table
    "functions",  # the addresses of `RUNTIME` and of matrix products
    "rows",  # what accesses may touch, `ROW` each
    "nowhere",  # where an access that must not be made is made instead
    "running",  # the thread that runs
    "running_cta",
    "me",  # the stamp of what it does
    "waits",  # what it waits for
    "slot",  # where it leaves what it hands to its warp
    "met",  # what the lanes of its warp have left at the last meeting
    "stamp",  # counts barriers and meetings: see `emulator_shadow`
    "first",  # the stamp this CTA began with
    "shared",  # the shared memory of the CTA that runs
    "shared_bytes",
    "shared_shadow",  # who touched it
    "shared_granule",  # the logarithm of the bytes that share a shadow
    "thread_function",  # begins a thread
    "pool",  # a frame per thread of a CTA
    "stride",  # the bytes of a frame
    "needed",  # the bytes of a frame that are needed
    "states",  # what each thread waits for
    "exchange",  # the slots of all threads, twice
    "copying",  # whether threads copy asynchronously
    "copies",  # what each has under way from global to shared memory
)

ROW = ("start", "limit", "low_bits", "granules", "shadow", "shadow_start", "granule", "space")
"""What accesses of one kind may touch: from the address `start`, offsets below `limit`, none of
`low_bits` set.  `granules` is how many shadows such an access has, 0 if that is not recorded; the
shadow of `shadow_start` is at `shadow`, `granule` is the logarithm of a granule's bytes, and
`space` is 1 for shared memory."""

RUNTIME = (
    "record",
    "read",
    "write",
    "touch.global",
    "copy",
    "commit",
    "deliver",
    "ballot",
    "shuffle.down",
    "shuffle.up",
    "shuffle.bfly",
    "shuffle.idx",
    "source.down",
    "source.up",
    "source.bfly",
    "source.idx",
)
"""Functions that kernels call, in the order of their addresses; matrix products follow."""

PARAMETER = ("value", "bytes", "shadow")

FAULTS = (
    "none",
    "access",
    "budget",
    "race",
    "unwritten",
    "undelivered",
    "barrier",
    "warp",
    "mask",
    "copies",
)
"""Kinds of faults, by number."""


def context_word(name: str) -> int:
    """Which word of the context has this name."""
    return CONTEXT.index(name)


def fault_number(name: str) -> int:
    return FAULTS.index(name)


def word_at(name: str) -> str:
    """Where a word of the context `%emu` is."""
    return f"getelementptr i64, ptr %emu, i64 {context_word(name)}"


def load_word(target: str, word: str, kind: str = "i64") -> list[str]:
    """Lines that read a word of the context `%emu`."""
    return [
        f"{target}.at = {word_at(word)}",
        f"{target} = load {kind}, ptr {target}.at, align 8",
    ]


def expand(text: str) -> str:
    """Write out `WORD name`, a word of the context, `PUT name, value`, and names of faults."""
    count = 0

    def word(found: re.Match[str]) -> str:
        nonlocal count
        count += 1
        name, kind, which = found.groups()
        return (
            f"  %emu.at{count} = getelementptr i64, ptr %emu, i64 {context_word(which)}\n"
            f"  {name} = load {kind}, ptr %emu.at{count}, align 8"
        )

    def put(found: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return (
            f"  %emu.at{count} = getelementptr i64, ptr %emu, i64 {context_word(found.group(1))}\n"
            f"  store i64 {found.group(2)}, ptr %emu.at{count}, align 8"
        )

    text = re.sub(r"  (%[\w.]+) = WORD (i64|ptr) (\w+)", word, text)
    text = re.sub(r"  PUT (\w+), (\S+)", put, text)
    return re.sub(r"FAULT_(\w+)", lambda found: str(fault_number(found.group(1))), text)
