"""The debug mode: no false alarm on a right compiler, and planted faults found and located."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphc as gx
from graphc import cli
from graphc.backends.codegen.text import FunctionText, Loop
from graphc.debug import Report, check, trial
from tests.planted_faults import FAULTS, Fault
from tests.random_graphs import random_graph


def checked(seed: int, operations: int = 14) -> Report:
    """What a check of a random graph finds."""
    made = random_graph(seed, operations)
    with made.graph.as_default(), gx.Session(device="reference") as session:
        session.run(gx.global_variables_initializer())
        return check([*made.fetches, *[u.op for u in made.updates]], made.feeds, session)


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_are_right(seed: int) -> None:
    report = checked(seed)
    assert report.ok, f"seed {seed}\n{report}"


def small_lenet() -> tuple[list[object], dict[gx.Tensor, np.ndarray]]:
    """A step of training of a small convolutional network with dropout."""
    gx.set_random_seed(1)
    x = gx.placeholder("f32", ("batch", 14, 14, 1), name="x")
    labels = gx.placeholder("i64", ("batch",), name="labels")
    layers = gx.nn.layers
    h = layers.max_pool2d(layers.conv2d(x, 4, 3, activation=gx.nn.relu), 2)
    h = layers.batch_normalization(layers.conv2d(h, 6, 3, 1, 1), True)
    h = layers.dense(layers.flatten(h), 8, gx.nn.gelu)
    h = gx.nn.dropout(h, 0.3)
    logits = layers.dense(h, 10)
    losses = gx.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    loss = gx.mean(losses)
    step = gx.train.Adam(0.01).minimize(loss)
    rng = np.random.default_rng(0)
    feeds = {x: rng.normal(size=(3, 14, 14, 1)).astype("f4"), labels: np.array([1, 7, 3])}
    return [loss, step, *gx.get_collection(gx.GraphKeys.UPDATE_OPS)], feeds


@pytest.mark.no_cover
def test_training_is_right() -> None:
    fetches, feeds = small_lenet()
    with gx.Session(device="reference") as session:
        session.run(gx.global_variables_initializer())
        report = check(fetches, feeds, session, gradients=True)
    assert report.ok, report
    stages = [name for name, _ in report.stages]
    assert stages[:2] == ["resolve_state", "gradients"]
    assert stages[-2:] == ["codegen", "run"]
    assert str(report).endswith("everything agrees")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_planted_faults_are_found(fault: Fault) -> None:
    fetches, feeds = fault.case()
    with gx.Session(device="reference") as session:
        session.run(gx.global_variables_initializer())
        right = check(fetches, feeds, session, gradients=fault.gradients)
        assert right.ok, f"without the fault\n{right}"
        with fault.planted():
            report = check(fetches, feeds, session, gradients=fault.gradients)
    assert report.finding is not None, f"missed\n{report}"
    found = report.finding
    assert {found.stage, f"{found.stage}:{found.rule}"} & set(fault.where), str(found)


def test_there_are_fifty_faults() -> None:
    assert len({f.name for f in FAULTS}) == len(FAULTS) >= 50


def test_a_finding_names_rule_line_and_element() -> None:
    fault = next(f for f in FAULTS if f.name == "a_rule_with_a_wrong_sign")
    x = gx.placeholder("f32", (None,), name="x")
    y = gx.placeholder("f32", (None,), name="y")
    z = x - (-y)
    with gx.Session(device="reference") as session, fault.planted():
        report = gx.check(z, {x: [1.0, 2.0], y: [0.0, 5.0]}, session)
    text = str(report)
    assert "wrong in simplify, rule subtract_negative" in text
    assert "at index (1,) expected 7.0, got -3.0 (1 of 2 elements are wrong)" in text
    assert "test_debug.py" in text and "z = x - (-y)" in text


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
        np.testing.assert_array_equal(session.get_value(v), np.arange(6).reshape(2, 3))
        assert not np.array_equal(first, session.run(noisy, feeds))


def test_failing_runs_fail_in_every_form() -> None:
    i = gx.placeholder("i32", (None,), name="i")
    v = gx.Variable(np.zeros(3, np.int32))
    step = v.assign(gx.gather(gx.constant([5, 6, 7]), i))
    with gx.Session(device="reference") as session:
        session.run(gx.global_variables_initializer())
        report = gx.check(step, {i: [0, 1, 9]}, session)
    assert report.ok, report
    assert [name for name, _ in report.stages] == ["failing"]


def test_python_functions_are_called_with_what_they_declared() -> None:
    x = gx.placeholder("f32", (None,), name="x")

    def double(a: np.ndarray) -> np.ndarray:
        assert a.dtype == np.float32
        return 2 * a

    y = gx.py_op(double, [x * 3], "f32", shape=x.dims)
    with gx.Session(device="reference") as session:
        report = gx.check(gx.exp(y * 0.1) + x, {x: np.ones(4, np.float32)}, session)
    assert report.ok, report


def test_wrong_feeds_are_the_users_errors() -> None:
    x = gx.placeholder("f32", (3,), name="x")
    with gx.Session(device="reference") as session:
        with pytest.raises(gx.errors.FeedError, match="'x'"):
            gx.check(x * 2, {}, session)
        with pytest.raises(gx.errors.FeedError, match="shape"):
            gx.check(x * 2, {x: np.zeros(4)}, session)
    with pytest.raises(gx.errors.RunError, match="session"):
        gx.check(x * 2, {x: np.zeros(3)})


def test_a_kernel_that_never_ends_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gx.placeholder("f32", (None,), name="x")
    open_loop = FunctionText.open_loop

    def standing_still(
        f: FunctionText, start: object, stop: object, step: int, *rest: object
    ) -> Loop:
        return open_loop(f, start, stop, 0, *rest)

    monkeypatch.setattr(trial, "PATIENCE", 1.0)
    with gx.Session(device="reference") as session:
        monkeypatch.setattr(FunctionText, "open_loop", standing_still)
        report = gx.check(x + 1, {x: np.ones(9000, np.float32)}, session)
    assert report.finding is not None
    assert report.finding.stage == "codegen"
    assert "does not end within 1 seconds" in str(report.finding)


def test_the_command_checks_a_saved_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = gx.placeholder("f32", ("batch", 4), name="x")
    # not a softmax: its quotient cancels the planted factor, or not, as the weights happen to be
    y = gx.exp(gx.nn.layers.dense(x, 3, gx.tanh))
    path = tmp_path / "m.graphc"
    with gx.Session(device="reference") as session:
        session.run(gx.global_variables_initializer())
        gx.save_graph(path, session=session, signatures={"serve": ({"x": x}, {"y": y})})
    assert cli.main(["debug", str(path), "--size", "5", "--set", "batch=2", "--gradients"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("== serve ==\nresolve_state") and "everything agrees" in out
    fault = next(f for f in FAULTS if f.name == "a_coefficient_of_exp_is_wrong")
    with fault.planted():
        assert cli.main(["debug", str(path)]) == 1
    assert "wrong in codegen" in capsys.readouterr().out
    assert cli.main(["debug", str(tmp_path / "none.graphc")]) == 1
    assert "graphc debug: " in capsys.readouterr().err


def test_functions_can_be_checked() -> None:
    x = gx.placeholder("f32", (None, 3), name="x")
    v = gx.Variable(np.ones((3, 2), np.float32), name="v")
    ones = np.ones((4, 3), np.float32)
    f = gx.function([x], gx.tanh(x @ v), updates=[(v, v * 0.5)])
    report = gx.check(f, [ones])
    assert report.ok, report
    assert gx.check(f, {"x": ones}, gradients=True).ok
    np.testing.assert_array_equal(f.session.get_value(v), np.ones((3, 2)))
    fault = next(f for f in FAULTS if f.name == "subtraction_swaps_its_operands")
    g = gx.function([x], gx.exp(x) - x)
    with fault.planted():
        found = gx.check(g, [ones]).finding
    assert found is not None and found.stage == "codegen"


def test_a_debug_run_is_a_run_and_a_check() -> None:
    x = gx.placeholder("f32", (None,), name="x")
    v = gx.Variable(np.float32(1), name="v")
    options = gx.RunOptions(debug=True)
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        step = v.assign_add(gx.sum(x))
        assert session.run([x * 2, step], {x: [1.0, 2.0]}, options)[1] == 4
        fault = next(f for f in FAULTS if f.name == "a_rule_with_a_wrong_sign")
        with fault.planted(), pytest.raises(gx.errors.MiscompiledError, match="subtract_negative"):
            session.run([x - (-x), step], {x: [1.0, 2.0]}, options)
        assert session.run(v) == 4
        i = gx.placeholder("i32", (None,), name="i")
        with pytest.raises(gx.errors.IndexOutOfRangeError):
            session.run(gx.gather(x, i), {x: [1.0], i: [3]}, options)
