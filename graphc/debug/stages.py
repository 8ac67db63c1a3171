"""`check`: one run taken apart, every form of the program judged against the reference.

The user's graph, run node by node, against the program cut out of it; each pass, rule by rule; each
lowered kernel, interpreted, against its operators; the schedule and the places in memory, followed
step by step; the machine code of each kernel against its interpretation; the whole plan on one
thread and on several.  The first that is wrong is named.
Imports: session, execution, passes, backends, debug.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc import compiler, dims, feeds
from graphc.debug.blame import blamed
from graphc.debug.failing import Failing
from graphc.debug.kernels import Buffers, Judge, check_steps
from graphc.debug.meaning import run_graph
from graphc.debug.native import KernelCode, argument_places, compile_kernels, step_operands
from graphc.debug.plans import KeepingCheck, PlanCheck, check_schedule
from graphc.debug.programs import checked_pass, described, same_roots
from graphc.debug.report import Finding, FoundError, Report
from graphc.debug.trial import require_survival
from graphc.debug.values import Difference, Samples, disagreement
from graphc.debug.whole import check_run
from graphc.errors import FeedError, GraphcError, MiscompiledError, RunError
from graphc.fetches import flatten_fetches
from graphc.function import Function
from graphc.host_calls import PartsExecutable, compile_parts, has_host_calls
from graphc.node import Node, Tensor, topological
from graphc.passes import fuse, lower, pipeline, plan_memory, resolve_state, schedule
from graphc.passes import specialise as special
from graphc.passes.groups import Fusion
from graphc.passes.keep import KeptSteps, find_kept
from graphc.passes.operands import LoweredStep
from graphc.plan import Plan
from graphc.program import Program
from graphc.session import Session, get_default_session
from graphc.shared import initialize

Array = np.ndarray[Any, Any]


def check(
    fetches: Any,
    feed_dict: Mapping[Any, Any] | Sequence[Any] | None = None,
    session: Session | None = None,
    gradients: bool = False,
) -> Report:
    """Run `fetches` once through every stage of compiling and name the first that goes wrong.

    fetches    what `Session.run` takes, or a compiled `function`
    feed_dict  as for `Session.run`, for a function its arguments in a list, or in a dict by name;
               small arrays, for kernels are interpreted
    session    whose variables to start from (default: the default session, or the function's); none
               are changed, but a function's get their initial values as by a call
    gradients  also compare the gradient rule of every operator with numeric differentiation

    Returns a Report; `report.ok` says whether everything agrees, `print(report)` the rest.
    Raises what `Session.run` would for wrong feeds and fetches.
    """
    if isinstance(fetches, Function):
        positional = not isinstance(feed_dict, Mapping)
        arrays = fetches.arrays(
            *(feed_dict or () if positional else ()),
            **({} if positional else dict(feed_dict or {})),
        )
        session = session or fetches.session
        initialize(session, fetches.program.variables())
        return check_program(session, fetches.program, arrays, gradients)
    session = session or get_default_session()
    if session is None:
        raise RunError("check: give a session, or enter one")
    if not isinstance(feed_dict, Mapping) and feed_dict:
        raise FeedError(f"feed_dict is a dict of values by tensor, not {feed_dict!r:.60}")
    request = _Request.of(session, fetches, dict(feed_dict or {}))
    report = Report()
    return _Check(session, report, gradients).judge(request.resolved)


def check_program(
    session: Session, program: Program, arrays: Sequence[Array], gradients: bool = False
) -> Report:
    """What `check` finds for a program cut out of a graph; `arrays` are its inputs, converted."""

    def resolved(check: _Check) -> tuple[Program, Samples]:
        samples = check.samples(program, arrays)
        samples.base.compute(program.roots)
        return program, samples

    return _Check(session, Report(), gradients).judge(Resolved(program, list(arrays), resolved))


def require_right(session: Session, program: Program, arrays: Sequence[Array]) -> None:
    """Raise MiscompiledError if a check of the program finds something wrong."""
    report = check_program(session, program, arrays)
    if not report.ok:
        raise MiscompiledError(str(report.finding))


@dataclass(frozen=True)
class Resolved:
    """A program with its inputs, and what judges how it was cut out."""

    program: Program
    arrays: list[Array]
    judge: Callable[[_Check], tuple[Program, Samples]]


@dataclass(frozen=True)
class _Request:
    """Fetches, operations and feeds of a graph."""

    fetches: list[Tensor]
    targets: list[Node]
    fed: dict[Tensor, Array]

    @classmethod
    def of(cls, session: Session, fetches: Any, feed_dict: Mapping[Any, Any]) -> _Request:
        graph = session.graph
        flat, _ = flatten_fetches(fetches, graph)
        tensors = list(dict.fromkeys(x for x in flat if isinstance(x, Tensor)))
        targets = [x for x in flat if isinstance(x, Node)]
        fed: dict[Tensor, Array] = {}
        for key, value in feed_dict.items():
            t = graph.get_tensor_by_name(key) if isinstance(key, str) else key
            fed[t] = feeds.convert(t, value)
        stop = {t.node.id for t in fed}
        for node in topological([t.node for t in tensors] + targets, stop=stop):
            if node.op.name == "placeholder" and node.id not in stop:
                label = feeds.label(node.outputs[0])
                raise FeedError(f"check: {label} is needed and not in feed_dict")
        return cls(tensors, targets, fed)

    @property
    def resolved(self) -> Resolved:
        program = resolve_state.resolve_state(self.fetches, self.targets, tuple(self.fed))
        return Resolved(program, list(self.fed.values()), lambda c: c.against_graph(program, self))


class _Check:
    def __init__(self, session: Session, report: Report, gradients: bool) -> None:
        self.session = session
        self.report = report
        self.gradients = gradients

    def judge(self, resolved: Resolved) -> Report:
        """The report on a program, from how it was cut out to how it runs."""
        try:
            try:
                program, samples = resolved.judge(self)
            except RunError as error:
                self._failing(error, resolved.program, resolved.arrays)
            else:
                self._stages(program, samples)
        except FoundError as error:
            self.report.finding = error.finding
        return self.report

    def samples(self, program: Program, arrays: Sequence[Array]) -> Samples:
        """The values of a program's tensors in this session."""
        given = dict(zip(program.inputs, arrays, strict=True))
        sizes = feeds.bind_sizes(program.inputs, [a.shape for a in arrays])
        return Samples(given, initial_state(self.session, program), sizes)

    def _stages(self, program: Program, samples: Samples) -> None:
        if self.gradients:
            from graphc.debug.gradients import check_gradients

            checked = check_gradients(program, samples)
            self.done("gradients", f"{checked} rules against numeric differentiation")
        program = self._specialised(program, samples)
        if not has_host_calls(program):
            self._compiled(program, samples)
            return
        parts: list[Program] = []

        def keep(part: Program) -> tuple[Any, Program]:
            parts.append(part)
            return None, part

        whole, _ = compile_parts(program, keep)
        assert isinstance(whole, PartsExecutable)
        for part, inner in zip(whole.parts, parts, strict=True):
            given = {t: samples.of(made) for t, made in zip(inner.inputs, part.given, strict=True)}
            self._compiled(inner, Samples(given, samples.base.state, samples.sizes), False)

    def done(self, stage: str, what: str) -> None:
        """Note that a stage is right."""
        self.report.stages.append((stage, what))

    def _failing(self, error: RunError, program: Program, arrays: Sequence[Array]) -> None:
        """The graph's own run fails: so must everything made of it."""
        shapes = [a.shape for a in arrays]
        state = initial_state(self.session, program)
        ranked = special.bind_ranks(program, [len(s) for s in shapes])
        sizes = feeds.bind_sizes(ranked.inputs, shapes)
        failing = Failing(error, state, sizes)

        def inputs(program: Program) -> dict[Tensor, Array]:
            return dict(zip(program.inputs, arrays, strict=True))

        meetings = special.unknown_broadcasts(ranked)
        known = special.substitution(meetings, special.broadcast_outcomes(meetings, sizes))

        def specialised(program: Program) -> Program:
            return special.specialise(program, known)

        failing.program("resolve_state", program, inputs(program))
        failing.program("bind_ranks", ranked, inputs(ranked))
        program = ranked
        for name, run in [("specialise", specialised), *pipeline.GRAPH_PASSES]:
            program = run(program)
            failing.program(name, program, inputs(program))
        fusion = fuse.fuse(program)
        failing.program("fuse", fusion.program, inputs(program))
        steps = schedule.schedule(fusion, lower.lower(fusion, compiler.cut_of))
        failing.kernels(fusion, steps, inputs(program))
        plan = plan_memory.plan_memory(fusion, steps, compiler.blocks_of)
        failing.plan(plan, fusion, inputs(program))
        self.done("failing", f"every form fails as the graph does: {error}".partition("\n")[0])

    # ---- programs

    def against_graph(self, program: Program, request: _Request) -> tuple[Program, Samples]:
        """The program and its values, if they are those of the graph run node by node."""
        samples = self.samples(program, list(request.fed.values()))
        state, sizes = samples.base.state, samples.sizes
        fetched, written = run_graph(request.fetches, request.targets, request.fed, state, sizes)
        wanted = {v.node.id: v for v, _ in program.updates}
        if set(wanted) != set(written):
            other = "assigned" if set(written) - set(wanted) else "not assigned"
            message = f"it updates other variables than are {other}"
            raise FoundError(Finding("resolve_state", message, subject=program))
        expected = [
            (t, a, request.fetches[i])
            for i, (t, a) in enumerate(zip(program.fetches, fetched, strict=False))
        ]
        expected += [(t, written[v.node.id], v) for v, t in program.updates]
        for t, array, subject in expected:
            difference = _against(array, t, samples)
            if difference is not None:
                message = "the program's value is not the graph's"
                raise FoundError(
                    Finding(
                        "resolve_state",
                        message,
                        "",
                        described(subject),
                        (subject.node.loc,),
                        difference,
                        program,
                    )
                )
        self.done("resolve_state", f"{len(expected)} values against the graph, node by node")
        return program, samples

    def _specialised(self, program: Program, samples: Samples) -> Program:
        given = samples.base.given
        arrays = [given[t] for t in program.inputs]
        shapes = [a.shape for a in arrays]
        if any(t.type.shape is None for t in program.inputs):
            ranks = [len(s) for s in shapes]

            def bound(p: Program) -> Program:
                made = special.bind_ranks(p, ranks)
                samples.sizes.update(feeds.bind_sizes(made.inputs, shapes))
                return made

            program, what = checked_pass("bind_ranks", bound, program, samples)
            self.done("bind_ranks", what)
        sizes = samples.sizes
        feeds.check_constraints(program.constraints(), sizes)
        meetings = special.unknown_broadcasts(program)
        outcome = special.broadcast_outcomes(meetings, sizes)
        known = special.substitution(meetings, outcome)
        for atom, d in known.items():
            if dims.evaluate(d, sizes) != sizes.get(atom, dims.evaluate(dims.of_atom(atom), sizes)):
                message = f"it takes size {atom} for {dims.dim_text(d)}, which it is not"
                raise FoundError(Finding("specialise", message, subject=program))
        program, what = checked_pass(
            "specialise", lambda p: special.specialise(p, known), program, samples
        )
        self.done("specialise", what)
        for name, run in pipeline.GRAPH_PASSES:
            program, what = checked_pass(name, run, program, samples)
            self.done(name, what)
        return program

    # ---- kernels and plans

    def _compiled(self, program: Program, samples: Samples, keep: bool = True) -> None:
        sizes = samples.sizes
        fusion = _raised("fuse", lambda: fuse.fuse(program), program)
        same_roots("fuse", program.roots, fusion.program, samples, "a root is another than before")
        self.done("fuse", f"{len(fusion.groups)} groups")
        lowered = _raised("lower", lambda: lower.lower(fusion, compiler.cut_of, keep=keep), program)
        buffers = Buffers(samples)
        check_steps(
            fusion, lowered, buffers, sizes, lambda f, group: blamed(f, group, samples, _lowered)
        )
        self.done("lower", f"{len(lowered)} kernels interpreted")
        ordered = _raised("schedule", lambda: schedule.schedule(fusion, lowered), program)
        check_schedule(fusion, lowered, ordered)
        self.done("schedule", f"{len(ordered)} steps in order")
        kept = _raised("keep", lambda: find_kept(fusion, ordered) if keep else None, program)
        plan = _raised(
            "plan_memory",
            lambda: plan_memory.plan_memory(fusion, ordered, compiler.blocks_of, kept=kept),
            program,
        )
        _check_places(fusion, ordered, kept, plan, sizes)
        arena = plan.arena_bytes(sizes)
        self.done("plan_memory", f"what lies where in {arena} bytes, step by step")
        jit, addresses = compile_kernels(plan)
        known: dict[int, Array] = {}
        for s in ordered:
            known.update((id(v), buffers.of(v)) for v in s.args)
        codes: dict[Any, tuple[KernelCode, list[Array]]] = {}
        judged: set[Any] = set()
        judged_here = [(plan, ordered if kept is None else kept.rest)]
        if kept is not None and plan.keeping is not None:
            judged_here.append((plan.keeping, kept.steps))
        for part, own in judged_here:
            launches = iter(part.steps)  # copies, the last of them, show in the whole plan
            for s in own:
                here = [KernelCode(part, next(launches), s, addresses, sizes) for _ in s.kernels]
                keys = tuple(code.key for code in here)
                if (keys, id(s.kernel)) not in judged:
                    judged.add((keys, id(s.kernel)))
                    judge = Judge("plan_memory", s, buffers, sizes)
                    judge.run([(code.kernel, code.sizes) for code in here])
                for code in here:
                    if code.key not in codes:
                        codes[code.key] = code, step_operands(s, known, sizes)
        require_survival(list(codes.values()))
        for code, operands in codes.values():
            code.check(operands)
        self.done("codegen", f"{len(codes)} kernels' machine code")
        what = _raised("run", lambda: check_run(plan, addresses, jit, fusion, samples), plan)
        self.done("run", what)


def _check_places(
    fusion: Fusion,
    ordered: Sequence[LoweredStep],
    kept: KeptSteps | None,
    plan: Plan,
    sizes: dims.Sizes,
) -> None:
    """Raise FoundError if the plan, or the one of what it keeps, finds something else in memory."""
    places = _raised("plan_memory", lambda: argument_places(plan, sizes), plan)
    if kept is None:
        PlanCheck(fusion, ordered, plan, places, sizes).run()
        return
    check_schedule(fusion, ordered, [*kept.steps, *kept.rest])
    PlanCheck(fusion, kept.rest, plan, places, sizes, kept.values).run()
    keeping = plan.keeping
    assert keeping is not None
    made = _raised("plan_memory", lambda: argument_places(keeping, {}), plan)
    KeepingCheck(fusion, kept, keeping, made).run()


def _lowered(program: Program, samples: Samples) -> None:
    """Raise FoundError if a program's kernels are lowered wrong."""
    fusion = _raised("fuse", lambda: fuse.fuse(program), program)
    lowered = _raised("lower", lambda: lower.lower(fusion, compiler.cut_of), program)
    check_steps(fusion, lowered, Buffers(samples), samples.sizes)


def _raised(stage: str, run: Any, subject: Any) -> Any:
    """What a stage gives; an exception in it becomes a finding."""
    try:
        return run()
    except (GraphcError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError) as e:
        message = f"it raised {type(e).__name__}: {e}"
        raise FoundError(Finding(stage, message, subject=subject)) from e


def _against(expected: Array, t: Tensor, samples: Samples) -> Difference | None:
    return disagreement(np.asarray(expected), samples.of(t), t.dtype, lambda n: samples.moved(t, n))


def initial_state(session: Session, program: Program) -> dict[int, Array]:
    """What the program's variables hold in a session, by node id; a variable without value that
    is only written holds zeros."""
    state: dict[int, Array] = {}
    read = {n.id for n in program.order() if n.op.name == "variable"}
    for v in program.variables():
        if v in session.variables:
            state[v.node.id] = session.variables.get(v)
        elif v is session.graph.random_counter or v.node.id not in read:
            shape = tuple(int(str(d)) for d in v.dims)
            state[v.node.id] = np.zeros(shape, v.dtype.numpy)
        else:
            state[v.node.id] = session.variables.get(v)  # raises UninitializedError
    return state
