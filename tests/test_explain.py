"""`explain`: what every pass took and made, and why a program was specialised."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gx
from graphc.passes.pipeline import GRAPH_PASSES


def test_the_profile_names_every_pass() -> None:
    x = gx.placeholder("f32", ("n", 8), name="x")
    w = gx.Variable(np.ones((8, 3), np.float32), name="w")
    loss = gx.mean(gx.square(gx.tanh(x @ w)))
    explained = gx.explain([loss, w.assign_sub(gx.gradients(loss, w)[0])])
    profile = explained.profile
    wanted = ["resolve_state", "specialise", *[name for name, _ in GRAPH_PASSES]]
    assert list(profile.seconds) == [*wanted, "fuse", "lower", "schedule", "plan_memory"]
    assert all(s >= 0 for s in profile.seconds.values())
    assert profile.total == pytest.approx(sum(explained.seconds.values()))
    nodes = len(dict(explained.stages)["simplify"].order())
    assert profile.made["simplify"] == f"{nodes} nodes"
    assert profile.made["lower"] == f"{len(explained.plan.steps)} steps"
    assert f"{len(explained.plan.kernels)} distinct kernels" in profile.made["plan_memory"]
    text = str(explained).split("== time ==")[1]
    assert "simplify" in text and "total" in text
    assert explained.reasons == []


def test_compiling_is_profiled_when_asked_for() -> None:
    x = gx.placeholder("f32", ("n",), name="x")
    explained = gx.explain(gx.exp(x) * 1.2345, compile=True)
    assert {"emit", "llvm"} <= set(explained.profile.seconds)
    numbers = [int(w) for w in explained.profile.made["emit"].split() if w.isdigit()]
    assert sum(numbers) == len(explained.plan.kernels) == 1
    again = gx.explain(gx.exp(x) * 1.2345, compile=True)
    assert again.profile.made["emit"] == "0 kernels, 0 from the cache, 1 known before"


def test_why_a_program_was_specialised() -> None:
    x = gx.placeholder("f32", ("a",), name="x")
    y = gx.placeholder("f32", ("b",), name="y")
    z = x * y
    here = f"({z.op.loc})"
    assert gx.explain(z).reasons == [
        f"a meets b in multiply {here}: taken as equal",
        f"b meets a in multiply {here}: taken as equal",
    ]
    fed = gx.explain(z, {x: np.zeros(3), y: np.zeros(1)})
    assert fed.reasons == [
        f"a meets b in multiply {here}: equal as fed",
        f"b meets a in multiply {here}: b is 1 as fed, and repeated",
    ]
    assert "b is 1 as fed" in str(fed)
    with pytest.raises(gx.errors.ShapeError):
        gx.explain(z, {x: np.zeros(3), y: np.zeros(2)})


def test_why_a_rank_was_bound() -> None:
    x = gx.placeholder("f32", name="x")
    y = gx.sum(x)
    with pytest.raises(gx.errors.GraphTypeError, match="rank"):
        gx.explain(y)
    explained = gx.explain(y, {x: np.zeros((2, 3))})
    assert explained.reasons == [f"placeholder 'x' ({x.op.loc}) has the rank it was fed with, 2"]
