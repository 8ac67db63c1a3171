"""What a session needs of a backend.  Imports: plan, dims, errors, trace."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from graphc.dims import Sizes
from graphc.errors import RunError, RunTimeoutError
from graphc.plan import Kept, Plan
from graphc.trace import Trace

Array = np.ndarray[Any, Any]


class Residence(Protocol):
    """Where variables stay between runs, other than in the arrays that stand for them.

    Whoever asks has a turn as a reader, or to `forget` as a writer, of the session's variables.
    """

    @property
    def losses(self) -> int:
        """How often values have been lost."""
        ...

    def bring_home(self, arrays: Sequence[Array]) -> None:
        """Make these arrays hold their variables' values."""
        ...

    def forget(self, arrays: Sequence[Array]) -> None:
        """What is known of these arrays is not their value any more: they have been written."""
        ...

    def lost(self, array: Array) -> str:
        """Why nobody has the value of this variable any more, or ''."""
        ...

    def release(self) -> None:
        """Free what is of no use until the next run, and what was of arrays that are gone."""
        ...


class Executable(Protocol):
    """A compiled program, safe to run from many threads at once.

    kept       what it needs in a run and does not make there: see KeepingExecutable
    residence  where it leaves the variables that it writes; None: in their arrays
    """

    @property
    def kept(self) -> tuple[Kept, ...]: ...

    @property
    def residence(self) -> Residence | None: ...

    def run(
        self,
        inputs: Sequence[Array],
        state: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None = None,
        deadline: float | None = None,
        kept: Sequence[Array] = (),
    ) -> list[Array]:
        """Run once and return fresh output arrays.

        `inputs` are C-contiguous arrays of the plan's dtypes and bound shapes, in plan order, and
        are only read.  `state` are the variables' current arrays, updated in place at commit, and
        `kept` the values that the executable keeps, of the state as it is.
        With a `trace` the steps run one by one and are timed.
        With a `deadline`, of `time.monotonic`, the run fails with RunTimeoutError unless it has
        ended by then, has begun to write `state`, or is too short to look.
        Raises the RunError of the first failed check, in which case `state` is untouched.
        """
        ...

    def arena_bytes(self, sizes: Sizes) -> int:
        """Bytes of scratch memory a run with these sizes uses (0 where there is no arena)."""
        ...


@dataclass(frozen=True)
class Made:
    """Which value it is: how it is made, and of which variables, by number in the plan."""

    name: bytes
    variables: tuple[int, ...]


class KeepingExecutable(Executable, Protocol):
    """An executable with values that stay as long as the variables they follow from."""

    def made(self) -> list[Made]:
        """What each value is: equal for equal values of whatever executables."""
        ...

    def make_kept(
        self,
        wanted: Collection[int],
        kept: Sequence[Array],
        state: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None = None,
        deadline: float | None = None,
    ) -> None:
        """Make some of the values, by number, into their arrays; for a run with these sizes.

        May end like a run: with RunTimeoutError, or what a signal handler raises.  The arrays
        hold anything then.
        """
        ...


def fault_error(plan: Plan, faults: Array) -> RunError:
    """The error of the earliest step that recorded a fault; `faults` has a row per record."""
    for step in plan.steps:
        for ref in step.args:
            if ref.kind == "fault" and faults[ref.index, 0]:
                _, number, position, value = (int(x) for x in faults[ref.index])
                return plan.checks[ref.index][number].make_error(position, value)
    raise AssertionError("a fault was reported that no step recorded")


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
