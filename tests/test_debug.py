"""The debug mode: no false alarm on a right compiler, and planted faults found and located."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gx
from graphc.debug import Report, check
from tests.random_graphs import random_graph


def checked(seed: int, operations: int = 14) -> Report:
    """What a check of a random graph finds."""
    made = random_graph(seed, operations)
    with made.graph.as_default(), gx.Session() as session:
        session.run(gx.global_variables_initializer())
        return check([*made.fetches, *[u.op for u in made.updates]], made.feeds, session)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_are_right(seed: int) -> None:
    report = checked(seed)
    assert report.ok, f"seed {seed}\n{report}"


def test_a_check_changes_no_state() -> None:
    gx.set_random_seed(3)
    v = gx.Variable(np.arange(6, dtype=np.float32).reshape(2, 3))
    x = gx.placeholder("f32", (None, 3), name="x")
    noisy = x + gx.random.normal((3,))
    step = v.assign_add(noisy[:2])
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        feeds = {x: np.ones((4, 3), np.float32)}
        first = session.run(noisy, feeds)
        report = gx.check([noisy, step], feeds, session)
        assert report.ok, report
        assert report.stages[0][0] == "resolve_state"
        np.testing.assert_array_equal(session.get_value(v), np.arange(6).reshape(2, 3))
        again = session.run(noisy, feeds)
        assert not np.array_equal(first, again)
