"""Lowering: equal groups share a kernel, and each is blamed for its own failures."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gx
from graphc.compiler import plan_cpu
from graphc.errors import IntegerDivisionError
from graphc.passes.resolve_state import resolve_state
from graphc.passes.specialise import bind_ranks, specialise, substitution


def divided() -> tuple[list[gx.Tensor], list[gx.Tensor], list[gx.Tensor]]:
    """Two equal reductions of checked quotients: operands, quotients in their order, sums."""
    a, b, c, d = (gx.placeholder("i32", (4,), name=name) for name in "abcd")
    p, q = 7 // a, 9 // b  # one line: a location does not tell these apart
    r = 7 // c
    s = 9 // d
    return [a, b, c, d], [p, q, r, s], [gx.sum(p * q), gx.sum(r * s)]


def test_equal_groups_share_a_kernel() -> None:
    fed, _, sums = divided()
    program = bind_ranks(resolve_state(tuple(sums), [], tuple(fed)), [1] * 4)
    plan, _ = plan_cpu(specialise(program, substitution((), ())))
    assert [step.kernel for step in plan.steps] == [0, 0]
    assert len(plan.kernels) == 1
    assert [len({loc.line for loc in step.locs}) for step in plan.steps] == [2, 3]


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("wrong", range(4))
def test_each_group_is_blamed_for_its_own_failure(wrong: int, device: str) -> None:
    fed, quotients, sums = divided()
    feeds = {t: np.ones(4, np.int32) for t in fed}
    with gx.Session(device=device) as session:
        assert session.run(sums, feeds) == [4 * 63, 4 * 63]
        feeds[fed[wrong]][2] = 0
        loc = quotients[wrong].node.loc
        with pytest.raises(IntegerDivisionError) as caught:
            session.run(sums, feeds)
    assert str(caught.value) == (
        f"floor_divide: integer division by zero\n  at {loc}   {loc.source}"
    )
