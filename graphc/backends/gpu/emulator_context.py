"""The words that a launch in the emulator and the generated code share.

`CONTEXT` are 64-bit words, one launch's own; `PARAMETERS` of them per parameter of the kernel
follow in a table of their own.  Imports: nothing of graphc.
"""

from __future__ import annotations

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
    "shared",  # the shared memory of the CTA that runs
    "shared_shadow",  # who touched it
    "pool",  # a frame per thread of a CTA
    "stride",  # the bytes of a frame
    "needed",  # the bytes of a frame that are needed
    "states",  # what each thread waits at
    "exchange",  # what each thread hands to its warp
    "copies",  # what each thread has under way from global to shared memory
    "epoch",  # counts the barriers of all CTAs so far
    "phase",  # counts the meetings of all warps so far
    "first_epoch",  # the epoch this CTA began with
    "current",  # the CTA that runs
)

PARAMETER = ("value", "bytes", "shadow")

FAULTS = ("none", "access", "budget", "race", "unwritten", "undelivered", "barrier", "warp", "mask")
"""Kinds of faults, by number."""


def context_word(name: str) -> int:
    """Which word of the context has this name."""
    return CONTEXT.index(name)


def fault_number(name: str) -> int:
    return FAULTS.index(name)


def load_word(target: str, word: str, kind: str = "i64") -> list[str]:
    """Lines that read a word of the context `%emu`."""
    return [
        f"{target}.at = getelementptr i64, ptr %emu, i64 {context_word(word)}",
        f"{target} = load {kind}, ptr {target}.at, align 8",
    ]


def store_word(word: str, value: str, tag: str) -> list[str]:
    """Lines that write a word of the context; `tag` makes the names unique."""
    at = f"%emu.set.{word}.{tag}"
    return [
        f"{at} = getelementptr i64, ptr %emu, i64 {context_word(word)}",
        f"store i64 {value}, ptr {at}, align 8",
    ]
