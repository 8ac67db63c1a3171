"""Every environment flag: name, default, meaning.

A flag is read when it is used, not when graphc is imported, so a program can set it late.
Imports: errors.
"""

from __future__ import annotations

import os
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

FLAGS: tuple[Flag[int | None] | Flag[bool] | Flag[str | None], ...] = (THREADS, VERIFY, DUMP)
"""Every flag there is."""
