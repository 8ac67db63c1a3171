"""Compiled functions, in Theano's way: `function(inputs, outputs, updates, givens)`.

A function is a program of its own, run on the variables of the default session, or, outside any
session, of a session that the graph keeps for its functions.  There variables need no initializer:
one that has no value takes its initial value when it is first used.
Imports: session, compilations, default_session, execution, function_inputs, native_self,
passes.resolve_state, ops.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphc import feeds
from graphc.budget import parse_budget
from graphc.compilations import Compilation, CompileLog
from graphc.default_session import Gate, default_gate, settings_gate
from graphc.errors import FeedError, GraphTypeError, UnusedInputError
from graphc.execution import Entry, native_entry
from graphc.fetches import Rebuild, flatten_fetches, form_of, require_out, write_out
from graphc.function_inputs import In, Out, Parameters, is_fed_by
from graphc.graph import Graph, get_default_graph
from graphc.native_self import NativeSelf, Table, take_over
from graphc.node import Node, Tensor, topological
from graphc.ops.define import as_tensor
from graphc.ops.state import Variable
from graphc.passes.resolve_state import resolve_state
from graphc.program import Program
from graphc.session import NATIVE_AFTER, Session
from graphc.shared import SharedVariable, initialize, session_of

if TYPE_CHECKING:
    from graphc.backends.llvm.entry import NativeEntry

__all__ = ["Function", "In", "Out", "function"]

Pairs = Sequence[tuple[Tensor, Tensor]]


class _Native:
    """A function's native entry, for one session."""

    def __init__(self, session: Session, entry: NativeEntry) -> None:
        self.session = weakref.ref(session)
        self.guard = session.nan_guard
        self.entry = entry
        self.function = entry.function()


class Function(NativeSelf):
    """A compiled function: call it with values for its inputs.  See `function`."""

    def __init__(
        self,
        inputs: Sequence[In],
        outputs: Any,
        updates: Pairs,
        givens: Pairs,
        graph: Graph,
        session: Session | None,
        name: str,
        allow_input_downcast: bool | None,
        on_unused_input: str,
        memory_budget: int | None = None,
    ) -> None:
        self.name = name
        self.memory_budget = memory_budget
        self.graph = graph
        self.updates = tuple(updates)
        self.givens = tuple(givens)
        self._outputs = outputs
        self._session = session
        self._downcast = allow_input_downcast
        self._inputs = tuple(inputs)
        self._parameters = Parameters(name, inputs, allow_input_downcast)
        flat, self._rebuild, self._form = _outputs(outputs, graph)
        self._visible = len(flat)
        tensors = [i.variable for i in inputs]
        roots = [*flat, *(value for _, value in updates)]
        self._require_inputs(roots, tensors)
        self.program = resolve_state(flat, (), tensors, givens, updates)
        _check_used(name, self.program, tensors, on_unused_input)
        self._entries: dict[tuple[str, bool, int | None, bool, str], Entry] = {}
        self._devices: weakref.WeakKeyDictionary[Session, str] = weakref.WeakKeyDictionary()
        self._compilations = CompileLog()
        self._fetched = [*flat, *(v for v, _ in updates)]
        self._slow_runs = 0
        self._native_table = _empty_table
        self._native: _Native | None = None
        if "out" in self._parameters.positions:
            self._form = None

    def _require_inputs(self, roots: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        cut = [*tensors, *(t for t, _ in self.givens)]
        for nodes, known in (
            ([t.node for t in roots], cut),
            ([r.node for _, r in self.givens], tensors),
        ):
            missing = feeds.unfed_placeholder(nodes, known)
            if missing is not None:
                raise FeedError(
                    f"function {self.name!r} needs {feeds.label(missing)}, which is not one of "
                    "its inputs"
                )

    @property
    def session(self) -> Session:
        """The session this function runs in when it is called now."""
        return self._session or session_of(self.graph)

    def arrays(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The arguments of a call as the arrays that its program is given."""
        return self._parameters.arrays(args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run: values by position or by name of the input; returns what `outputs` has the form of.

        `out`, unless an input is called that, is an array, or a list or tuple of them, to put the
        results in; it is then what is returned.  After an error it holds anything.
        Raises FeedTypeError (a TypeError) for a missing, extra, unknown or narrowed argument.
        """
        gate = self._gate()
        session = self._session or session_of(self.graph)
        native = self._native_in(session)
        if native is not None:
            native.entry.require(*gate)
            if self._form is None:
                if "out" not in kwargs or "out" in self._parameters.positions:
                    complete = not kwargs and len(args) == len(self._inputs)
                    values = args if complete else self._parameters.bound(args, kwargs)
                    return self._rebuild(native.function(*values))
            elif len(args) != len(self._inputs) or kwargs.keys() - {"out"}:
                return self._run_bound(args, kwargs)
        return self._run(session, args, kwargs)

    def _gate(self) -> Gate:
        """What is open while a call would run in the session it runs in now, and as it does now."""
        return settings_gate() if self._session is not None else default_gate()

    def _native_in(self, session: Session) -> _Native | None:
        native = self._native
        if native is None or native.session() is not session or native.guard != session.nan_guard:
            return None
        return native

    def _run_bound(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call again with every input by position, as the native entry has them."""
        given = dict(kwargs)
        out = {"out": given.pop("out")} if "out" in given else {}
        return self(*self._parameters.bound(args, given), **out)

    def _run(self, session: Session, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        out = None
        if "out" in kwargs and "out" not in self._parameters.positions:
            require_out(None if self.program.updates else self._form)
            out = kwargs.pop("out")
        values = self._rebuild(self._results(session, args, kwargs))
        return values if out is None else write_out(values, out)

    def _results(
        self, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[Any]:
        device = self._device_in(session)
        arrays = self._parameters.arrays(args, kwargs, device)
        budget = session.memory_budget if self.memory_budget is None else self.memory_budget
        key = (device, session.nan_guard, budget, session.fast_math, session.precision)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries.setdefault(key, self._new_entry(*key))
        compiled, _ = entry.bind(arrays)
        initialize(session, compiled.variables)
        native = self._native_for(session, entry)
        results = session.run_entry(entry, arrays, native=native)[: self._visible]
        return [a if a.ndim else a[()] for a in results]

    def _device_in(self, session: Session) -> str:
        """Where its program runs in a session."""
        if session.never_on_gpu:
            return session.device
        if session not in self._devices:
            self._devices[session] = session.device_of(self._fetched)
        return self._devices[session]

    def _new_entry(self, *settings: Any) -> Entry:
        """The program in a session with these settings: device and guard first."""
        entry = Entry(self.program, *settings)
        reason = "a session with other settings" if self._entries else "first call"
        inputs = [i.variable for i in self._inputs]
        entry.log = self._compilations.of(self._fetched, inputs, reason)
        return entry

    def compiled(self) -> list[Compilation]:
        """What this function has compiled, the latest last; see `Session.compiled`."""
        return list(self._compilations.records)

    def _native_for(self, session: Session, entry: Entry) -> NativeEntry | None:
        """What to tell of a run in this session; made when a session has seen a few."""
        native = self._native_in(session)
        if native is not None:
            return native.entry
        self._slow_runs += 1
        if self._slow_runs % NATIVE_AFTER:
            return None
        sizes = len(self._inputs), self._visible
        if self._form is None:
            made = native_entry(entry, self._slow_results(), *sizes, "list")
        else:
            made = native_entry(entry, _python_call, *sizes, self._form)
        if made is not None:
            self._native = _Native(session, made)
            if self._form is not None:
                self._native_table = made
                _take_over_calls()
        return made

    def _slow_results(self) -> Callable[..., list[Any]]:
        """`_results` in the session of the moment, without keeping this function alive."""
        this = weakref.ref(self)  # which is called, and so lives, whenever the callable is

        def slow(*args: Any) -> list[Any]:
            function = this()
            assert function is not None
            return function._results(function.session, args, {})

        return slow

    def copy(
        self,
        share_memory: bool = False,
        swap: Mapping[Tensor, Tensor] | None = None,
        delete_updates: bool = False,
        name: str | None = None,
    ) -> Function:
        """A function of the same expressions.

        share_memory    whether it works on the same variables' values, or on a copy of its own
        swap            {variable: the variable to use in its place}
        delete_updates  drop the updates
        """
        swapped: dict[Tensor, Tensor] = dict(swap or {})
        for old, new in swapped.items():
            if not isinstance(new, Variable) or new.type != old.type:
                raise GraphTypeError(f"cannot swap {old!r} for {new!r}: their types differ")
        updates = [] if delete_updates else [(swapped.get(v, v), e) for v, e in self.updates]
        copied = Function(
            self._inputs,
            self._outputs,
            updates,
            [*self.givens, *swapped.items()],
            self.graph,
            self._session,
            name or self.name,
            self._downcast,
            "ignore",
            self.memory_budget,
        )
        if not share_memory:
            copied._session = self._private_session(copied.program)
        return copied

    def _private_session(self, program: Program) -> Session:
        """A session of its own with this function's values, as they are now."""
        source = self.session
        session = Session(self.graph, source.threads, **source.settings())
        initialize(source, program.variables())
        for v in program.variables():
            if v in source.variables:
                session.variables.set(v, source.variables.get(v))
        return session

    def __copy__(self) -> Function:
        return self.copy(share_memory=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Function:
        return self.copy()

    def __reduce__(self) -> Any:
        raise GraphTypeError(
            f"function {self.name!r} cannot be pickled: save the values of its variables instead"
        )

    def __repr__(self) -> str:
        listed = ", ".join(i.name for i in self._inputs)
        return f"<Function {self.name}({listed})>"


_python_call = Function.__call__
_call_doc = f"__call__($self, *args, **kwargs)\n--\n\n{_python_call.__doc__}"
_empty_table = Table.of(-1, 0, 0, 0, id(_python_call))
"""The native `__call__` recognises nothing by it."""


def _take_over_calls() -> None:
    """Make `__call__` native: there is an entry for it to find."""
    from graphc.backends.llvm.entry_function import native_function

    native = native_function()
    assert native is not None
    make = functools.partial(native.method, Function, "__call__", "call", _call_doc)
    take_over(Function, "__call__", _python_call, make)


def function(
    inputs: Sequence[Any],
    outputs: Any = None,
    updates: Any = None,
    givens: Any = None,
    on_unused_input: str = "raise",
    session: Session | None = None,
    no_default_updates: Any = False,
    allow_input_downcast: bool | None = None,
    name: str | None = None,
    memory_budget: int | str | None = None,
) -> Function:
    """Compile a function from values of `inputs` to values of `outputs`.

    inputs    tensors or `In`s; any tensor, not only placeholders
    outputs   None, a tensor, or a list, tuple or dict of tensors (each may be an `Out`)
    updates   new values of variables, as a dict or pairs, set after all outputs are computed; every
              expression reads the old values
    givens    replacements of tensors in this function only, as a dict or pairs
    on_unused_input        'raise' (UnusedInputError), 'warn' or 'ignore'
    session                where to run (None: the default session at the call, else the graph's)
    no_default_updates     True, or a list of variables whose `default_update` is not applied
    allow_input_downcast   True: convert wider floats; None: only Python floats; False: neither
    memory_budget          scratch memory of a call, in bytes or as '512MB' (None: the session's)
    Raises GraphTypeError for what is of the wrong kind, type or shape, GraphError for duplicates.
    """
    if on_unused_input not in ("raise", "warn", "ignore"):
        raise GraphTypeError(
            f"on_unused_input is 'raise', 'warn' or 'ignore', not {on_unused_input!r}"
        )
    label = name or "function"
    if isinstance(inputs, Tensor) or not isinstance(inputs, Iterable):
        raise GraphTypeError(f"function {label!r}: inputs is a list of tensors, not {inputs!r}")
    parameters = [i if isinstance(i, In) else In(i) for i in inputs]
    substitutions = _substitutions(label, givens, parameters)
    explicit = _updates(label, updates)
    flat = _flat_outputs(outputs)
    graph = _graph(label, [*(i.variable for i in parameters), *flat, *(v for v, _ in explicit)])
    cut = [*(i.variable for i in parameters), *(t for t, _ in substitutions)]
    roots = [*flat, *(r for _, r in substitutions), *(i.variable for i in parameters)]
    every = [*explicit, *_default_updates(roots, explicit, cut, no_default_updates)]
    return Function(
        parameters,
        outputs,
        every,
        substitutions,
        graph,
        session,
        label,
        allow_input_downcast,
        on_unused_input,
        parse_budget(memory_budget),
    )


# ---- outputs -----------------------------------------------------------------------------------


def _unwrapped(outputs: Any) -> Any:
    if isinstance(outputs, Out):
        return outputs.variable
    if isinstance(outputs, Mapping):
        return {k: _unwrapped(v) for k, v in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        kind: Any = list if isinstance(outputs, list) else tuple
        return kind(_unwrapped(v) for v in outputs)
    return outputs if outputs is None or isinstance(outputs, Tensor) else as_tensor(outputs)


def _flat_outputs(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Out):
        return _flat_outputs(outputs.variable)
    if isinstance(outputs, Mapping):
        return [t for v in outputs.values() for t in _flat_outputs(v)]
    if isinstance(outputs, (list, tuple)):
        return [t for v in outputs for t in _flat_outputs(v)]
    return [outputs] if isinstance(outputs, Tensor) else []


def _outputs(outputs: Any, graph: Graph) -> tuple[list[Tensor], Rebuild, str | None]:
    """The tensors in a nest, how to rebuild it, and its form as `form_of` says it."""
    if outputs is None:
        return [], lambda values: None, None
    with graph.as_default():
        nest = _unwrapped(outputs)
        flat, rebuild = flatten_fetches(nest, graph)
    return [t for t in flat if isinstance(t, Tensor)], rebuild, form_of(nest)


# ---- updates and givens ------------------------------------------------------------------------


def _pairs(label: str, what: str, given: Any) -> list[tuple[Any, Any]]:
    if given is None:
        return []
    if isinstance(given, Mapping):
        return list(given.items())
    try:
        return [(a, b) for a, b in given]
    except (TypeError, ValueError):
        raise GraphTypeError(
            f"function {label!r}: {what} is a dict or a list of pairs, not {given!r:.60}"
        ) from None


def _updates(label: str, updates: Any) -> list[tuple[Tensor, Tensor]]:
    result: list[tuple[Tensor, Tensor]] = []
    for variable, value in _pairs(label, "updates", updates):
        if not isinstance(variable, Variable):
            raise GraphTypeError(f"function {label!r}: cannot update {variable!r}: not a variable")
        if any(variable is v for v, _ in result):
            raise GraphTypeError(f"function {label!r}: two updates for {variable!r}")
        result.append((variable, _new_value(label, variable, value)))
    return result


def _new_value(label: str, variable: Tensor, value: Any) -> Tensor:
    """`value` as a tensor that can be kept in the variable; raises GraphTypeError."""
    tensor = as_tensor(value, variable.dtype)
    if tensor.dtype is not variable.dtype or not _may_fit(tensor, variable):
        raise GraphTypeError(
            f"function {label!r}: an update of type {tensor.type} for {variable!r}"
        )
    return tensor


def _may_fit(a: Tensor, b: Tensor) -> bool:
    """Whether the two shapes may turn out equal."""
    if a.type.shape is None or b.type.shape is None:
        return True
    if len(a.type.shape) != len(b.type.shape):
        return False
    sizes = zip(a.type.shape, b.type.shape, strict=True)
    return not any(isinstance(d, int) and isinstance(e, int) and d != e for d, e in sizes)


def _substitutions(label: str, givens: Any, inputs: Sequence[In]) -> list[tuple[Tensor, Tensor]]:
    result: list[tuple[Tensor, Tensor]] = []
    for old, value in _pairs(label, "givens", givens):
        if not isinstance(old, Tensor):
            raise GraphTypeError(f"function {label!r}: cannot replace {old!r}: not a tensor")
        if any(old is i.variable for i in inputs):
            raise GraphTypeError(f"function {label!r}: {old!r} is an input: it cannot be given")
        new = as_tensor(value, old.dtype)
        if new.dtype is not old.dtype or not _may_fit(new, old):
            raise GraphTypeError(f"function {label!r}: {new!r} cannot stand for {old!r}")
        result.append((old, new))
    return result


def _default_updates(
    roots: Sequence[Tensor], explicit: Pairs, cut: Sequence[Tensor], excluded: Any
) -> list[tuple[Tensor, Tensor]]:
    """The default updates of the variables in use, and of those that only updates use."""
    if excluded is True:
        return []
    skipped = {id(v) for v in excluded} if excluded else set()
    skipped |= {id(v) for v, _ in explicit} | {id(t) for t in cut}
    stop = {t.node.id for t in cut}
    found: list[tuple[Tensor, Tensor]] = []
    pending: list[Node] = [t.node for t in (*roots, *(value for _, value in explicit))]
    while pending:
        batch, pending = pending, []
        for node in topological(batch, stop=stop):
            v = node.outputs[0] if node.op.name == "variable" else None
            if not isinstance(v, SharedVariable) or v.default_update is None or id(v) in skipped:
                continue
            skipped.add(id(v))
            value = _new_value("default_update", v, v.default_update)
            found.append((v, value))
            pending.append(value.node)
    return found


# ---- the graph ---------------------------------------------------------------------------------


def _graph(label: str, tensors: Sequence[Tensor]) -> Graph:
    found = {id(t.graph): t.graph for t in tensors if t.graph is not None}
    if len(found) > 1:
        raise GraphTypeError(f"function {label!r}: its tensors belong to different graphs")
    return next(iter(found.values()), None) or get_default_graph()


def _check_used(label: str, program: Program, tensors: Sequence[Tensor], policy: str) -> None:
    if policy == "ignore":
        return
    for made, t in zip(program.inputs, tensors, strict=True):
        if is_fed_by(program, made):
            continue
        text = f"function {label!r}: no output or update depends on input {t.node.name!r} {t.type}"
        if policy == "raise":
            raise UnusedInputError(f"{text} ({t.node.loc}); on_unused_input='ignore' allows it")
        warnings.warn(text, stacklevel=4)
