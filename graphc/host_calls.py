"""Programs with Python functions in them: compiled parts, with the calls in between.

    before:  %a = mul(%x, 2)   %b = py_op(%a)   %c = add(%a, %b)      fetch %c
    after:   part 0: fetch %a      call %b      part 1: inputs %a, %b; fetch add(%a, %b)

Only the last part writes variables, so a failing function changes nothing.
Imports: program, graph, ops.host, backends.base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc.backends.base import Executable, Residence
from graphc.builder import Builder, making_nodes_in
from graphc.dims import Sizes
from graphc.errors import RunError
from graphc.node import Node, Tensor
from graphc.ops.host import host_op
from graphc.ops.state import placeholder_op
from graphc.program import Program, evaluate_attrs, keep
from graphc.trace import Trace

Array = np.ndarray[Any, Any]
Compiler = Callable[[Program], tuple[Executable, Program]]


def has_host_calls(program: Program) -> bool:
    """Whether the program calls Python functions."""
    return any(node.op is host_op for node in program.order())


def compile_parts(program: Program, compiler: Compiler) -> tuple[Executable, Program]:
    """An executable that runs the program's parts one after another."""
    stages = _stages(program)
    last = max(stages.values())
    calls: list[list[Node]] = [[] for _ in range(last + 1)]
    for node in program.order():
        if node.op is host_op:
            calls[stages[node.id] - 1].append(node)
    parts = []
    for stage in range(last + 1):
        given, wanted = _border(program, stages, stage, last)
        updates = program.updates if stage == last else ()
        executable, lowered = compiler(_part(given, wanted, updates))
        parts.append(_Part(given, wanted, calls[stage], executable, lowered.variables()))
    return PartsExecutable(program, parts), program


def _stages(program: Program) -> dict[int, int]:
    """node id -> how many calls must have been made before it; leaves belong to every stage."""
    stages: dict[int, int] = {t.node.id: 0 for t in program.inputs}
    for node in program.order():
        if node.id not in stages:
            before = max((stages[t.node.id] for t in node.inputs), default=0)
            stages[node.id] = before + (node.op is host_op)
    return stages


def _border(
    program: Program, stages: dict[int, int], stage: int, last: int
) -> tuple[list[Tensor], list[Tensor]]:
    """What a part is given, and what it makes that calls or later parts need."""
    fed = {id(t) for t in program.inputs}
    given: dict[Tensor, None] = {}
    wanted: dict[Tensor, None] = {}

    def use(t: Tensor, by: int) -> None:
        """Note that `t` is used in part `by`, or by a call after it."""
        arrives = id(t) in fed or t.node.op is host_op
        if not arrives and not t.node.inputs:
            return  # a constant or a variable: every part has its own
        made = stages[t.node.id]
        if by == stage and (arrives or made < by):
            given[t] = None
        if made == stage < by and not arrives:
            wanted[t] = None

    for node in program.order():
        calls = node.op is host_op
        by = stages[node.id] - calls
        for t in node.inputs:
            use(t, by)
            if calls and by == stage:
                wanted[t] = None
    for t in program.roots:
        use(t, last)
    return list(given), list(program.fetches if stage == last else wanted)


def _part(
    given: Sequence[Tensor], wanted: Sequence[Tensor], updates: tuple[tuple[Tensor, Tensor], ...]
) -> Program:
    """The program of one part: what it is given becomes its inputs."""
    builder = Builder()
    new: dict[int, Tensor] = {}
    for t in given:
        builder.loc = t.node.loc
        attrs = {"dtype": t.dtype, "shape": t.dims}
        node = builder.make(placeholder_op, (), attrs, t.node.name or "value")
        new[id(t)] = node.outputs[0]
    inputs = tuple(new.values())
    roots = [*wanted, *(value for _, value in updates)]
    with making_nodes_in(builder):
        for node in Program((), tuple(roots)).order():
            if node.op is host_op or all(id(t) in new for t in node.outputs):
                continue
            if not all(id(t) in new for t in node.inputs):
                continue  # only what an earlier part has made needs it
            builder.loc = node.loc
            made = keep(node, [new[id(t)] for t in node.inputs], builder)
            new.update((id(a), b) for a, b in zip(node.outputs, made, strict=True))
    return Program(
        inputs,
        tuple(new[id(t)] for t in wanted),
        tuple((v, new[id(value)]) for v, value in updates),
    )


@dataclass(frozen=True)
class _Part:
    given: list[Tensor]
    wanted: list[Tensor]
    calls: list[Node]  # made after the part has run
    executable: Executable
    variables: tuple[Tensor, ...]


class PartsExecutable:
    """Compiled parts with calls between them; see backends.base.Executable."""

    kept = ()

    def __init__(self, program: Program, parts: Sequence[_Part]) -> None:
        self.program = program
        self.parts = tuple(parts)
        self._variables = program.variables()

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
        stored = {v.node.id: a for v, a in zip(self._variables, state, strict=True)}
        values = {id(t): a for t, a in zip(self.program.inputs, inputs, strict=True)}
        results: list[Array] = []
        for part in self.parts:
            given = [values[id(t)] for t in part.given]
            own = [stored[v.node.id] for v in part.variables]
            results = part.executable.run(given, own, sizes, threads, trace, deadline)
            values.update((id(t), a) for t, a in zip(part.wanted, results, strict=True))
            for node in part.calls:
                made = _call(node, [values[id(t)] for t in node.inputs], sizes)
                values.update((id(t), a) for t, a in zip(node.outputs, made, strict=True))
        return results

    @property
    def residence(self) -> Residence | None:
        """Where the parts leave variables; they are all of one device."""
        return self.parts[-1].executable.residence

    def arena_bytes(self, sizes: Sizes) -> int:
        """The scratch memory of the largest part."""
        return max(part.executable.arena_bytes(sizes) for part in self.parts)


def _call(node: Node, arrays: Sequence[Array], sizes: Sizes) -> tuple[Array, ...]:
    assert node.op.reference is not None
    try:
        made = node.op.reference(evaluate_attrs(node.attrs, sizes), *map(np.asarray, arrays))
    except RunError as error:
        where = f"\n  at {node.loc}   {node.loc.source}"
        raise type(error)(f"{node.op.name}: {error}{where}") from error.__cause__
    return made if isinstance(made, tuple) else (made,)
