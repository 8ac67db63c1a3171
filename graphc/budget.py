"""Memory budgets: how many bytes of scratch memory a run may use, judged at which sizes.

Imports: dims, errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from graphc.dims import Sizes
from graphc.errors import GraphTypeError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {f"{unit}I": 1 << 10 * k for k, unit in enumerate(UNITS) if unit}


@dataclass(frozen=True)
class Budget:
    """At most `bytes` of scratch memory for a run with these `sizes` of unknown dimensions."""

    bytes: int
    sizes: Sizes = field(default_factory=dict)


def parse_budget(given: Any) -> int | None:
    """A budget in bytes: None, a positive int, or text such as '512MB' or '1.5GiB'.

    Raises GraphTypeError for anything else.
    """
    if given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    if isinstance(given, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?I?)B?\s*", given.upper())
        factor = {**UNITS, **BINARY_UNITS}.get(found[2]) if found else None
        if found and factor and float(found[1]) * factor >= 1:
            return int(float(found[1]) * factor)
    raise GraphTypeError(
        f"memory_budget is a positive number of bytes or text such as '512MB' or '1.5GiB', "
        f"not {given!r:.60}"
    )
