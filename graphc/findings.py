"""What was looked for on a machine, and what was found.  Imports: nothing of graphc."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass

OK, MISSING, WRONG = "ok", "missing", "wrong"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    state   ok, missing, or wrong: it is there but cannot be used
    found   what it is, or why not
    advice  how to get it, if it is not as it should be
    """

    name: str
    state: str
    found: str
    advice: str = ""


def version_of(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except Exception:  # damaged metadata is as good as none
        return None


def version_text(version: Sequence[int]) -> str:
    """'22.1.0' for (22, 1, 0)."""
    return ".".join(map(str, version))
