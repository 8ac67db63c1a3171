"""Random graphs: every pipeline and every back end computes the same values.

A failure names its seed: `random_graph(seed)` makes the same graph again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import feeds
from graphc.backends.reference import interpret
from graphc.compiler import plan_cpu
from graphc.kernel import Contraction
from graphc.passes import fuse
from graphc.passes.pipeline import GRAPH_PASSES, optimize
from graphc.passes.resolve_state import resolve_state
from graphc.passes.specialise import (
    bind_ranks,
    broadcast_outcomes,
    specialise,
    substitution,
    unknown_broadcasts,
)
from graphc.plan import BufferUse, Plan
from graphc.program import Program
from graphc.text import parse_program, store_program
from graphc.verify import verify
from tests.random_graphs import RandomGraph, random_graph

Array = np.ndarray[Any, Any]

SEEDS = range(40)
REGRESSIONS = (1234, 1245)
"""1234: an operand of a product that its epilogue reads; 1245: ensure_shape below a reshape."""

TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


def run(made: RandomGraph, device: str, threads: int = 1) -> list[Array]:
    """The fetches, then the variables after one run."""
    with made.graph.as_default(), gx.Session(device=device, threads=threads) as session:
        session.run(gx.global_variables_initializer())
        targets = [u.op for u in made.updates]
        fetched = session.run([*made.fetches, *targets], made.feeds)[: len(made.fetches)]
        return [*fetched, *[session.get_value(v) for v in made.variables]]


def assert_same(found: Sequence[Array], wanted: Sequence[Array], label: str) -> None:
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(a, b, **TOLERANCE, err_msg=f"{label}, value {i}")


def specialised(made: RandomGraph) -> tuple[Program, list[Array], dict[Any, int]]:
    """The program as the passes get it, the arrays fed, and the sizes."""
    fed = tuple(made.feeds)
    arrays = [np.asarray(made.feeds[t]) for t in fed]
    program = resolve_state(made.fetches, [u.op for u in made.updates], fed)
    program = bind_ranks(program, [a.ndim for a in arrays])
    sizes = feeds.bind_sizes(program.inputs, tuple(a.shape for a in arrays))
    atoms = unknown_broadcasts(program)
    outcome = broadcast_outcomes(atoms, sizes)
    return specialise(program, substitution(atoms, outcome)), arrays, sizes


def initial_state(made: RandomGraph) -> dict[int, Array]:
    with made.graph.as_default(), gx.Session(device="reference") as session:
        session.run(gx.global_variables_initializer())
        return {v.node.id: session.get_value(v) for v in made.variables}


@pytest.mark.parametrize("seed", SEEDS)
def test_back_ends_agree(seed: int) -> None:
    made = random_graph(seed)
    wanted = run(made, "reference")
    one = run(made, "cpu", threads=1)
    assert_same(one, wanted, f"seed {seed}, cpu")
    for a, b in zip(run(made, "cpu", threads=2), one, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=f"seed {seed}: 2 threads, other bits")


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_graphs_that_failed_once(seed: int) -> None:
    made = random_graph(seed, 30)
    assert_same(run(made, "cpu"), run(made, "reference"), f"seed {seed}")


@pytest.mark.parametrize("seed", SEEDS[:12])
def test_unfused_agrees(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = run(random_graph(seed), "reference")
    monkeypatch.setattr(fuse, "MAX_MEMBERS", 1)
    assert_same(run(random_graph(seed), "cpu"), wanted, f"seed {seed}, unfused")


@pytest.mark.parametrize("seed", SEEDS)
def test_passes_keep_values_and_verify(seed: int) -> None:
    made = random_graph(seed)
    program, arrays, sizes = specialised(made)
    state = initial_state(made)
    wanted, wanted_updates = interpret(program, arrays, state, sizes)
    verify(program)
    for name, graph_pass in GRAPH_PASSES:
        program = graph_pass(program)
        verify(program, after=name)
        found, updates = interpret(program, arrays, state, sizes)
        assert_same([*found, *updates], [*wanted, *wanted_updates], f"seed {seed}, after {name}")


@pytest.mark.parametrize("seed", SEEDS)
def test_printed_programs_parse(seed: int) -> None:
    program, _, _ = specialised(random_graph(seed))
    for subject in (program, optimize(program)):
        text, constants = store_program(subject)
        again, more = store_program(parse_program(text, constants))
        assert again == text
        assert set(more) == set(constants)


# ---- the memory plan ---------------------------------------------------------------------------


def overlaps(buffers: Sequence[BufferUse]) -> list[tuple[str, str]]:
    """Pairs of buffers that share a slot while both are alive."""
    by_slot: dict[int, list[BufferUse]] = {}
    for b in buffers:
        by_slot.setdefault(b.slot, []).append(b)
    found = []
    for shared in by_slot.values():
        shared.sort(key=lambda b: (b.first, b.last))
        for i, a in enumerate(shared):
            for b in shared[i + 1 :]:
                takes_over = b.in_place_of == a.name and a.last == b.first
                if b.first <= a.last and not takes_over:
                    found.append((a.name, b.name))
    return found


@pytest.mark.parametrize("seed", SEEDS[:20])
def test_buffers_alive_together_do_not_overlap(seed: int) -> None:
    program, _, _ = specialised(random_graph(seed, 25))
    plan, _ = plan_cpu(program)
    assert overlaps(plan.buffers) == [], f"seed {seed}"


def overwritten_operands(plan: Plan) -> list[str]:
    """Steps whose product writes memory that it reads an operand from."""
    found = []
    for step in plan.steps:
        written = {step.args[j] for j in step.writes}
        product = isinstance(plan.kernels[step.kernel], Contraction)
        if product and written & set(step.args[:2]):
            found.append(step.label)
    return found


@pytest.mark.parametrize("seed", [*SEEDS[:20], *REGRESSIONS])
def test_products_do_not_overwrite_their_operands(seed: int) -> None:
    program, _, _ = specialised(random_graph(seed, 30))
    plan, _ = plan_cpu(program)
    assert overwritten_operands(plan) == [], f"seed {seed}"


def test_an_overlap_is_caught() -> None:
    """The check above sees a plan in which two buffers alive together share their slot."""
    for seed in SEEDS:
        program, _, _ = specialised(random_graph(seed, 25))
        plan, _ = plan_cpu(program)
        merged = [replace(b, slot=0) for b in plan.buffers]
        if len({b.slot for b in plan.buffers}) > 1:
            assert overlaps(merged), f"seed {seed}"
            return
    raise AssertionError("no plan with two slots")
