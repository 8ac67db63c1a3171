"""Schedules and memory plans checked: every step finds in memory what it is meant to read.

Follows what each place holds from step to step, without running anything.  Imports: plan, kernel,
backends.interpret_arrays, passes.groups, passes.operands, passes.plan_memory, debug.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.debug.in_place import overwritten_early
from graphc.debug.kernels import kernel_sizes
from graphc.debug.report import Finding, FoundError, unique
from graphc.dims import Sizes, evaluate
from graphc.kernel import Access, Expr, LoopKernel, Stage, Store
from graphc.node import Tensor
from graphc.passes.groups import Fusion
from graphc.passes.keep import KeptSteps
from graphc.passes.operands import LoweredStep, Value, value_bytes
from graphc.passes.wait import READ_ONLY
from graphc.plan import ALIGNMENT, Plan, Ref, Step

Array = np.ndarray[Any, Any]


def _name(value: Value) -> str:
    if isinstance(value, Tensor):
        return f"{value.node.op.name} {value.node.name!r}".replace(" ''", "")
    return value.name


def check_schedule(
    fusion: Fusion, before: Sequence[LoweredStep], after: Sequence[LoweredStep]
) -> None:
    """Raise FoundError unless `after` is the same steps, each after what it reads."""

    def found(message: str, step: LoweredStep) -> FoundError:
        node = f"kernel '{step.label}'"
        return FoundError(
            Finding("schedule", message, "", node, unique(step.locs), subject=list(after))
        )

    rest = {id(s): s for s in before}
    computed = {id(step.args[w]) for step in before for w in step.writes}
    made: set[int] = set()
    for step in after:
        if rest.pop(id(step), None) is None:
            raise found("it runs twice, or was never lowered", step)
        for j, value in enumerate(step.args):
            if j not in step.writes and id(value) in computed and id(value) not in made:
                raise found(f"it runs before {_name(value)}, which it reads, is computed", step)
        made.update(id(step.args[w]) for w in step.writes)
    for step in rest.values():
        raise found("it is missing", step)


Place = tuple[str, int, int]
"""Where an argument lies: ('slot', first byte, end) in the arena, else (kind, index, index + 1)."""


def overlap(a: Place, b: Place) -> bool:
    """Whether two places share memory."""
    return a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2])


class PlanCheck:
    """What a plan's places hold, step by step.

    places  for each step of the plan, where its arguments lie (fault records left out)
    kept    the values that it finds made when it starts
    """

    def __init__(
        self,
        fusion: Fusion,
        steps: Sequence[LoweredStep],
        plan: Plan,
        places: Sequence[Sequence[Place]],
        sizes: Sizes,
        kept: Sequence[Value] = (),
    ) -> None:
        self.fusion = fusion
        self.steps = list(steps)
        self.launched = [s for s in self.steps for _ in s.kernels]  # what each plan step is for
        self.plan = plan
        self.places = places
        self.sizes = sizes
        self.variables = fusion.program.variables()
        self.held: dict[int, Place] = {}  # value -> where it lies now
        self.spoiled: dict[int, str] = {}  # value -> what was written over it
        self.copied: dict[Place, int] = {}  # variable -> the value copied to it
        self.names: dict[int, str] = {}
        inputs = enumerate(fusion.program.inputs)
        leaves = [(("input", i, i + 1), t) for i, t in inputs]
        leaves += [(("state", i, i + 1), t) for i, t in enumerate(self.variables)]
        found: list[tuple[Place, Value]] = [*leaves]
        found += [(("kept", i, i + 1), value) for i, value in enumerate(kept)]
        for place, value in found:
            self.held[id(value)] = place
            self.names[id(value)] = _name(value)

    def run(self) -> None:
        """Raise FoundError where the plan is wrong."""
        self._borders()
        self._slots()
        i = 0
        for lowered in self.steps:
            self._step(i, lowered)
            i += len(lowered.kernels)
        for n, step in enumerate(self.plan.steps[i:], i):
            self._commit_copy(n, step)
        self._results()
        self._commit()
        self._waits()

    def found(self, message: str, step: Step | None = None) -> FoundError:
        node = "" if step is None else f"kernel '{step.label}'"
        locs = () if step is None else unique(step.locs)
        return FoundError(Finding("plan_memory", message, "", node, locs, subject=self.plan))

    # ---- what the steps are

    def _borders(self) -> None:
        program = self.fusion.program
        listed = (self.plan.inputs, program.inputs), (self.plan.variables, self.variables)
        for borders, tensors in (*listed, (self.plan.outputs, program.fetches)):
            if [b.type for b in borders] != [t.type for t in tensors]:
                raise self.found("its inputs, outputs or variables are not the program's")

    def _launches(self, first: int, lowered: LoweredStep) -> None:
        """Every kernel of a step is launched, on the step's arguments."""
        launches = self.plan.steps[first : first + len(lowered.kernels)]
        if len(launches) != len(lowered.kernels):
            raise self.found(f"'{lowered.label}' is not launched")
        for i, (step, kernel) in enumerate(zip(launches, lowered.kernels, strict=True), first):
            count = sum(r.kind != "fault" for r in step.args)
            if count != len(lowered.args) or step.writes != lowered.writes:
                raise self.found(f"step {i} has other arguments than its kernel", step)
            if step.args != launches[0].args:
                raise self.found(f"step {i} has other arguments than the step it is part of", step)
            if self.plan.kernels[step.kernel].bufs != kernel.bufs:
                raise self.found("another kernel is launched than was lowered", step)

    def _step(self, i: int, lowered: LoweredStep) -> None:
        self._launches(i, lowered)
        step = self.plan.steps[i]
        refs = [r for r in step.args if r.kind != "fault"]
        places = self.places[i]
        for j, (ref, value) in enumerate(zip(refs, lowered.args, strict=True)):
            if j not in step.writes:
                self._read(i, step, ref, value, places[j])
        for n, j in enumerate(step.writes):
            if refs[j].kind in READ_ONLY:
                raise self.found(f"step {i} writes to what is {refs[j].kind}", step)
            if any(overlap(places[j], places[k]) for k in step.writes[:n]):
                raise self.found(f"step {i} writes two results to one place", step)
            self._may_write(i, step, lowered, j)
        for j in step.writes:
            self._write(lowered.args[j], places[j])

    def _write(self, value: Value, place: Place) -> None:
        self.names[id(value)] = _name(value)
        for other, at in list(self.held.items()):
            if overlap(at, place):
                del self.held[other]
                self.spoiled[other] = _name(value)
        self.held[id(value)] = place

    def _read(self, i: int, step: Step, ref: Ref, value: Value, place: Place) -> None:
        if ref.kind == "constant":
            assert isinstance(value, Tensor)
            if not _same_array(self.plan.constants[ref.index], value.node.attrs.get("value")):
                raise self.found(f"step {i} reads another constant than {_name(value)}", step)
            return
        if self.held.get(id(value)) == place:
            return
        what = f"step {i} reads {_name(value)}"
        if id(value) in self.spoiled:
            by = self.spoiled[id(value)]
            raise self.found(f"{what}, over which {by} has been written", step)
        if id(value) in self.held:
            raise self.found(f"{what} elsewhere than where it was written", step)
        raise self.found(f"{what}, which nothing has written", step)

    def _may_write(self, i: int, step: Step, lowered: LoweredStep, j: int) -> None:
        """A result may lie where an operand does only if each element is read before."""
        places = self.places[i]
        for k, place in enumerate(places):
            if k in step.writes or not overlap(place, places[j]):
                continue
            apart = place[1] != places[j][1]
            if apart or any(
                overwritten_early(kernel, k, j, kernel_sizes(kernel, self.sizes))
                for kernel in lowered.kernels
            ):
                raise self.found(
                    f"step {i} writes {_name(lowered.args[j])} over {_name(lowered.args[k])} "
                    "before it has read all of it",
                    step,
                )

    def _commit_copy(self, i: int, step: Step) -> None:
        source, target = self.places[i]
        if target[0] != "state" or not _is_copy(self.plan.kernels[step.kernel]):
            raise self.found(f"step {i} is no copy to a variable", step)
        held = [v for v, place in self.held.items() if place == source]
        if not held:
            raise self.found(f"step {i} copies from where nothing was written", step)
        for other, at in list(self.held.items()):
            if overlap(at, target):
                del self.held[other]
        self.held[-1 - i] = target
        self.copied[target] = held[0]

    # ---- what is there at the end

    def _results(self) -> None:
        program, views = self.fusion.program, self.fusion.views
        for i, t in enumerate(program.fetches):
            if self.held.get(id(views.of(t).base)) != ("output", i, i + 1):
                raise self.found(f"fetch {i}, {_name(t)}, is not what its array holds at the end")
        new = {id(v): id(views.of(t).base) for v, t in program.updates}
        for i, v in enumerate(self.variables):
            place = ("state", i, i + 1)
            wanted = new.get(id(v), id(v))
            if self.held.get(wanted) != place and self.copied.get(place) != wanted:
                raise self.found(
                    f"variable {v.node.name!r} does not hold its value of after the run at the end"
                )

    def _commit(self) -> None:
        steps = self.plan.steps
        last = max((i for i, s in enumerate(steps) if _checks(s)), default=-1)
        for i, step in enumerate(steps):
            written = [step.args[w] for w in step.writes]
            if any(r.kind == "state" for r in written) and i < max(self.plan.commit, last + 1):
                raise self.found(
                    f"step {i} writes a variable though step {last} may still fail"
                    if i <= last
                    else f"step {i} writes a variable before the commit point",
                    step,
                )
        if last >= self.plan.commit and any(
            steps[i].args[w].kind == "state" for i in range(len(steps)) for w in steps[i].writes
        ):
            raise self.found(f"step {last} may fail after the commit point", steps[last])

    def _slots(self) -> None:
        """Every value fits its place, and every place is inside the arena."""
        arena = self.plan.arena_bytes(self.sizes)
        for i, (step, lowered) in enumerate(zip(self.plan.steps, self.launched, strict=False)):
            for place, value in zip(self.places[i], lowered.args, strict=False):
                if place[0] != "slot":
                    continue
                wanted = evaluate(value_bytes(value), self.sizes)
                if wanted > place[2] - place[1] or place[1] % ALIGNMENT or place[2] > arena:
                    raise self.found(
                        f"step {i} has {_name(value)} of {wanted} bytes at bytes {place[1]} to "
                        f"{place[2]} of an arena of {arena}",
                        step,
                    )

    def _waits(self) -> None:
        """Steps that may run at the same time do not touch what one of them writes."""
        running: dict[int, Step] = {}
        for i, step in enumerate(self.plan.steps):
            if step.wait_from >= 0:
                running = {k: s for k, s in running.items() if k < step.wait_from}
            if i == self.plan.commit and i:
                running = {}
            for k, other in running.items():
                if i < len(self.launched) and self.launched[i] is self.launched[k]:
                    continue  # kernels of one step make elements of their own
                for j, a in enumerate(self.places[i]):
                    for m, b in enumerate(self.places[k]):
                        if (j in step.writes or m in other.writes) and overlap(a, b):
                            what = f"'{other.label}', which uses {a[0]} {a[1]} too"
                            raise self.found(f"step {i} does not wait for step {k}, {what}", step)
            running[i] = step


class KeepingCheck(PlanCheck):
    """The same for the plan that makes what stays between runs: `kept`, its outputs."""

    def __init__(
        self,
        fusion: Fusion,
        kept: KeptSteps,
        plan: Plan,
        places: Sequence[Sequence[Place]],
    ) -> None:
        super().__init__(fusion, kept.steps, plan, places, {})
        self.values = kept.values
        self.written = {id(v) for v, _ in fusion.program.updates}
        self.fed = {id(t) for t in fusion.program.inputs}

    def _borders(self) -> None:
        for step in self.steps:
            if step.checks or any(id(v) in self.fed | self.written for v in step.args):
                raise self.found(f"'{step.label}' is kept though it follows from more than state")

    def _results(self) -> None:
        for i, value in enumerate(self.values):
            if self.held.get(id(value)) != ("output", i, i + 1):
                raise self.found(f"{_name(value)}, which is kept, is not what was made at the end")
        for i, v in enumerate(self.variables):
            if self.held.get(id(v)) != ("state", i, i + 1):
                raise self.found(f"variable {v.node.name!r} is written where values are kept")


def _same_array(array: Array, constant: Any) -> bool:
    """Whether an array is a constant's, bit for bit."""
    if constant is None:
        return True  # a leaf of another kind, known only to its operator
    wanted = constant.array
    return bool(array.dtype == wanted.dtype) and array.tobytes() == wanted.tobytes()


def _checks(step: Step) -> bool:
    return any(r.kind == "fault" for r in step.args)


def _is_copy(kernel: Any) -> bool:
    """Whether a kernel copies argument 0 to argument 1, element by element."""
    if not isinstance(kernel, LoopKernel) or len(kernel.stages) != 1 or len(kernel.par) != 1:
        return False
    (stage,) = kernel.stages
    return (
        isinstance(stage, Stage)
        and not stage.accs
        and len(stage.stores) == 1
        and _same_place(stage.stores[0])
    )


def _same_place(store: Store) -> bool:
    load = store.expr
    if not isinstance(load, Expr) or load.op != "load" or store.index is not None or store.add:
        return False
    access: Access = load.value[0]
    same = (access.terms, access.offset) == (store.access.terms, store.access.offset)
    return same and (access.buf, store.access.buf) == (0, 1)
