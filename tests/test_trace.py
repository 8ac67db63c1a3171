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


# ---- work --------------------------------------------------------------------------------------


def traced(fetches: object, feeds: dict[gx.Tensor, np.ndarray]) -> gx.Trace:
    """The trace of one run."""
    trace = gx.Trace(roofline=gx.Roofline(flops=1e9, bandwidth=1e9))
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        session.run(fetches, feeds, gx.RunOptions(trace=trace))
    return trace


def test_the_work_of_a_product() -> None:
    x = gx.placeholder("f32", ("m", 20), name="x")
    w = gx.Variable(np.ones((20, 7), np.float32), name="w")
    trace = traced(gx.nn.relu(x @ w), {x: np.ones((30, 20), np.float32)})
    (event,) = trace.events
    assert event.flops == 2 * 30 * 20 * 7 + (30 * 7)  # relu is one operation on each result
    assert event.bytes == 4 * (30 * 20 + 20 * 7 + 30 * 7)
    (row,) = trace.by_kernel()
    assert row.steps == 1 and row.share == pytest.approx(1)
    seconds = max(event.flops, event.bytes) / 1e9
    assert row.fraction == pytest.approx(seconds / event.seconds)


def test_padding_is_no_work() -> None:
    x = gx.placeholder("f32", (2, 5, 5, 3), name="x")
    w = gx.Variable(np.ones((3, 3, 3, 4), np.float32), name="w")
    trace = traced(gx.nn.conv2d(x, w, 1, "SAME"), {x: np.ones((2, 5, 5, 3), np.float32)})
    along = 5 + 4 + 4  # of 5 * 3 positions of a window along one side
    assert sum(e.flops for e in trace.events) == 2 * 2 * along * along * 3 * 4
    assert sum(e.bytes for e in trace.events) == 4 * (2 * 25 * 3 + 9 * 3 * 4 + 2 * 25 * 4)


def test_a_repeated_element_counts_once() -> None:
    x = gx.placeholder("f32", ("n", 6), name="x")
    y = x - gx.mean(x, axis=1, keepdims=True)
    trace = traced(y, {x: np.ones((50, 6), np.float32)})
    assert sum(e.bytes for e in trace.events) == 4 * (50 * 6 + 50 * 6)
    # a sum over each row, one division a row, a subtraction each
    assert sum(e.flops for e in trace.events) == 50 * 6 + 50 + 50 * 6


def test_tables_add_up() -> None:
    x = gx.placeholder("f32", (None, 40), name="x")
    v = gx.Variable(np.ones((40, 30), np.float32), name="v")
    loss = gx.mean(gx.nn.softmax(x @ v) ** 2)
    update = v.assign_sub(gx.gradients(loss, v)[0])
    trace = traced([loss, update], {x: np.ones((9, 40), np.float32)})
    for table in (trace.by_kernel(), trace.by_op(), trace.by_line()):
        assert sum(r.seconds for r in table) == pytest.approx(trace.seconds)
        assert sum(r.flops for r in table) == pytest.approx(sum(e.flops for e in trace.events))
        assert sum(r.steps for r in table) == pytest.approx(len(trace.events))
        assert [r.seconds for r in table] == sorted((r.seconds for r in table), reverse=True)
    assert any(r.name.startswith("test_trace.py") for r in trace.by_line())
    assert {"matmul", "exp", "sum"} <= {r.name for r in trace.by_op()}
    assert "GFLOP/s" in str(trace.by_op())
    arguments = trace.chrome_trace()["traceEvents"][0]["args"]
    assert {"flops", "bytes", "kernel", "roofline", "lines"} <= set(arguments)


def test_the_roofline_is_measured_once() -> None:
    roofline = gx.measure_roofline()
    assert roofline is gx.measure_roofline()
    assert 1e8 < roofline.bandwidth < 1e13
    assert 1e8 < roofline.flops < 1e13
    assert roofline.seconds(roofline.flops, 0) == pytest.approx(1)
    assert gx.Trace().fraction(1, 1, 1) is None
