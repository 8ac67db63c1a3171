"""Every operator, from the registry: values, dtypes, shapes, loops and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from operator_checks import (
    DEVICES,
    all_calls,
    check_complete,
    check_device,
    check_gradient,
    check_inference,
    check_loops,
    check_shapes,
    sampled_records,
)

import graphc as gx
from graphc.node import OPS, Op
from graphc.ops.check import assert_true
from graphc.ops.define import NOT_DIFFERENTIABLE, elementwise
from graphc.ops.state import ensure_shape
from graphc.types import FLOATS

RECORDS = sampled_records()
DIFFERENTIABLE = [r for r in RECORDS if r.vjp is not None and r.samples.gradient]
LOOPS = [r for r in RECORDS if r.kind in ("elementwise", "nest")]


def _named(records: list[Op]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("record", records, ids=[r.name for r in records])


@_named(RECORDS)
def test_reference_gives_the_inferred_types(record: Op) -> None:
    check_inference(record)


@_named(RECORDS)
def test_cpu_agrees_with_the_reference(record: Op) -> None:
    check_device(record, "cpu")


@pytest.mark.parametrize("device", DEVICES)
@_named(RECORDS)
def test_values_do_not_depend_on_what_is_known_of_shapes(record: Op, device: str) -> None:
    check_shapes(record, device)


@pytest.mark.parametrize("device", DEVICES)
@_named(DIFFERENTIABLE)
def test_gradients_of_first_and_second_order(record: Op, device: str) -> None:
    check_gradient(record, device)


@_named(LOOPS)
def test_loops_interpreted_agree_with_the_reference(record: Op) -> None:
    check_loops(record)


# ---- operators that no function makes from operands alone --------------------------------------


def _asserted() -> tuple[list[gx.Tensor], dict[gx.Tensor, object]]:
    x = gx.placeholder("f32", (None,))
    return [assert_true(gx.greater(x, 0)), gx.add(x, 1)], {x: [1, 2, 3]}


def _defaulted() -> tuple[list[gx.Tensor], dict[gx.Tensor, object]]:
    x = gx.placeholder("f32", (3,))
    y = gx.placeholder_with_default(gx.multiply(x, 2), (3,))
    return [y, *gx.gradients(gx.multiply(y, y), x)], {x: [1, 2, 3]}


def _ensured() -> tuple[list[gx.Tensor], dict[gx.Tensor, object]]:
    x = gx.placeholder("f32", None)
    y = ensure_shape(x, (2, 3))
    return [y, *gx.gradients(gx.multiply(y, y), x)], {x: [[1, 2, 3], [4, 5, 6]]}


OTHERS = {
    "assert_true": _asserted,
    "placeholder_with_default": _defaulted,
    "ensure_shape": _ensured,
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_operators_of_other_forms(name: str) -> None:
    graph = gx.Graph()
    with graph.as_default():
        fetches, feeds = OTHERS[name]()
    assert name in {n.op.name for n in graph.nodes}
    results = []
    for device in DEVICES:
        with gx.Session(graph, device=device) as session:
            results.append(session.run(fetches, feeds))
    for actual, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(actual, wanted)


# ---- completeness ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reached() -> set[str]:
    """The operators that appear in the graphs of the samples and of their gradients."""
    names: set[str] = set(OTHERS)
    for record in RECORDS:
        graph = gx.Graph(seed=7)
        with graph.as_default():
            for call in all_calls(record, edges=False):
                ys = [y for y in call.outputs if y.dtype.is_float]
                xs = [x for x in call.inputs if x.dtype.is_float]
                if ys and xs and record.vjp is not None:
                    gx.gradients(ys, xs)
        names |= {n.op.name for n in graph.nodes}
    return names


@_named(list(OPS.values()))
def test_every_operator_is_complete(record: Op, reached: set[str]) -> None:
    check_complete(record, lambda r: r.name in reached)


# ---- the checks can fail -----------------------------------------------------------------------


@pytest.fixture
def registry() -> Iterator[None]:
    """Take away what a test registers."""
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


def _cube(name: str, **changes: object) -> Op:
    parts: dict[str, object] = {
        "scalar": lambda s, x: x * x * x,
        "reference": lambda x: x * x * x,
        "vjp": lambda y, g, x: [g * x * x * 3],
        "dtypes": FLOATS,
    }
    elementwise(name, **{**parts, **changes})  # type: ignore[arg-type]
    return OPS[name]


def test_a_right_operator_passes(registry: None) -> None:
    record = _cube("right_cube")
    check_inference(record)
    check_gradient(record)
    check_loops(record)
    check_shapes(record, "reference")
    check_complete(record, lambda r: False)


def test_a_wrong_gradient_is_caught(registry: None) -> None:
    record = _cube("wrong_gradient", vjp=lambda y, g, x: [g * x * x * 3.001])
    with pytest.raises(AssertionError, match="derivative of order 1"):
        check_gradient(record)


def test_a_wrong_second_derivative_is_caught(registry: None) -> None:
    def vjp(y: gx.Tensor, g: gx.Tensor, x: gx.Tensor) -> list[gx.Tensor]:
        held = gx.stop_gradient(x)
        return [gx.multiply(g, gx.multiply(gx.multiply(held, x), 3.0))]

    record = _cube("wrong_second_gradient", vjp=vjp)
    check_gradient(record, orders=(1,))
    with pytest.raises(AssertionError, match="derivative of order 2"):
        check_gradient(record)


def test_a_missing_gradient_is_caught(registry: None) -> None:
    record = _cube("missing_gradient", vjp=lambda y, g, x: [None])
    with pytest.raises(AssertionError, match="derivative of order 1"):
        check_gradient(record)


def test_a_wrong_scalar_body_is_caught(registry: None) -> None:
    record = _cube("wrong_body", scalar=lambda s, x: x * x * x + 1e-3)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_loops(record)


def test_a_body_of_another_dtype_is_caught(registry: None) -> None:
    record = _cube("wrong_body_dtype", scalar=lambda s, x: s.lt(x, 0))
    with pytest.raises(AssertionError, match="the body of wrong_body_dtype gives bool"):
        check_loops(record)


def test_a_reference_of_another_dtype_is_caught(registry: None) -> None:
    record = _cube("wrong_reference", reference=lambda x: (x * x * x).astype(np.float64))
    with pytest.raises(AssertionError, match="the reference of wrong_reference gave float64"):
        check_inference(record)


def test_an_incomplete_operator_is_caught(registry: None) -> None:
    record = _cube("no_samples", vjp=NOT_DIFFERENTIABLE)
    object.__setattr__(record, "samples", None)
    with pytest.raises(AssertionError, match="no_samples: no samples"):
        check_complete(record, lambda r: False)
