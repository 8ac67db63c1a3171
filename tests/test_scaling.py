"""The work of building, differentiating and planning grows in proportion to the graph.

Counted, not timed: calls of Python and built-in functions at one size and at twice that size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import dims, train
from graphc.compiler import blocks_of
from graphc.node import Tensor
from graphc.passes.fuse import fuse
from graphc.passes.lower import lower
from graphc.passes.pipeline import optimize
from graphc.passes.plan_memory import plan_memory
from graphc.passes.resolve_state import resolve_state
from graphc.passes.schedule import schedule
from graphc.passes.specialise import specialise

Roots = tuple[list[Tensor], list[Any], list[Tensor]]
"""Fetches, targets and placeholders."""


def _x() -> Tensor:
    return gx.placeholder("f32", ("batch", 4), name="x")


def deep_chain(n: int) -> Roots:
    x = h = _x()
    for _ in range(n):
        h = gx.tanh(h) * 1.5
    return [h, *gx.gradients(gx.sum(h), [x])], [], [x]


def second_order(n: int) -> Roots:
    x = h = _x()
    for _ in range(n):
        h = gx.tanh(h)
    (first,) = gx.gradients(gx.sum(h), [x])
    return gx.gradients(gx.sum(first), [x]), [], [x]


def fan_in(n: int) -> Roots:
    x = _x()
    h = gx.concat([x * float(i) for i in range(n)], 1)
    return [h, *gx.gradients(gx.sum(gx.square(h)), [x])], [], [x]


def fan_out(n: int) -> Roots:
    x = _x()
    y = gx.tanh(x)
    return [gx.sum(y * float(i)) for i in range(n)], [], [x]


def many_variables(n: int) -> Roots:
    variables = [gx.Variable(np.ones(4, np.float32)) for _ in range(n)]
    loss = gx.sum(gx.add_n([gx.square(v - 1.0) for v in variables]))
    return [loss], [train.Adam(0.1).minimize(loss)], []


def ordered_updates(n: int) -> Roots:
    graph = gx.get_default_graph()
    variables = [gx.Variable(np.ones(4, np.float32)) for _ in range(n)]
    first = [v.assign_add(np.ones(4, np.float32)) for v in variables]
    with graph.control_dependencies(first):
        second = gx.group(*[v.assign(v.current() * 2.0) for v in variables])
    return [], [second], []


def compiled(make: Callable[[int], Roots], n: int) -> None:
    """From nothing to the plan."""
    gx.reset_default_graph()
    fetches, targets, inputs = make(n)
    program = specialise(resolve_state(fetches, targets, inputs), {})
    fusion = fuse(optimize(program))
    plan_memory(fusion, schedule(fusion, lower(fusion)), blocks_of)


def calls(run: Callable[..., None], *args: Any) -> int:
    """How many functions are called."""
    found = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        run(*args)
    finally:
        sys.setprofile(before)
    return found


@pytest.mark.parametrize(
    ("make", "n"),
    [
        (deep_chain, 50),
        (second_order, 25),
        (fan_in, 50),
        (fan_out, 50),
        (many_variables, 40),
        (ordered_updates, 120),
    ],
)
def test_work_is_in_proportion(make: Callable[[int], Roots], n: int) -> None:
    compiled(make, 10)  # what is imported and remembered once
    small, large = calls(compiled, make, n), calls(compiled, make, 2 * n)
    assert large < 2.4 * small


def test_nodes_of_a_block_share_what_they_wait_for() -> None:
    graph = gx.get_default_graph()
    v = gx.Variable(np.ones(2, np.float32))
    with graph.control_dependencies([v.assign_add([1.0, 1.0]), v.assign_add([2.0, 2.0])]):
        made = [gx.tanh(v.read_value()) for _ in range(3)]
    assert len({id(t.op.control) for t in made}) == 1
    assert len(made[0].op.control) == 2


def test_reads_behind_some_of_many_assignments() -> None:
    graph = gx.get_default_graph()
    v = gx.Variable(np.zeros(2, np.float32), name="v")
    w = gx.Variable(np.zeros(2, np.float32), name="w")
    first = v.assign_add([1.0, 1.0])
    other = w.assign([5.0, 5.0])
    second = v.assign_add([2.0, 2.0])
    reads = []
    for behind in ([first], [other], [second], [first, other], []):
        with graph.control_dependencies(behind):
            reads += [v.read_value(), w.read_value()]
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        values = [float(a[0]) for a in session.run([*reads, first, other, second])]
    # assignments take effect in the order they were made; a read sees those it is ordered behind
    assert values[:10] == [1.0, 0.0, 0.0, 5.0, 3.0, 0.0, 1.0, 5.0, 0.0, 0.0]


def test_sizes_made_of_sizes() -> None:
    size: dims.DimLike = dims.symbol("long")
    for _ in range(100):
        size = dims.add(dims.minimum(1, size), dims.maximum(dims.add(size, -1), 0))
    (atom,) = dims.atoms(size)
    assert dims.evaluate(size, {atom: 7}) == 7
    assert dims.evaluate(size, {atom: 0}) == 0
    assert dims.substitute(size, {atom: 7}) == 7
    assert len(dims.dim_text(size)) < 100_000


def test_tensors_rolled_by_one_again_and_again() -> None:
    x = h = gx.placeholder("f32", (None,), name="x")
    for _ in range(25):  # sizes max(n - 1, 0) + min(1, n), 25 times within each other
        h = gx.concat([h[1:], h[:1]], 0)
    assert h.shape == (None,)
    with gx.Session() as session:
        found = session.run(h, {x: np.arange(4, dtype=np.float32)})
    assert found.tolist() == [1.0, 2.0, 3.0, 0.0]


def test_a_long_chain_of_views() -> None:
    x = h = gx.placeholder("f32", (3, 3), name="x")
    for _ in range(1500):
        h = gx.transpose(gx.flip(h, 0))
    value = np.arange(9, dtype=np.float32).reshape(3, 3)
    with gx.Session() as session:
        np.testing.assert_array_equal(session.run(h, {x: value}), value)


def test_arithmetic_on_shapes_is_followed_however_deep() -> None:
    n = gx.size(gx.placeholder("f32", ("n",), name="y"))
    for _ in range(1500):
        n = n + n - n
    x = gx.placeholder("f32", (None,), name="x")
    assert gx.reshape(x, [n]).shape == ("n",)
