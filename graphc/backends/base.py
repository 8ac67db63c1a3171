"""What a session needs of a backend.  Imports: plan, dims, errors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from graphc.dims import Sizes
from graphc.errors import RunTimeoutError
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
        deadline: float | None = None,
    ) -> list[Array]:
        """Run once and return fresh output arrays.

        `inputs` are C-contiguous arrays of the plan's dtypes and bound shapes, in plan order, and
        are only read.  `state` are the variables' current arrays, updated in place at commit.
        With a `trace` the steps run one by one and are timed.
        With a `deadline`, of `time.monotonic`, the run fails with RunTimeoutError unless it has
        ended by then, has begun to write `state`, or is too short to look.
        Raises the RunError of the first failed check, in which case `state` is untouched.
        """
        ...

    def arena_bytes(self, sizes: Sizes) -> int:
        """Bytes of scratch memory a run with these sizes uses (0 where there is no arena)."""
        ...


def require_time(deadline: float | None) -> None:
    """Raise RunTimeoutError if the deadline has passed."""
    if deadline is not None and time.monotonic() > deadline:
        raise timed_out()


def timed_out() -> RunTimeoutError:
    """The error of a run that was ended by its deadline."""
    return RunTimeoutError("the run took longer than its timeout: it changed nothing")


def mark_committed(error: BaseException) -> None:
    """Note that the run had ended before the error, which a signal handler raised, came."""
    error._graphc_committed = True  # type: ignore[attr-defined]


def has_committed(error: BaseException) -> bool:
    """Whether the run that raised this has updated the state all the same."""
    return getattr(error, "_graphc_committed", False)
