"""Traced runs: every step is timed, the results are the same bits, failures change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import graphc as gx

DEVICES = ["reference", "cpu"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_trace_names_every_step(device: str, tmp_path: Path) -> None:
    x = gx.placeholder("f32", (None, 40), name="x")
    v = gx.Variable(np.ones((40, 30), np.float32), name="v")
    y = gx.nn.softmax(x @ v)
    update = v.assign_sub(gx.gradients(gx.sum(y * y), v)[0])
    value = np.random.default_rng(0).standard_normal((17, 40), np.float32)
    bits = []
    for traced in (False, True):
        session = gx.Session(device=device)
        session.run(gx.global_variables_initializer())
        trace = gx.Trace()
        options = gx.RunOptions(trace=trace if traced else None)
        bits.append(session.run([y, update], {x: value}, options))
        assert bool(trace.events) == traced
    for a, b in zip(*bits, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any("matmul" in e.label for e in trace.events)
    assert any("test_trace.py" in str(loc) for e in trace.events for loc in e.locs)
    assert "matmul" in trace.table()
    assert trace.seconds > 0
    trace.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len(events) == len(trace.events)


@pytest.mark.parametrize("device", DEVICES)
def test_a_failing_traced_run_changes_nothing(device: str) -> None:
    i = gx.placeholder("i32", (None,), name="i")
    v = gx.Variable(np.zeros(3, np.int32))
    step = v.assign(gx.gather(gx.constant([5, 6, 7]), i))
    session = gx.Session(device=device)
    session.run(gx.global_variables_initializer())
    with pytest.raises(gx.errors.IndexOutOfRangeError):
        session.run(step, {i: [0, 1, 9]}, gx.RunOptions(trace=gx.Trace()))
    np.testing.assert_array_equal(session.get_value(v), [0, 0, 0])
    session.run(step, {i: [2, 1, 0]}, gx.RunOptions(trace=gx.Trace()))
    np.testing.assert_array_equal(session.get_value(v), [7, 6, 5])
