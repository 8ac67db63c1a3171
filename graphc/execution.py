"""Compiled programs: from a program and the shapes fed to code that can run.

What is compiled depends only on ranks and on the outcome of each unknown broadcast; a new size
compiles nothing.  Sessions and functions both run through an `Entry`.
Imports: feeds, graph, program, passes, backends, nan_guard, statistics.
"""

from __future__ import annotations

import functools
import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc import feeds, nan_guard
from graphc.backends.base import Executable
from graphc.backends.reference import ReferenceExecutable
from graphc.budget import Budget, parse_budget
from graphc.builder import entered_factories
from graphc.compilations import ProgramLog, Timer, meeting_reason, rank_reason
from graphc.dims import Sizes
from graphc.errors import FeedError, GraphTypeError, NonFiniteError, ShapeError
from graphc.forks import new_lock
from graphc.host_calls import compile_parts, has_host_calls
from graphc.late_program import LateProgram
from graphc.node import Node, Tensor
from graphc.passes.specialise import (
    Meeting,
    bind_ranks,
    broadcast_outcomes,
    node_broadcasts,
    specialise,
    substitution,
    unknown_broadcasts,
)
from graphc.program import Program
from graphc.statistics import count
from graphc.trace import Trace

if TYPE_CHECKING:
    from graphc.backends.llvm.entry import NativeEntry
    from graphc.plan_cache import Keyed

Array = np.ndarray[Any, Any]

BOUND_SHAPES = 1024
"""How many sets of fed shapes an entry remembers."""


@dataclass(frozen=True)
class RunOptions:
    """How one run goes.

    threads    how many threads it may use (None: the session's)
    nan_guard  fail with NonFiniteError, changing nothing, where a fetch or an update is not finite
    trace      a gx.Trace that collects the time of each step; the run then uses one thread
    timeout    seconds after which it fails with RunTimeoutError, changing nothing; a run that has
               begun to write variables by then goes on to its end.  Compiling does not count
    memory_budget  scratch memory it may use, in bytes or as '512MB' (None: the session's)
    debug      first judge every stage of compiling, as `gx.check` does; MiscompiledError if one is
               wrong.  Slow
    on_device  leave the results on the GPU: they are gx.DeviceArrays
    """

    threads: int | None = None
    nan_guard: bool = False
    trace: Trace | None = None
    memory_budget: int | str | None = None
    debug: bool = False
    timeout: float | None = None
    on_device: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "memory_budget", parse_budget(self.memory_budget))
        if self.threads is not None and (not isinstance(self.threads, int) or self.threads < 1):
            raise GraphTypeError(f"threads must be a positive int, not {self.threads!r}")
        seconds = self.timeout
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
            raise GraphTypeError(f"timeout must be a positive number of seconds, not {seconds!r}")

    def deadline(self) -> float | None:
        """What `time.monotonic` says when the time of a run that begins now is over."""
        return None if self.timeout is None else time.monotonic() + self.timeout


@dataclass(frozen=True)
class Compiled:
    """Code for one program, and which variables (by node id) it takes, reads and writes."""

    executable: Executable
    program: Program | None  # None: the plan came from the cache on disk
    variables: tuple[Tensor, ...]
    ids: tuple[int, ...]
    read: frozenset[int]
    written: frozenset[int]
    guarded: Program | None = None  # the program before the NaN guard, if there is one

    def on_device(self) -> Compiled:
        """The same program, whose results stay on the GPU; GraphTypeError where that is no GPU."""
        leave = getattr(self.executable, "on_device", None)
        if leave is None:
            raise GraphTypeError(
                "on_device needs a program that a GPU runs, without Python functions in it"
            )
        return replace(self, executable=leave())

    def scratch_bytes(self, sizes: Sizes) -> int:
        """Memory for intermediate values, those that stay between runs included."""
        kept = sum(value.bytes for value in self.executable.kept)
        return self.executable.arena_bytes(sizes) + kept

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
        """Run once; see backends.base.Executable."""
        if self.guarded is None:
            return self.executable.run(inputs, state, sizes, threads, trace, deadline, kept)
        try:
            return self.executable.run(inputs, state, sizes, threads, trace, deadline, kept)
        except NonFiniteError as error:
            if self.executable.residence is not None:
                self.executable.residence.bring_home(state)
            inputs = [np.asarray(array) for array in inputs]
            values = dict(zip(self.ids, state, strict=True))
            raise nan_guard.located(error, self.guarded, inputs, values, sizes) from None


@dataclass
class _Ranked:
    """A program whose ranks are known."""

    source: Program | LateProgram
    keyed: Keyed | None  # what is kept of it on disk
    meetings: list[Meeting]  # of sizes that broadcast when they are known
    constraints: list[Any]
    reason: str | None  # why these ranks were not the ones before
    by_outcome: dict[tuple[Any, ...], list[Compiled]] = field(default_factory=dict)

    @property
    def program(self) -> Program:
        return resolved(self.source)


class Entry:
    """Everything compiled for one program on one device.

    With a memory budget, in bytes, that may be several plans of which one makes more values again
    instead of keeping them than another; sizes take the first whose memory is within the budget.
    """

    def __init__(
        self,
        program: Program | LateProgram,
        device: str,
        guard: bool = False,
        budget: int | None = None,
        fast_math: bool = False,
        precision: str = "f32",
    ) -> None:
        if budget is not None and device == "reference":
            raise GraphTypeError("memory_budget needs a compiled device, not 'reference'")
        self.source = program
        self.device = device
        self.guard = guard
        self.budget = budget
        self.fast_math = fast_math
        self.precision = precision
        self._by_rank: dict[tuple[int, ...], _Ranked] = {}
        self._bound: dict[tuple[tuple[int, ...], ...], tuple[Compiled, Sizes]] = {}
        self._lock = new_lock()
        self.log: ProgramLog | None = None
        count("programs")

    @property
    def program(self) -> Program:
        """The program, made now if that has not been needed before."""
        return resolved(self.source)

    @property
    def writes(self) -> bool:
        """Whether it has updates."""
        source = self.source
        return source.writes if isinstance(source, LateProgram) else bool(source.updates)

    def bind(self, arrays: Sequence[Array]) -> tuple[Compiled, Sizes]:
        """The code and the sizes for these inputs; raises FeedError or ShapeError."""
        shapes = tuple([a.shape for a in arrays])
        found = self._bound.get(shapes)
        if found is None:
            found = self._bind_anew(shapes)
        return found

    def bind_planned(self, arrays: Sequence[Array]) -> tuple[Compiled, Sizes]:
        """As `bind`, with the kernels of the plan, which the cache on disk does not keep."""
        compiled, sizes = self.bind(arrays)
        if compiled.program is not None:
            return compiled, sizes
        ranked = self._by_rank[tuple(a.ndim for a in arrays)]
        outcome = _outcome(ranked, sizes)
        known = substitution(ranked.meetings, outcome)
        planned = self._compile(specialise(ranked.program, known), sizes)
        with self._lock:
            ranked.by_outcome[outcome] = [planned]
            self._bound = {
                shapes: (planned if made is compiled else made, known_sizes)
                for shapes, (made, known_sizes) in self._bound.items()
            }
        return planned, sizes

    def _bind_anew(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[Compiled, Sizes]:
        """Bind shapes not known yet, without the cyclic garbage collector.

        Compiling makes hundreds of thousands of objects that all stay; looking them over again and
        again costs a fifth of the time.  What has been entered is left without any call that a
        signal handler could keep from being made.
        """
        factories = entered_factories()
        outer = len(factories)
        me = threading.get_ident()
        collects = gc.isenabled()
        try:
            if collects:
                _pausing.add(me)
            gc.disable()
            with self._lock:
                found = self._bind_shapes(shapes)
                self._bound[shapes] = found
                if len(self._bound) > BOUND_SHAPES:
                    del self._bound[next(iter(self._bound))]
            return found
        finally:
            del factories[outer:]
            if collects:
                gc.enable()
                _pausing.discard(me)

    def _bind_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[Compiled, Sizes]:
        ranks = tuple(map(len, shapes))
        ranked = self._by_rank.get(ranks)
        if ranked is None:
            reason = rank_reason(self.source.inputs, ranks, self._by_rank)
            ranked = self._build_ranked(shapes, reason)
            self._by_rank[ranks] = ranked
        sizes = feeds.bind_sizes(ranked.source.inputs, shapes)
        feeds.check_constraints(ranked.constraints, sizes)
        outcome = _outcome(ranked, sizes)
        known = ranked.by_outcome.get(outcome, [])
        for compiled in known:
            if self.budget is None or compiled.scratch_bytes(sizes) <= self.budget:
                count("plan_hits")
                return compiled, sizes
        timer = Timer()
        compiled = self._new_plan(ranked, outcome, sizes)
        self._noted(timer, ranked, outcome)
        ranked.by_outcome[outcome] = [*known, compiled]
        return compiled, sizes

    def _new_plan(self, ranked: _Ranked, outcome: tuple[Any, ...], sizes: Sizes) -> Compiled:
        """Code for an outcome: out of the cache on disk, or compiled and put there."""
        known = substitution(ranked.meetings, outcome)
        kept = ranked.keyed.plan(outcome, self._settings) if ranked.keyed is not None else None
        if kept is not None:
            count("plans_loaded")
            ids = tuple(v.node.id for v in kept.variables)
            guarded = specialise(ranked.program, known) if self.guard else None
            return Compiled(
                kept.executable, None, kept.variables, ids, kept.read, kept.written, guarded
            )
        compiled = self._compile(specialise(ranked.program, known), sizes)
        if ranked.keyed is not None and compiled.program is not None:
            ranked.keyed.keep_plan(outcome, self._settings, compiled.executable, compiled.program)
        return compiled

    def _noted(self, timer: Timer, ranked: _Ranked, outcome: tuple[Any, ...]) -> None:
        """Record that a plan was made."""
        if self.log is not None:
            reason = ranked.reason
            if outcome not in ranked.by_outcome and ranked.by_outcome:
                reason = meeting_reason(ranked.meetings, outcome)
            elif ranked.by_outcome.get(outcome):
                reason = "these sizes do not fit the memory budget otherwise"
            self.log.note(timer, reason)

    def _build_ranked(
        self, shapes: tuple[tuple[int, ...], ...], reason: str | None = None
    ) -> _Ranked:
        source = self.source
        for t, shape in zip(source.inputs, shapes, strict=True):
            if t.type.shape is not None and len(t.type.shape) != len(shape):
                raise FeedError(f"{feeds.label(t)} was fed an array of shape {shape}")
        if any(t.type.shape is None for t in source.inputs):
            source = bind_ranks(self.program, tuple(map(len, shapes)))
        kept = self._keyed(source)
        facts = kept.facts() if kept is not None else None
        if facts is None:
            program = resolved(source)
            facts = unknown_broadcasts(program), program.constraints()
            if kept is not None:
                kept.keep_facts(facts)
        return _Ranked(source, kept, *facts, reason)

    @property
    def _settings(self) -> tuple[bool, bool]:
        """What makes another plan of the same program: the NaN guard, fast mathematics."""
        return self.guard, self.fast_math

    def _keyed(self, source: Program | LateProgram) -> Keyed | None:
        """What is kept on disk of a program for this device."""
        if self.device != "cpu" or self.budget is not None:
            return None
        from graphc.plan_cache import keyed  # only now: a reference device has no use for it

        found = keyed(source)
        if found is None and isinstance(source, LateProgram):
            found = keyed(source.resolved)
        return found

    def _compiler(self) -> Callable[..., tuple[Executable, Program]]:
        known = COMPILERS.get(self.device)
        if known is not None:
            return known
        return functools.partial(_gpu, device=self.device, precision=self.precision)

    def _compile(self, program: Program, sizes: Sizes) -> Compiled:
        guarded = program if self.guard else None
        if self.guard:
            program = nan_guard.guard(program)
        compiler = functools.partial(self._compiler(), fast_math=self.fast_math)
        if self.budget is not None:  # what is compiled depends on it, so a cache's key must too
            compiler = functools.partial(compiler, budget=Budget(self.budget, sizes))
        if has_host_calls(program) and self.device != "reference":
            executable, compiled = compile_parts(program, functools.partial(compiler, keep=False))
        else:
            executable, compiled = compiler(program)
        count("plans")
        count("bytes_planned", executable.arena_bytes(sizes))
        variables = compiled.variables()
        return Compiled(
            executable,
            compiled,
            variables,
            tuple(v.node.id for v in variables),
            frozenset(n.id for n in compiled.order() if n.op.name == "variable"),
            frozenset(v.node.id for v, _ in compiled.updates),
            guarded,
        )


def resolved(source: Program | LateProgram) -> Program:
    """The program, which may be made now."""
    return source.resolved if isinstance(source, LateProgram) else source


def _outcome(ranked: _Ranked, sizes: Sizes) -> tuple[Any, ...]:
    try:
        return broadcast_outcomes(ranked.meetings, sizes)
    except ShapeError as error:
        node = _broadcasting(ranked, sizes)
        if node is None:
            raise
        where = f"\n  at {node.loc}   {node.loc.source}"
        raise ShapeError(f"{node.op.name}: {error}{where}") from None


def _broadcasting(ranked: _Ranked, sizes: Sizes) -> Node | None:
    """The first node whose operands do not broadcast at these sizes."""
    for node in ranked.program.order():
        meetings = node_broadcasts(node)
        try:
            broadcast_outcomes(meetings, sizes)
        except ShapeError:
            return node
    return None


_pausing: set[int] = set()
"""Threads that will switch the collector on again."""


def _collect_in_child() -> None:
    """The thread that would switch the collector on again may not be in this process."""
    if _pausing - {threading.get_ident()}:
        gc.enable()
        _pausing.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_collect_in_child)


def native_entry(
    entry: Entry,
    slow: Callable[..., Any],
    inputs: int,
    outputs: int,
    form: str,
    order: Sequence[int] | None = None,
) -> NativeEntry | None:
    """An entry that takes over from `slow` where it can; None where it never could."""
    if entry.device != "cpu":
        return None
    from graphc.backends.llvm.entry import NativeEntry  # only now: it loads LLVM
    from graphc.backends.llvm.entry_function import native_function

    if native_function() is None:
        return None
    return NativeEntry(slow, inputs, outputs, form, not entry.writes, order)


# ---- devices -----------------------------------------------------------------------------------


def _cpu(
    program: Program, budget: Budget | None = None, keep: bool = True, fast_math: bool = False
) -> tuple[Executable, Program]:
    from graphc.backends.llvm.entry_function import begin_native_function

    begin_native_function()  # now: no later call then waits for it, and LLVM loads meanwhile

    from graphc.compiler import compile_cpu  # the passes take a while to import

    return compile_cpu(program, budget, keep, fast_math)


def _reference(
    program: Program, budget: Budget | None = None, keep: bool = True, fast_math: bool = False
) -> tuple[Executable, Program]:
    return ReferenceExecutable(program), program


def _gpu(
    program: Program,
    budget: Budget | None = None,
    keep: bool = True,
    fast_math: bool = False,
    *,
    device: str,
    precision: str,
) -> tuple[Executable, Program]:
    from graphc.compiler import compile_gpu

    return compile_gpu(program, device, precision, budget, fast_math)


COMPILERS: dict[str, Callable[..., tuple[Executable, Program]]] = {
    "reference": _reference,
    "cpu": _cpu,
}
"""device -> (program, budget=None, keep=True, fast_math=False -> executable, the program it runs).

keep       whether what it makes of variables alone may stay between runs
fast_math  whether it may compute as if numbers were real
GPUs are not among them: there is any number of those.
"""
