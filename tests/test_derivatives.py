"""Derivatives in Theano's words, gradient barriers, and gradients of the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.custom import (
    custom_gradient,
    disconnected_grad,
    grad_clip,
    grad_scale,
    gradient_override,
    zero_grad,
)
from graphc.derivatives import grad, hessian, jacobian, subgraph_grad
from graphc.errors import GradientError
from graphc.function import function
from graphc.ops.activation import relu

DEVICES = ("reference", "cpu")


@pytest.fixture(autouse=True)
def fresh_graph() -> Iterator[None]:
    gx.reset_default_graph()
    yield
    gx.reset_default_graph()


@pytest.fixture(params=DEVICES)
def session(request: pytest.FixtureRequest) -> Iterator[gx.Session]:
    """A default session on each device; functions run in it."""
    with gx.Session(device=request.param) as s:
        yield s


def scalar(name: str, dtype: str = "f32") -> gx.Tensor:
    return gx.placeholder(dtype, (), name=name)


def vector(name: str, dtype: str = "f32") -> gx.Tensor:
    return gx.placeholder(dtype, (None,), name=name)


def test_grad_of_a_scalar_cost(session: gx.Session) -> None:
    x, y = vector("x"), vector("y")
    g = grad(gx.sum(x * x), x)
    np.testing.assert_array_equal(function([x], g)([1, 2]), [2, 4])
    with pytest.raises(TypeError, match="must be a scalar"):
        grad(x * x, x)
    with pytest.raises(ValueError, match="does not depend on placeholder 'y'"):
        grad(gx.sum(x), [x, y])
    with pytest.warns(UserWarning, match="does not depend"):
        grad(gx.sum(x), y, disconnected_inputs="warn")
    zero = grad(gx.sum(x), y, disconnected_inputs="ignore")
    np.testing.assert_array_equal(function([y], zero)([1, 2]), [0, 0])
    ignore = {"disconnected_inputs": "ignore", "return_disconnected": "none"}
    assert grad(gx.sum(x), y, **ignore) is None  # type: ignore[arg-type]


def test_known_grads_and_subgraph_grad(session: gx.Session) -> None:
    x = scalar("x")
    h = x * x
    y = h * 3
    assert function([x], grad(None, x, known_grads={h: 10.0}))(2) == 40
    outer = subgraph_grad([], [h], cost=y)[1]
    inner = subgraph_grad([x], [], start={h: outer[0]})[0]
    assert function([x], inner[0])(2) == function([x], grad(y, x))(2) == 12
    assert function([x], grad(h * x, x, consider_constant=[h]))(3) == 9


def test_gradient_barriers(session: gx.Session) -> None:
    x = vector("x")
    forward = [zero_grad(x), disconnected_grad(x), grad_clip(x, -1, 1), grad_scale(x, 3.0)]
    for y in function([x], forward)([1, 2]):
        np.testing.assert_array_equal(y, [1, 2])
    scaled = [grad(gx.sum(t * x * 5), x) for t in forward]
    want = [[5, 10], [5, 10], [6, 11], [20, 40]]
    for got, expected in zip(function([x], scaled)([1, 2]), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(function([x], grad(gx.sum(zero_grad(x)), x))([1, 2]), [0, 0])
    assert gx.gradients(disconnected_grad(x), x) == [None]


def test_jacobian_and_hessian(session: gx.Session) -> None:
    x = gx.placeholder("f64", (2,), name="x")
    w = gx.placeholder("f64", (3, 2), name="w")
    y = gx.matmul(w, gx.reshape(x, (2, 1)))
    fed = np.arange(6.0).reshape(3, 2)
    by_x, by_w = function([w, x], jacobian(y, [x, w]))(fed, [1.0, 2.0])
    np.testing.assert_array_equal(by_x, fed.reshape(3, 1, 2))
    assert by_w.shape == (3, 1, 3, 2)
    np.testing.assert_array_equal(by_w[1, 0], [[0, 0], [1, 2], [0, 0]])
    a, b = x[0], x[1]
    rosenbrock = (1 - a) * (1 - a) + 100 * (b - a * a) * (b - a * a)
    v = gx.constant(np.array([0.5, -2.0]))
    product = gx.hessian_vector_product(rosenbrock, x, v)[0]
    h, hv = function([x], [hessian(rosenbrock, x), product])([1.5, 2.0])
    np.testing.assert_allclose(h, [[1200 * 1.5**2 - 800 + 2, -600], [-600, 200]])
    np.testing.assert_allclose(hv, h @ [0.5, -2.0])
    with pytest.raises(GradientError, match="known shape"):
        jacobian(vector("n") * 2, x)


def test_custom_gradient(session: gx.Session) -> None:
    @custom_gradient
    def clipped_square(x: gx.Tensor) -> Any:
        return x * x, lambda g: g * gx.minimum(2 * x, 1.0)

    @custom_gradient
    def two(x: gx.Tensor, y: gx.Tensor) -> Any:
        return (x + y, x * y), lambda g, h: [g * 10, h * 100]

    x, y = scalar("x"), scalar("y")
    z = clipped_square(x * 3)
    first = grad(z, x)
    assert function([x], [z, first])(1) == [9, 3]
    a, b = two(x, y)
    assert function([x, y], [a, b, *gx.gradients(a * 2, [x, y])])(3, 4) == [7, 12, 20, 0]
    (second,) = gx.gradients(grad(clipped_square(x), x), x)
    assert function([x], second)(0.25) == 2


def test_custom_gradient_that_is_wrong_is_refused() -> None:
    x, y = scalar("x"), scalar("y")
    with pytest.raises(TypeError, match="must return"):
        custom_gradient(lambda t: t)(x)
    bad = custom_gradient(lambda a, b: (a + b, lambda g: g))(x, y)
    with pytest.raises(GradientError, match="gave 1 gradients for 2 arguments"):
        gx.gradients(bad, x)


def test_gradient_override_guided_backpropagation(session: gx.Session) -> None:
    def guided(y: Any, g: Any, x: Any) -> list[Any]:
        return [gx.where(gx.greater(g, 0.0), gx.where(gx.greater(x, 0.0), g, 0.0), 0.0)]

    x = vector("x")
    made = relu(x).op.op.name
    with gradient_override({made: guided}):
        y = relu(x)
    weights = gx.constant([1.0, -1.0, 1.0, -1.0])
    plain = gx.gradients(relu(x), x, grad_ys=weights)[0]
    overridden = gx.gradients(y, x, grad_ys=weights)[0]
    got = function([x], [plain, overridden])([2, 2, -2, -2])
    np.testing.assert_array_equal(got[0], [1, -1, 0, 0])
    np.testing.assert_array_equal(got[1], [1, 0, 0, 0])
    with pytest.raises(ValueError, match="no operator"), gradient_override({"nothing": guided}):
        pass
