"""Plans kept between processes: a program that has been planned before is not planned again.

What is kept is the plan, by what names its kernels' code is kept, and which of the program's nodes
are the variables it takes.  Runs that are to show or check the passes, and programs that hold
Python functions or operators of the user's, always go through the passes.
Imports: program_key, plan_file, program, cache, flags; the LLVM back end when there is a cache.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graphc import flags
from graphc.cache import Cache, digest, open_cache
from graphc.plan import Plan
from graphc.plan_file import PlanFileError, check_plan, decode, encode
from graphc.program import Program
from graphc.program_key import NotKeyable, ProgramKey

if TYPE_CHECKING:
    from graphc.backends.base import Executable
    from graphc.backends.llvm.executable import LLVMExecutable
    from graphc.backends.llvm.jit import JIT
    from graphc.node import Node, Tensor

_KIND = "plan"


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


class Place:
    """Where in the cache the plan of one program is, or is to be."""

    def __init__(self, cache: Cache, jit: JIT, program: ProgramKey, key: bytes) -> None:
        self._cache = cache
        self._jit = jit
        self._program = program
        self._key = key

    def load(self) -> KeptPlan | None:
        """What is kept there; None if it is nothing, or not whole."""
        from graphc.backends.llvm.executable import LLVMExecutable

        data = self._cache.read(_KIND, self._key)
        if data is None:
            return None
        try:
            entry = self._decoded(data)
        except PlanFileError:
            return None
        functions = self._jit.load_kernels(entry.names, entry.batches)
        if functions is None:
            return None
        return KeptPlan(
            LLVMExecutable(entry.plan, functions, self._jit, entry.names),
            tuple(node.outputs[0] for node in entry.variables),
            entry.read,
            entry.written,
        )

    def _decoded(self, data: bytes) -> _Entry:
        """The parts of an entry, checked; raises PlanFileError."""
        program = self._program
        parts = decode(data, list(program.atoms), list(program.lines))
        try:
            plan, names, batches, *numbers = parts
            keys = [bytes.fromhex(key) for key in batches]
            groups = [[program.variable(i) for i in group] for group in numbers]
            variables, read, written = groups
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise PlanFileError(f"not an entry: {error!r}") from None
        if not all(isinstance(name, str) for name in names):
            raise PlanFileError("not an entry")
        check_plan(plan, len(names), len(variables))
        return _Entry(plan, list(names), keys, variables, _ids(read), _ids(written))

    def store(self, executable: Executable, program: Program) -> None:
        """Keep a plan and what it belongs to; `program` is as it was lowered."""
        from graphc.backends.llvm.executable import LLVMExecutable

        if not isinstance(executable, LLVMExecutable):
            return
        names = executable.names
        batches = self._jit.cache.batches_of(names)
        if batches is None:
            return
        plan = replace(executable.plan, kernels=(), buffers=())
        numbers = self._program.numbers
        groups = (
            [v.node for v in program.variables()],
            [n for n in program.order() if n.op.name == "variable"],
            [v.node for v, _ in program.updates],
        )
        try:
            places = [tuple(numbers[id(node)] for node in group) for group in groups]
            keys = tuple(key.hex() for key in batches)
            data = encode(
                (plan, tuple(names), keys, *places), self._program.atoms, self._program.lines
            )
        except (KeyError, PlanFileError):
            return  # the passes made something that the program does not have
        self._cache.write(_KIND, self._key, data)


def place_of(program: Program, outcome: Sequence[Any], guard: bool) -> Place | None:
    """Where a program's plan is kept, specialised to an outcome; None where it is not to be.

    program  before it is specialised, with all ranks known
    guard    whether the NaN guard is put in
    """
    cache = open_cache()
    if cache is None or flags.VERIFY.value or flags.DUMP.value or _other_passes():
        return None
    from graphc.backends.llvm.jit import default_jit

    jit = default_jit()
    identity = jit.target.identity
    if identity is None:
        return None
    try:
        found = ProgramKey(program)
        key = digest(identity, found.digest, found.text_of(outcome), str(guard))
    except NotKeyable:
        return None
    return Place(cache, jit, found, identity[:8] + key[8:])


def _other_passes() -> bool:
    """Whether the user has changed the list of passes."""
    pipeline = sys.modules.get("graphc.passes.pipeline")
    return pipeline is not None and tuple(pipeline.GRAPH_PASSES) != pipeline.OWN_PASSES


def _ids(nodes: Sequence[Node]) -> frozenset[int]:
    return frozenset(node.id for node in nodes)
