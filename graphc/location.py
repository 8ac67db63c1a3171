"""The user's line: where in the user's program a node was made.

Imports: nothing of graphc.
"""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import dataclass

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
"""With the trailing separator, so that a sibling package `graphc_x` counts as the user's code."""


@dataclass(frozen=True)
class Location:
    """A file and a line; prints as `train.py:12`."""

    file: str
    line: int

    def __str__(self) -> str:
        if not self.file:
            return "?"
        return f"{os.path.basename(self.file)}:{self.line}"

    @property
    def source(self) -> str:
        """The text of the line, read only when printing; '' when the file is gone."""
        return linecache.getline(self.file, self.line).strip() if self.file else ""


UNKNOWN = Location("", 0)
_interned: dict[tuple[str, int], Location] = {}
_ours: set[str] = set()
"""Files of graphc that were met on the stack."""


def user_location() -> Location:
    """The innermost frame outside graphc: well below 1 µs, so it is always recorded."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file not in _ours:
            if not file.startswith(_HERE):
                key = (file, frame.f_lineno)
                found = _interned.get(key)
                if found is None:
                    found = _interned[key] = Location(*key)
                return found
            _ours.add(file)
        parent = frame.f_back
        if parent is None:
            break
        frame = parent
    return UNKNOWN
