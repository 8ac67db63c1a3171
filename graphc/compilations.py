"""Records of what was compiled and why: what a session or a function answers when asked.

Imports: dims, node, statistics.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphc import dims
from graphc.node import Node, Tensor
from graphc.statistics import stats

RECORDS = 256
"""How many records are kept, the latest."""


@dataclass(frozen=True)
class Compilation:
    """One program made into code.

    fetches, feeds  by name
    reason          why what was compiled before did not do
    seconds         that it took, loading from the cache on disk included
    loaded          whether the whole plan came from the cache on disk
    kernels, kernel_hits  how many kernels were compiled, and how many were there already
    """

    fetches: tuple[str, ...]
    feeds: tuple[str, ...]
    reason: str
    seconds: float
    loaded: bool
    kernels: int
    kernel_hits: int

    def __str__(self) -> str:
        where = "loaded" if self.loaded else "compiled"
        return (
            f"{where} in {self.seconds:.3f} s, {self.kernels} new kernels of "
            f"{self.kernels + self.kernel_hits}: {_listed(self.fetches)} from "
            f"{_listed(self.feeds) or 'no feeds'}; {self.reason}"
        )


@dataclass
class CompileLog:
    """The latest records of one session or function."""

    records: deque[Compilation] = field(default_factory=lambda: deque(maxlen=RECORDS))

    def of(self, fetches: Sequence[Any], feeds: Sequence[Tensor], reason: str) -> ProgramLog:
        """Where compilations of one program are noted; `reason` says why there is a new one."""
        return ProgramLog(self, _names(fetches), _names(feeds), reason)


@dataclass
class ProgramLog:
    """What to say of compilations of one program."""

    log: CompileLog
    fetches: tuple[str, ...]
    feeds: tuple[str, ...]
    first: str

    def note(self, timer: Timer, reason: str | None) -> None:
        """Add a record; `reason` None: it is the program's first."""
        new, hits, loaded = timer.kernels()
        seconds = time.perf_counter() - timer.started
        made = (reason or self.first, seconds, loaded, new, hits)
        self.log.records.append(Compilation(self.fetches, self.feeds, *made))


class Timer:
    """What has been compiled since it was made; by this thread, if no other one compiles now."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._before = stats()

    def kernels(self) -> tuple[int, int, bool]:
        """Kernels compiled, kernels that were there, and whether a plan came from disk."""
        now, then = stats(), self._before
        hits = now.kernel_hits - then.kernel_hits + now.kernels_loaded - then.kernels_loaded
        return now.kernels - then.kernels, hits, now.plans_loaded > then.plans_loaded


# ---- reasons -----------------------------------------------------------------------------------


def new_program_reason(
    fetches: Sequence[Any], feeds: Sequence[Tensor], known: Iterable[tuple[Any, Sequence[Tensor]]]
) -> str:
    """Why there is a program for this pair, given the (fetches, feeds) that have one."""
    wanted = set(map(id, fetches))
    given = {id(t): t for t in feeds}
    for others, other_feeds in known:
        if set(map(id, others)) != wanted:
            continue
        before = {id(t): t for t in other_feeds}
        more = _names(t for i, t in given.items() if i not in before)
        less = _names(t for i, t in before.items() if i not in given)
        parts = [f"{_listed(more)} also fed"] * bool(more)
        parts += [f"{_listed(less)} no longer fed"] * bool(less)
        if not parts:
            return "the same fetches and feeds under another NaN guard or memory budget"
        return f"these fetches with other feeds than before: {', '.join(parts)}"
    return "first run of these fetches"


def rank_reason(
    inputs: Sequence[Tensor], ranks: Sequence[int], known: Iterable[Sequence[int]]
) -> str | None:
    """Why new ranks had to be compiled; None if they are the first."""
    before = list(known)
    if not before:
        return None
    changed = [
        f"{t.node.name!r} has rank {rank}, and had {' or '.join(map(str, sorted(old)))}"
        for t, rank, old in zip(inputs, ranks, map(set, zip(*before, strict=True)), strict=True)
        if rank not in old
    ]
    return f"new ranks: {'; '.join(changed)}" if changed else "a new combination of ranks"


def meeting_reason(meetings: Sequence[Any], outcome: Sequence[Any]) -> str:
    """Why sizes had to be compiled for: how the unknown ones among them met."""
    said = []
    for (d, target), which in zip(meetings, outcome, strict=True):
        a, b = dims.dim_text(d), dims.dim_text(target)
        if which == "equal":
            said.append(f"{a} equals {b}")
        elif which == "one":
            said.append(f"{a} is 1 beside {b}")
        else:
            said.append(" and ".join(f"{atom.name} is {size}" for atom, size in which))
    return f"sizes that broadcast against each other met in a new way: {', '.join(said)}"


def _names(things: Iterable[Any]) -> tuple[str, ...]:
    nodes: list[Node] = [t.node if isinstance(t, Tensor) else t for t in things]
    return tuple(n.name for n in nodes)


def _listed(names: Sequence[str]) -> str:
    shown = [repr(n) for n in names[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
