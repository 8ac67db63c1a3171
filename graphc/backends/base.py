"""What a session needs of a backend.  Imports: plan, dims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from graphc.dims import Sizes
from graphc.trace import Trace

Array = np.ndarray[Any, Any]


class Executable(Protocol):
    """A compiled program, safe to run from many threads at once."""

    def run(
        self,
        inputs: Sequence[Array],
        state: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None = None,
    ) -> list[Array]:
        """Run once and return fresh output arrays.

        `inputs` are C-contiguous arrays of the plan's dtypes and bound shapes, in plan order, and
        are only read.  `state` are the variables' current arrays, updated in place at commit.
        With a `trace` the steps run one by one and are timed.
        Raises the RunError of the first failed check, in which case `state` is untouched.
        """
        ...

    def arena_bytes(self, sizes: Sizes) -> int:
        """Bytes of scratch memory a run with these sizes uses (0 where there is no arena)."""
        ...


def mark_committed(error: BaseException) -> None:
    """Note that the run had ended before the error, which a signal handler raised, came."""
    error._graphc_committed = True  # type: ignore[attr-defined]


def has_committed(error: BaseException) -> bool:
    """Whether the run that raised this has updated the state all the same."""
    return getattr(error, "_graphc_committed", False)
