"""Plans kept between processes: a program that has been planned before is not planned again.

What is kept is the plan, by what names its kernels' code is kept, and which of the program's nodes
are the variables it takes; and what sizes must be known or checked before there is a plan.  What a
session runs is known by the key of the graph itself, and no program is made of it.  Runs that are
to show or check the passes, and programs that hold Python functions or operators of the user's,
always go through the passes.
Imports: program_key, plan_file, late_program, cache, flags; the LLVM back end where there is a
cache.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphc import flags
from graphc.cache import Cache, digest, open_cache
from graphc.constraints import Constraint
from graphc.dims import Dim, DimLike
from graphc.late_program import LateProgram
from graphc.location import Location
from graphc.plan import Plan
from graphc.plan_file import PlanFileError, check_plan, decode, encode
from graphc.program import Program
from graphc.program_key import NotKeyable, ProgramKey, key_of_graph, key_of_program

if TYPE_CHECKING:
    from graphc.backends.base import Executable
    from graphc.backends.llvm.executable import LLVMExecutable
    from graphc.backends.llvm.jit import JIT
    from graphc.node import Node, Tensor

Facts = tuple[list[tuple[Dim, DimLike]], list[tuple[Constraint, Location]]]
"""Sizes that meet in broadcasts, and relations between sizes to check, each with its line."""


@dataclass(frozen=True)
class KeptPlan:
    """A plan that can run, and the variables of the program: taken, read and written."""

    executable: LLVMExecutable
    variables: tuple[Tensor, ...]
    read: frozenset[int]  # node ids
    written: frozenset[int]


@dataclass(frozen=True)
class _Entry:
    """What an entry of the cache says, checked."""

    plan: Plan
    names: list[str]  # of the kernels' code
    batches: list[bytes]  # that have it
    variables: list[Node]
    read: frozenset[int]
    written: frozenset[int]


class Keyed:
    """What the cache keeps of one program, by its key."""

    def __init__(self, cache: Cache, jit: JIT, program: ProgramKey) -> None:
        self._cache = cache
        self._jit = jit
        self._program = program

    def facts(self) -> Facts | None:
        """What is kept of a program itself; None if it is nothing."""
        data = self._cache.read("facts", self._key("facts"))
        try:
            return _facts(self._decoded(data)) if data is not None else None
        except PlanFileError:
            return None

    def keep_facts(self, facts: Facts) -> None:
        """Keep what need not be worked out again."""
        meetings, constraints = facts
        rows = tuple((c.kind, c.a, c.b, c.message, loc) for c, loc in constraints)
        self._keep("facts", self._key("facts"), (tuple(meetings), rows))

    def plan(self, outcome: Sequence[Any], settings: tuple[bool, ...]) -> KeptPlan | None:
        """What is kept of its plan, specialised to an outcome; None if it is nothing, or not whole.

        settings  what else it was made for
        """
        data = self._cache.read("plan", self._plan_key(outcome, settings))
        try:
            entry = self._entry(self._decoded(data)) if data is not None else None
        except PlanFileError:
            return None
        functions = self._jit.load_kernels(entry.names, entry.batches) if entry else None
        if entry is None or functions is None:
            return None
        from graphc.backends.llvm.executable import LLVMExecutable

        return KeptPlan(
            LLVMExecutable(entry.plan, functions, self._jit, entry.names),
            tuple(node.outputs[0] for node in entry.variables),
            entry.read,
            entry.written,
        )

    def keep_plan(
        self,
        outcome: Sequence[Any],
        settings: tuple[bool, ...],
        executable: Executable,
        program: Program,
    ) -> None:
        """Keep a plan and what it belongs to; `program` is as it was lowered."""
        from graphc.backends.llvm.executable import LLVMExecutable

        if not isinstance(executable, LLVMExecutable):
            return
        names = executable.names
        batches = self._jit.cache.batches_of(names)
        if batches is None:
            return
        numbers = self._program.numbers
        groups = (
            [v.node for v in program.variables()],
            [n for n in program.order() if n.op.name == "variable"],
            [v.node for v, _ in program.updates],
        )
        try:
            places = [tuple(numbers[id(node)] for node in group) for group in groups]
        except KeyError:
            return  # the passes made something that the program does not have
        plan = executable.plan.without_kernels()
        keys = tuple(key.hex() for key in batches)
        entry = (plan, tuple(names), keys, *places)
        self._keep("plan", self._plan_key(outcome, settings), entry)

    def _key(self, *parts: str) -> bytes:
        identity = self._jit.target.identity
        assert identity is not None
        return identity[:8] + digest(identity, self._program.digest, *parts)[8:]

    def _plan_key(self, outcome: Sequence[Any], settings: tuple[bool, ...]) -> bytes:
        return self._key("plan", self._program.text_of(outcome), str(settings))

    def _keep(self, kind: str, key: bytes, value: Any) -> None:
        try:
            self._cache.write(kind, key, encode(value, self._program.atoms, self._program.lines))
        except PlanFileError:
            return

    def _decoded(self, data: bytes) -> Any:
        return decode(data, list(self._program.atoms), list(self._program.lines))

    def _entry(self, parts: Any) -> _Entry:
        """The parts of an entry, checked; raises PlanFileError."""
        try:
            plan, names, batches, *numbers = parts
            keys = [bytes.fromhex(key) for key in batches]
            groups = [[self._program.variable(i) for i in group] for group in numbers]
            variables, read, written = groups
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise PlanFileError(f"not an entry: {error!r}") from None
        if not all(isinstance(name, str) for name in names):
            raise PlanFileError("not an entry")
        check_plan(plan, len(names), len(variables))
        return _Entry(plan, list(names), keys, variables, _ids(read), _ids(written))


def _facts(parts: Any) -> Facts:
    """The parts of an entry of facts, checked; raises PlanFileError."""
    try:
        meetings, rows = parts
        found = [(Constraint(kind, a, b, message), loc) for kind, a, b, message, loc in rows]
        sizes = [d for pair in meetings for d in pair] + [d for c, _ in found for d in (c.a, c.b)]
        right = (
            all(len(pair) == 2 and isinstance(pair[0], Dim) for pair in meetings)
            and all(isinstance(d, (int, Dim)) for d in sizes)
            and all(isinstance(c.message, str) for c, _ in found)
            and all(c.kind in ("equal", "multiple", "at_least") for c, _ in found)
            and all(isinstance(loc, Location) for _, loc in found)
        )
    except (TypeError, ValueError) as error:
        raise PlanFileError(f"not facts: {error!r}") from None
    if not right:
        raise PlanFileError("not facts")
    return list(meetings), found


def keyed(program: Program | LateProgram) -> Keyed | None:
    """What is kept of a program whose ranks are known; None where nothing is to be kept."""
    cache = open_cache()
    if cache is None or flags.VERIFY.value or flags.DUMP.value or _other_passes():
        return None
    from graphc.backends.llvm.jit import default_jit

    jit = default_jit()
    if jit.target.identity is None:
        return None
    try:
        if isinstance(program, LateProgram):
            return Keyed(cache, jit, key_of_graph(program))
        return Keyed(cache, jit, key_of_program(program))
    except NotKeyable:
        return None


def _other_passes() -> bool:
    """Whether the user has changed the list of passes."""
    pipeline = sys.modules.get("graphc.passes.pipeline")
    return pipeline is not None and tuple(pipeline.GRAPH_PASSES) != pipeline.OWN_PASSES


def _ids(nodes: Sequence[Node]) -> frozenset[int]:
    return frozenset(node.id for node in nodes)
