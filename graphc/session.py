"""Sessions: where variables have values and graphs are run.

`run` never adds nodes to the graph.  What is compiled is kept per (fetches, feeds).
Imports: call, compilations, default_session, execution, variable_store, fetches, feeds, graph,
late_program.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc import feeds
from graphc.budget import parse_budget
from graphc.call import Call, tensors_of
from graphc.compilations import Compilation, CompileLog, new_program_reason
from graphc.default_session import (
    get_default_session,
    push_default_session,
    remove_default_session,
    settings_changed,
)
from graphc.device_names import is_gpu, require_precision
from graphc.errors import (
    FeedError,
    FeedTypeError,
    GraphTypeError,
    RunError,
    SessionClosedError,
)
from graphc.execution import COMPILERS, Entry, RunOptions
from graphc.fetches import (
    Fetch,
    Rebuild,
    feed_keys,
    flatten_fetches,
    form_of,
    items_of,
    partial_run,
    put_back,
    require_out,
    write_out,
)
from graphc.forks import new_rlock
from graphc.graph import Graph, GraphKeys, get_default_graph
from graphc.late_program import LateProgram
from graphc.native_self import NativeSelf, Table, take_over
from graphc.node import Node, Tensor
from graphc.ops.state import Variable
from graphc.placement import Placement, Placer
from graphc.threads import default_threads, join_threadpoolctl
from graphc.variable_store import VariableStore

if TYPE_CHECKING:
    from graphc.backends.llvm.entry import NativeEntry
    from graphc.backends.llvm.run_table import RunTable

__all__ = ["COMPILERS", "RunOptions", "Session", "get_default_session"]

Array = np.ndarray[Any, Any]

CALL_CACHE_SIZE = 256
"""How many (fetches, feeds) combinations a session keeps compiled."""

NATIVE_AFTER = 8
"""Runs of one combination after which a native function may take it over."""


def _no_entry() -> NativeEntry | None:
    return None


class Session(NativeSelf):
    """Runs a graph and holds the values of its variables.

    graph      the graph to run (default: the default graph now)
    threads    how many threads a run may use (default: the machine's cores)
    device     'cpu' (compiled), 'reference' (NumPy, node by node), 'gpu' or 'gpu:1' (compiled for
               an NVIDIA GPU), 'emulated-gpu' (the same, run and checked by the CPU).  By default
               each program runs where `gx.device` blocks say, else on the CPU
    nan_guard  fail every run in which a fetch or an update is not finite
    memory_budget  scratch memory one run may use, in bytes or as '512MB' (default: any).  Values
               are made again instead of kept where that is needed, which gives the same bits and
               takes more time; what cannot be done in the budget raises MemoryBudgetError
    fast_math  compute as if numbers were real, with larger errors (docs/performance.md)
    precision  'f32'; or what a GPU may round the operands of matrix products to: 'tf32', 'bf16'
    allow_soft_placement  whether what `gx.device` blocks put on a GPU that cannot be used runs on
               the CPU; else DeviceError.  `placements()` tells what ran where, and with
               log_device_placement it is printed
    Any number of Python threads may use one session.
    """

    def __init__(
        self,
        graph: Graph | None = None,
        threads: int | None = None,
        device: str | None = None,
        nan_guard: bool = False,
        memory_budget: int | str | None = None,
        fast_math: bool = False,
        precision: str = "f32",
        allow_soft_placement: bool = True,
        log_device_placement: bool = False,
    ) -> None:
        if graph is not None and not isinstance(graph, Graph):
            raise GraphTypeError(f"Session: graph must be a gx.Graph, not {graph!r}")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise GraphTypeError(f"Session: threads must be a positive int, not {threads!r}")
        require_precision(precision)
        self._placer = Placer(device, allow_soft_placement, log_device_placement)
        self.graph = graph or get_default_graph()
        self.threads = threads or default_threads()
        self.device = self._placer.device or "cpu"  # of programs that say nothing else
        self.fast_math, self.precision = bool(fast_math), precision
        self._nan_guard = bool(nan_guard)
        self._memory_budget = parse_budget(memory_budget)
        if memory_budget is not None and device == "reference":
            raise GraphTypeError("Session: memory_budget needs a compiled device, not 'reference'")
        join_threadpoolctl()
        self.variables = VariableStore(self.graph)
        self._calls: dict[Any, Call] = {}
        self._clock = itertools.count()
        self._lock = new_rlock()
        self._entered = threading.local()
        self._compilations = CompileLog()
        self._native_table = _empty_table
        self._run_table: RunTable | None = None

    @property
    def nan_guard(self) -> bool:
        """Whether every run fails in which a fetch or an update is not finite."""
        return self._nan_guard

    @nan_guard.setter
    def nan_guard(self, value: bool) -> None:
        self._nan_guard = bool(value)
        settings_changed()
        with self._lock:
            self._forget(self._calls.values())

    @property
    def memory_budget(self) -> int | None:
        """Bytes of scratch memory a run may use, or None."""
        return self._memory_budget

    # ---- running

    def run(
        self,
        fetches: Any,
        feed_dict: Mapping[Any, Any] | None = None,
        options: RunOptions | None = None,
    ) -> Any:
        """Evaluate `fetches` with the given feeds.

        fetches    a tensor, operation, name, or a nested list/tuple/dict/namedtuple of them; the
                   result has the same structure, with None for operations
        feed_dict  values by tensor (any tensor, not only placeholders) or name
        options    threads, NaN guard and memory budget of this run
        If anything fails no variable changes.  Raises FeedError, FetchError, UninitializedError,
        ShapeError, MemoryBudgetError or RunError; every message names the user's line.
        """
        fetched = tuple(map(id, items_of(fetches)))
        if not (feed_dict is None or type(feed_dict) is dict or isinstance(feed_dict, Mapping)):
            raise FeedTypeError(f"feed_dict is a dict of values by tensor, not {feed_dict!r:.60}")
        fed = tuple(map(id, feed_dict)) if feed_dict else ()
        guard = self._nan_guard if options is None else self._guarded(options)
        budget = self.memory_budget if options is None else self._budget(options)
        call = self._calls.get((fetched, fed, guard, budget))
        values = feed_dict.values() if feed_dict else ()
        rebuild = None
        if call is None:
            call, rebuild = self._new_call(fetches, feed_dict, options)
        if call.native is not None and options is None:
            call.used = next(self._clock)
            if rebuild is None:
                self._recognise(call, fetches)
            out = call.native(*values)
            if not call.straight:
                out = call.values(out)
        else:
            out = self._run_call(call, values, options)
        return put_back(fetches, out) if rebuild is None else rebuild(out)

    def make_callable(
        self, fetches: Any, feed_list: Sequence[Any] = (), options: RunOptions | None = None
    ) -> Callable[..., Any]:
        """A function of the values of `feed_list`, in order, that returns what `run` would.

        It also takes `out`, an array or, for a list or tuple of fetches, a list or tuple of them,
        to put the results in; they are the result then.  After an error `out` holds anything.
        """
        keys = list(feed_list)
        call, rebuild = self._new_call(fetches, dict.fromkeys(keys), options)
        if len(call.fed) != len(keys):
            raise FeedTypeError("make_callable: feed_list names a tensor twice")
        form = form_of(fetches) if call.straight else None
        may_write_out = not call.entry.writes
        native: Callable[[], NativeEntry | None] = _no_entry

        def results(*values: Any) -> list[Any]:
            if len(values) != len(keys):
                raise FeedTypeError(
                    f"this callable takes {len(keys)} value{'s' * (len(keys) != 1)}, "
                    f"got {len(values)}"
                )
            return self._results(call, values, options, native())

        inner: Callable[..., list[Any]] = results

        def run(*values: Any, out: Any = None) -> Any:
            if out is None:
                return rebuild(call.values(inner(*values)))
            require_out(form if may_write_out else None)
            return write_out(rebuild(call.values(inner(*values))), out)

        entry = None
        if options is None:
            entry = call.make_entry(run if form else results, form or "list")
        if entry is None:
            return run
        native = weakref.ref(entry)  # it keeps `run`, which so must not keep it
        function = entry.function()
        if form is not None:
            return function
        inner = function
        return run

    def partial(self, feed_dict: Mapping[Any, Any]) -> Callable[..., Any]:
        """`run` with some feeds given now; feeds given at a call take their place."""
        return partial_run(self.run, self.graph, feed_dict)

    def _guarded(self, options: RunOptions | None) -> bool:
        if options is None:
            return self.nan_guard
        if not isinstance(options, RunOptions):
            raise GraphTypeError(f"options is a gx.RunOptions, not {options!r:.60}")
        return self.nan_guard or options.nan_guard

    def _budget(self, options: RunOptions | None) -> int | None:
        """The memory budget of a run."""
        own = None if options is None else parse_budget(options.memory_budget)
        return self.memory_budget if own is None else own

    def _run_call(self, call: Call, values: Any, options: RunOptions | None) -> list[Any]:
        """One value per fetch."""
        if options is None:
            call.slow_runs += 1
            if call.slow_runs == NATIVE_AFTER:
                self._make_native(call)
        return call.values(self._results(call, values, options, call.native_entry))

    def _results(
        self, call: Call, values: Any, options: RunOptions | None, native: NativeEntry | None
    ) -> list[Any]:
        """One value per tensor fetched; `native` is the entry that may do the next such runs."""
        if self.variables.closed:
            raise SessionClosedError("the session is closed")
        call.used = next(self._clock)
        if options is not None:
            native = None
        made = self.run_entry(call.entry, call.arrays(values), options, native)
        return [a if a.ndim else a[()] for a in made]

    def run_entry(
        self,
        entry: Entry,
        arrays: Sequence[Array],
        options: RunOptions | None = None,
        native: NativeEntry | None = None,
    ) -> list[Array]:
        """Run a program on this session's state; `arrays` are its inputs, converted.

        native  what to tell of the run, so that it can do the next ones
        """
        traced = options is not None and options.trace is not None
        compiled, sizes = entry.bind_planned(arrays) if traced else entry.bind(arrays)
        if options is not None and options.on_device:
            compiled = compiled.on_device()
        if options is not None and options.debug:
            from graphc.debug.stages import require_right  # only now: it brings every stage along

            require_right(self, entry.program, arrays)
        if options is None:
            results = self.variables.run(compiled, arrays, sizes, self.threads)
        else:
            threads = options.threads or self.threads
            deadline = options.deadline()
            results = self.variables.run(compiled, arrays, sizes, threads, options.trace, deadline)
        if native is not None:
            state = compiled.ids, compiled.written, self.variables
            native.note(compiled.executable, sizes, arrays, *state, self.threads)
        return results

    def _make_native(self, call: Call) -> None:
        """Let a native function do the call from now on."""
        this, that = weakref.ref(self), weakref.ref(call)  # both live while the call is made

        def slow(*values: Any) -> list[Any]:
            session, again = this(), that()
            assert session is not None and again is not None
            return session._results(again, values, None, again.native_entry)

        call.native_entry = call.make_entry(slow, "list")
        if call.native_entry is not None:
            call.native = call.native_entry.function()

    def _recognise(self, call: Call, fetches: Any) -> None:
        """Let the native `run` find this call, written like this."""
        record = call.record_of(fetches)
        if record is None or (self._run_table is not None and record in self._run_table):
            return
        with self._lock:
            if self._run_table is None:
                self._run_table = self._native_table = _new_run_table()
            entry = call.entry
            same = entry.guard == self._nan_guard and entry.budget == self.memory_budget
            if same and call in self._calls.values():
                self._run_table.add(record)

    def _forget(self, calls: Iterable[Call]) -> None:
        """Let the native `run` find these calls no more."""
        if self._run_table is not None:
            for call in calls:
                for record in call.records.values():
                    self._run_table.remove(record)

    # ---- compiling

    def _new_call(
        self, fetches: Any, feed_dict: Mapping[Any, Any] | None, options: RunOptions | None
    ) -> tuple[Call, Rebuild]:
        """The call for these fetches and feeds, whichever way they are written."""
        self._check_open()
        flat, rebuild = flatten_fetches(fetches, self.graph)
        if not self.graph.nodes_made:
            raise RunError("the graph is empty: there is nothing to run")
        with self._lock:
            call = self._call(flat, feed_keys(feed_dict, self.graph), options)
        return call, rebuild

    def _call(
        self, flat: Sequence[Fetch], fed: Sequence[Tensor], options: RunOptions | None
    ) -> Call:
        guard, budget = self._guarded(options), self._budget(options)
        key = (tuple(map(id, flat)), tuple(map(id, fed)), guard, budget)
        call = self._calls.get(key)
        if call is not None:
            return call
        order = sorted(range(len(fed)), key=lambda i: (fed[i].node.id, fed[i].index))
        if order == list(range(len(fed))):
            call = Call(flat, fed, self._build_entry(flat, fed, guard, budget))
        else:  # feeds in another order share one program
            same = self._call(flat, [fed[i] for i in order], options)
            call = Call(flat, fed, same.entry, order)
        call.used = next(self._clock)
        self._calls[key] = call
        if len(self._calls) > CALL_CACHE_SIZE:
            self._evict()
        return call

    def _evict(self) -> None:
        """Drop the call that has not been used for longest."""
        for call in self._calls.values():
            if call.was_used():
                call.used = next(self._clock)
        key = min(self._calls, key=lambda k: self._calls[k].used)
        self._forget([self._calls.pop(key)])

    def _build_entry(
        self, flat: Sequence[Fetch], fed: Sequence[Tensor], guard: bool, budget: int | None
    ) -> Entry:
        fetched = tensors_of(flat)
        targets = tuple(x for x in flat if isinstance(x, Node))
        feeds.require_fed([*(t.node for t in fetched), *targets], fed)
        self.graph.has_run()
        program = LateProgram(fetched, targets, fed)
        device = self._placer.device_of(flat)
        entry = Entry(program, device, guard, budget, self.fast_math, self.precision)
        made = [(call.flat, call.fed) for call in self._calls.values()]
        entry.log = self._compilations.of(flat, fed, new_program_reason(flat, fed, made))
        return entry

    def compiled(self) -> list[Compilation]:
        """What this session has compiled, the latest last, each with the reason and the time.

        Nothing is added by runs that found everything compiled; at most the latest 256 are kept.
        """
        return list(self._compilations.records)

    def settings(self) -> dict[str, Any]:
        """What makes another session run programs where and as this one does."""
        where = self._placer.settings()
        return {"fast_math": self.fast_math, "precision": self.precision, **where}

    def placements(self) -> list[Placement]:
        """Which device runs what, and why: programs that a GPU runs or was asked to run."""
        return list(self._placer.log)

    @property
    def never_on_gpu(self) -> bool:
        """Whether no program of this session can be a GPU's."""
        return not (self.graph.devices or is_gpu(self.device))

    def device_of(self, roots: Sequence[Tensor | Node]) -> str:
        """The device that a program of these fetches and targets runs on."""
        return self._placer.device_of(roots)

    # ---- state

    def get_value(self, variable: Variable) -> Array:
        """A copy of a variable's value; raises UninitializedError if it has none."""
        self._check_open()
        return self.variables.get(variable)

    def set_value(self, variable: Variable, value: Any) -> None:
        """Set a variable's value; raises FeedError on another shape or dtype."""
        self._check_open()
        array = feeds.convert(variable, value)
        if array.shape != tuple(variable.dims):
            raise FeedError(f"{feeds.label(variable)} was given an array of shape {array.shape}")
        self.variables.set(variable, array)

    def is_initialized(self, variable: Variable) -> bool:
        """Whether the variable has a value in this session."""
        return variable in self.variables

    def uninitialized_variables(self) -> list[Variable]:
        """The graph's variables that have no value in this session."""
        made = self.graph.get_collection(GraphKeys.GLOBAL_VARIABLES)
        return [v for v in made if v not in self.variables]

    # ---- life cycle

    def close(self) -> None:
        """Release variables and compiled programs; later use raises SessionClosedError.

        Runs that other threads have begun end as they would have.
        """
        self.variables.close()
        with self._lock:
            self._forget(self._calls.values())
            self._calls.clear()

    def _check_open(self) -> None:
        if self.variables.closed:
            raise SessionClosedError("the session is closed")

    def __enter__(self) -> Session:
        self._check_open()
        if getattr(self._entered, "graph", None) is not None:
            raise RunError("this session is entered already: it is the default session")
        context = self.graph.as_default()
        context.__enter__()
        self._entered.graph = context
        push_default_session(self)
        return self

    def __exit__(self, *exc: Any) -> None:
        remove_default_session(self)
        context, self._entered.graph = self._entered.graph, None
        context.__exit__(*exc)
        self.close()

    @contextlib.contextmanager
    def as_default(self) -> Iterator[Session]:
        """Make this the default session of the thread inside the block, without closing it."""
        me = threading.get_ident()
        push_default_session(self)
        try:
            with self.graph.as_default():
                yield self
        finally:
            if me == threading.get_ident():  # not where a forked child clears lost threads away
                remove_default_session(self)


_python_run = Session.run
_run_doc = f"run($self, fetches, feed_dict=None, options=None)\n--\n\n{_python_run.__doc__}"
_empty_table = Table.of(id(_python_run), *[0] * 17)
"""The native `run` finds nothing in it."""


def _new_run_table() -> RunTable:
    """A table for the native `run`, which is the method from now on."""
    from graphc.backends.llvm.entry_function import native_function
    from graphc.backends.llvm.run_table import RunTable

    native = native_function()
    assert native is not None  # there is an entry to be found
    make = functools.partial(native.method, Session, "run", "run_session", _run_doc)
    take_over(Session, "run", _python_run, make)
    return RunTable(_python_run)
