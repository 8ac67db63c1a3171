"""Every environment flag: name, default, meaning.

A flag is read when it is used, not when graphc is imported, so a program can set it late.
Imports: errors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from graphc.errors import GraphcError

T = TypeVar("T")


@dataclass(frozen=True)
class Flag(Generic[T]):
    """One environment variable.

    default  the value where the variable is unset or empty
    parse    text -> value; raises ValueError, saying what is expected
    """

    name: str
    default: T
    meaning: str
    parse: Callable[[str], T]

    @property
    def value(self) -> T:
        """The flag now; raises GraphcError if the variable's text makes no sense."""
        text = os.environ.get(self.name, "").strip()
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            raise GraphcError(f"environment variable {self.name}={text!r}: {error}") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("expected a positive whole number")
    return int(text)


def parse_bytes(text: str) -> int:
    """A number of bytes with or without a unit, `500M`; raises ValueError."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not digits.isdecimal() or unit not in _UNITS:
        raise ValueError("expected a number of bytes, such as 500M or 2G")
    return int(digits) * _UNITS[unit]


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _first_positive(text: str) -> int | None:
    """The first of several numbers; None where it makes no sense, since it is not only for us."""
    first = text.partition(",")[0].strip()
    return int(first) or None if first.isdecimal() else None


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("expected 0 or 1")
    return text == "1"


THREADS: Flag[int | None] = Flag(
    "GRAPHC_THREADS",
    None,
    "threads a run may use where neither session nor options say; unset: the cores available",
    _positive,
)

OMP_THREADS: Flag[int | None] = Flag(
    "OMP_NUM_THREADS",
    None,
    "the same where GRAPHC_THREADS is unset, as other libraries read it",
    _first_positive,
)

VERIFY: Flag[bool] = Flag(
    "GRAPHC_VERIFY",
    False,
    "1: check the program after every pass; an error names the pass",
    _switch,
)

DUMP: Flag[str | None] = Flag(
    "GRAPHC_DUMP",
    None,
    "a folder: write the text of every form of each compiled program into it",
    str,
)

CACHE: Flag[str | None] = Flag(
    "GRAPHC_CACHE",
    None,
    "the folder that keeps compiled code between processes, or off; unset: one in the user's cache",
    str,
)

CACHE_SIZE: Flag[int] = Flag(
    "GRAPHC_CACHE_SIZE",
    1 << 30,
    "bytes the cache may take, as 500M or 2G; what was used longest ago is dropped first",
    parse_bytes,
)

FLAGS: tuple[Flag[int] | Flag[int | None] | Flag[bool] | Flag[str | None], ...] = (
    THREADS,
    OMP_THREADS,
    VERIFY,
    DUMP,
    CACHE,
    CACHE_SIZE,
)
"""Every flag there is."""


# ---- where the cache is ------------------------------------------------------------------------


def default_cache_folder() -> str | None:
    """The folder for this user where GRAPHC_CACHE is unset; None for a user without a home."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
        return os.path.join(base, "graphc", "cache") if base else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        inner = ("Library", "Caches") if sys.platform == "darwin" else (".cache",)
        base = os.path.join(home, *inner)
    return os.path.join(base, "graphc")
