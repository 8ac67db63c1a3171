"""Functions judged by those of NumPy and by differences, with known and unknown sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn
from graphc.errors import GraphTypeError, ShapeError

DEVICES = ("reference", "cpu")
Case = tuple[str, Callable[..., Any], Callable[..., Any], tuple[tuple[int, ...], ...]]


def both(name: str, *shapes: tuple[int, ...], **kwargs: Any) -> Case:
    """The function called `name` of graphc and of NumPy, on operands of these shapes."""
    ours, theirs = getattr(gx, name), getattr(np, name)
    return (
        f"{name}{shapes}{kwargs or ''}",
        lambda *xs: ours(*xs, **kwargs),
        lambda *xs: theirs(*xs, **kwargs),
        shapes,
    )


def listed(name: str, *shapes: tuple[int, ...]) -> Case:
    """A function that takes its operands as one list."""
    ours, theirs = getattr(gx, name), getattr(np, name)
    return f"{name}{shapes}", lambda *xs: ours(xs), lambda *xs: theirs(xs), shapes


CASES: list[Case] = [
    both("ravel", (2, 3)),
    both("ravel", ()),
    both("moveaxis", (2, 3, 4), source=0, destination=-1),
    both("moveaxis", (2, 3, 4), source=(0, 1), destination=(-1, -2)),
    both("swapaxes", (2, 3, 4), axis1=0, axis2=-1),
    both("atleast_1d", ()),
    both("atleast_2d", ()),
    both("atleast_2d", (3,)),
    both("atleast_3d", ()),
    both("atleast_3d", (3,)),
    both("atleast_3d", (2, 3)),
    both("fliplr", (2, 3)),
    both("flipud", (2, 3)),
    *(both("rot90", (2, 3, 4), k=k, axes=(0, 2)) for k in range(-1, 4)),
    listed("vstack", (3,), (2, 3)),
    listed("hstack", (3,), (2,)),
    listed("hstack", (2, 3), (2, 1)),
    listed("dstack", (2, 3), (2, 3)),
    listed("dstack", (3,), (3,)),
    listed("column_stack", (3,), (3, 2)),
    both("fmax", (2, 3), (3,)),
    both("fmin", (2, 3), (3,)),
    both("nansum", (2, 3), axis=1),
    both("nanmean", (2, 3), axis=0, keepdims=True),
    both("nanmax", (2, 3)),
    both("nanmin", (2, 3), axis=1),
    both("deg2rad", (3,)),
    both("degrees", (3,)),
    both("logaddexp2", (3,), (2, 1)),
    both("ptp", (2, 3), axis=1),
    both("average", (2, 3), axis=0),
    both("diff", (5,)),
    both("diff", (2, 5), n=3, axis=1),
    both("diff", (2, 3), n=5, axis=1),
    both("trapezoid", (2, 4), dx=0.5),
    both("trapezoid", (3, 2), axis=0),
    both("kron", (2, 3), (3, 2)),
    both("kron", (2,), (3, 2)),
    both("kron", (), (3,)),
    both("cross", (2, 3), (3,)),
    both("inner", (2, 4), (3, 4)),
    both("vdot", (2, 3), (2, 3)),
    both("cov", (3, 6)),
    both("cov", (6, 3), rowvar=False, ddof=0),
    both("corrcoef", (3, 6)),
    both("diagonal", (3, 4), offset=1),
    both("diagonal", (4, 3), offset=-2),
    both("diagonal", (3, 3), offset=7),
    both("diagonal", (2, 3, 4), offset=-1, axis1=2, axis2=0),
    both("trace", (3, 4), offset=1),
    *(both("diag", (3,), k=k) for k in (-2, 0, 1)),
    both("diag", (3, 4), k=-1),
]


def operands(shapes: tuple[tuple[int, ...], ...]) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(len(shapes))
    return [rng.permutation(np.arange(1.0, 1.0 + np.prod(s)) / 7).reshape(s) for s in shapes]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])
def test_agrees_with_numpy_and_with_differences(case: Case, known: bool, device: str) -> None:
    _, ours, theirs, shapes = case
    arrays = operands(shapes)
    xs = [gx.placeholder("f64", s if known else (None,) * len(s)) for s in shapes]
    y = ours(*xs)
    wanted = np.asarray(theirs(*arrays))
    weights = np.cos(np.arange(wanted.size)).reshape(wanted.shape)
    slopes = gx.gradients(y, xs, grad_ys=[gx.constant(weights)], unconnected_gradients="zero")
    with gx.Session(device=device) as session:
        got, found = session.run([y, slopes], dict(zip(xs, arrays, strict=True)))
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    for i, slope in enumerate(found):
        np.testing.assert_allclose(slope, differences(theirs, arrays, i, weights), atol=1e-6)


def differences(
    function: Callable[..., Any],
    arrays: list[np.ndarray[Any, Any]],
    which: int,
    weights: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    result = np.zeros_like(arrays[which])
    for position in np.ndindex(result.shape):
        moved = [a.copy() for a in arrays]
        values = []
        for step in (1e-5, -1e-5):
            moved[which][position] = arrays[which][position] + step
            values.append(np.sum(np.asarray(function(*moved)) * weights))
        result[position] = (values[0] - values[1]) / 2e-5
    return result


def run(fetches: Any, device: str, feeds: Any = None) -> Any:
    with gx.Session(device=device) as session:
        return session.run(fetches, feeds)


# ---- contractions of nothing -------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("sizes", [(0, 2, 3), (3, 0, 2), (3, 2, 0), (0, 0, 0), (1, 0, 1)])
def test_a_product_with_an_axis_of_size_0(
    sizes: tuple[int, int, int], known: bool, device: str
) -> None:
    m, k, n = sizes
    a, b = np.ones((m, k), "f4"), np.ones((k, n), "f4")
    x = gx.placeholder("f32", (m, k) if known else (None, None))
    w = gx.placeholder("f32", (k, n) if known else (None, None))
    y = gx.matmul(x, w) + 1
    got, dx, dw = run([y, *gx.gradients(gx.sum(y * y), [x, w])], device, {x: a, w: b})
    np.testing.assert_array_equal(got, a @ b + 1)
    assert dx.shape == a.shape
    assert dw.shape == b.shape


# ---- ranks known only at run time --------------------------------------------------------------

UNRANKED: list[tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = [
    ("transpose", lambda x: gx.transpose(x, (0, -1, 1)), lambda x: x.transpose(0, 2, 1)),
    ("sum", lambda x: gx.sum(x * x, axis=-2), lambda x: (x * x).sum(-2)),
    ("max", lambda x: gx.max(x, axis=(0, -1), keepdims=True), lambda x: x.max((0, 2), None, True)),
    ("prod", lambda x: gx.prod(x, axis=-1), lambda x: x.prod(-1)),
    ("mean", lambda x: gx.mean(x, axis=(-1, 0)), lambda x: x.mean((2, 0))),
    ("var", lambda x: gx.var(x, axis=-1), lambda x: x.var(-1)),
    ("norm", lambda x: gx.norm(x, 3, axis=-2), lambda x: np.linalg.norm(x, 3, -2)),
    ("cumsum", lambda x: gx.cumsum(x, -2), lambda x: x.cumsum(-2)),
    ("cumprod", lambda x: gx.cumprod(x, -1), lambda x: x.cumprod(-1)),
    ("concat", lambda x: gx.concat([x, x * x], -2), lambda x: np.concatenate([x, x * x], -2)),
    ("squeeze", lambda x: gx.squeeze(x[:1], 0), lambda x: x[0]),
    ("expand_dims", lambda x: gx.expand_dims(x, (-1, 1)), lambda x: np.expand_dims(x, (-1, 1))),
    ("getitem", lambda x: x[..., 1:, -1], lambda x: x[..., 1:, -1]),
    ("flip", lambda x: gx.flip(x, -2), lambda x: np.flip(x, -2)),
    ("roll", lambda x: gx.roll(x, 1, -1), lambda x: np.roll(x, 1, -1)),
    ("take", lambda x: gx.take(x, [1, 0, 1], axis=-1), lambda x: x.take([1, 0, 1], -1)),
    ("tril", lambda x: gx.tril(x, -1), lambda x: np.tril(x, -1)),
    ("matmul", lambda x: gx.matmul(x, x, transpose_b=True), lambda x: x @ x.swapaxes(1, 2)),
    ("scale", lambda x: x / gx.sum(x, axis=-1, keepdims=True), lambda x: x / x.sum(-1)[..., None]),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", UNRANKED, ids=lambda c: c[0])
def test_axes_of_a_tensor_of_unknown_rank(
    case: tuple[str, Callable[[Any], Any], Callable[[Any], Any]], device: str
) -> None:
    _, ours, theirs = case
    (values,) = operands(((2, 3, 4),))
    x = gx.placeholder("f64")
    y = ours(x)
    wanted = theirs(values)
    weights = np.cos(np.arange(wanted.size)).reshape(wanted.shape)
    slope = gx.gradients(gx.sum(y * weights), x)[0]
    got, found = run([y, slope], device, {x: values})
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    np.testing.assert_allclose(found, differences(theirs, [values], 0, weights), atol=1e-6)


# ---- clip, norm --------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_clip_on_one_side_has_the_gradient_of_clip_on_both(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    limited = [gx.clip(x, 0), gx.clip(x, None, 0), gx.clip(x, 0, 0)]
    values = np.array([-1, 0, 1], "f4")
    slopes = run([gx.gradients(y, x)[0] for y in limited], device, {x: values})
    np.testing.assert_array_equal(slopes[0], [0, 1, 1])
    np.testing.assert_array_equal(slopes[1], [1, 1, 0])
    np.testing.assert_array_equal(slopes[2], [0, 1, 0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["int8", "uint64", "int64"])
def test_clip_on_one_side_keeps_all_integers(dtype: str, device: str) -> None:
    info = np.iinfo(dtype)
    values = np.array([info.min, 3, info.max], dtype)
    x = gx.placeholder(dtype, (None,))
    low, high = run([gx.clip(x, 2), gx.clip(x, None, 4)], device, {x: values})
    np.testing.assert_array_equal(low, np.maximum(values, values.dtype.type(2)))
    np.testing.assert_array_equal(high, np.minimum(values, values.dtype.type(4)))
    assert low.dtype == values.dtype


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", [0, 0.5, 1, 1.5, 2, 3, -1, np.inf, -np.inf])
def test_norms_of_any_order(order: float, device: str) -> None:
    values = np.array([[3.0, -4.0, 1.0], [0.5, 2.0, -7.0]])
    x = gx.placeholder("f64", (None, None))
    y = gx.norm(x, order, axis=1)
    slopes = gx.gradients(y, x, unconnected_gradients="zero")
    got, slope = run([y, slopes[0]], device, {x: values})
    wanted = np.linalg.norm(values, order, axis=1)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    function = lambda v: np.linalg.norm(v, order, axis=1)  # noqa: E731
    expected = differences(function, [values], 0, np.ones(2))
    np.testing.assert_allclose(slope, expected, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", [1.5, 2, 3])
def test_the_gradient_of_a_norm_of_zeros_is_0(order: float, device: str) -> None:
    x = gx.placeholder("f32", (3,))
    slope = run(gx.gradients(gx.norm(x, order), x)[0], device, {x: np.zeros(3, "f4")})
    np.testing.assert_array_equal(slope, np.zeros(3))


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_at_the_points_where_a_rule_divides_by_zero(device: str) -> None:
    a, b = gx.placeholder("f32", (None,)), gx.placeholder("f32", (None,))
    one = np.array([0, 3], "f4")
    slopes = gx.gradients(gx.arctan2(a, b), [a, b])
    np.testing.assert_allclose(
        run(slopes, device, {a: one, b: one}), [[0, 1 / 6], [0, -1 / 6]], 1e-6
    )
    logs = np.array([-np.inf, 0], "f4")
    shares = gx.gradients(gx.logaddexp(a, b), [a, b])
    np.testing.assert_allclose(run(shares, device, {a: logs, b: logs}), [[0, 0.5], [0, 0.5]], 1e-6)
    spread = gx.gradients(gx.std(a), a)
    np.testing.assert_array_equal(run(spread, device, {a: np.ones(3, "f4")}), np.zeros((1, 3)))
    ends = np.array([-3, 3, 4], "f4")
    swish = gx.gradients(nn.hard_swish(a), a)
    np.testing.assert_array_equal(run(swish, device, {a: ends}), [[0, 1, 1]])


# ---- NaN and infinities ------------------------------------------------------------------------

SPECIAL = np.array([[np.nan, 1.0, -np.inf], [np.nan, np.nan, np.nan], [2.0, np.inf, -3.0]], "f4")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["nansum", "nanmean", "nanmax", "nanmin"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_reductions_without_nan(name: str, axis: int | None, device: str) -> None:
    x = gx.placeholder("f32", (None, None))
    got = run(getattr(gx, name)(x, axis=axis), device, {x: SPECIAL})
    np.testing.assert_array_equal(got, getattr(np, name)(SPECIAL, axis=axis))


@pytest.mark.parametrize("device", DEVICES)
def test_special_values_are_told_apart_and_replaced(device: str) -> None:
    x = gx.placeholder("f32", (None, None))
    names = ("isposinf", "isneginf", "nan_to_num")
    got = run([getattr(gx, n)(x) for n in names], device, {x: SPECIAL})
    for name, values in zip(names, got, strict=True):
        np.testing.assert_array_equal(values, getattr(np, name)(SPECIAL))
    replaced = run(gx.nan_to_num(x, 1.0, 2.0, -2.0), device, {x: SPECIAL})
    np.testing.assert_array_equal(replaced, np.nan_to_num(SPECIAL, True, 1.0, 2.0, -2.0))


@pytest.mark.parametrize("device", DEVICES)
def test_fmax_and_fmin_skip_nan(device: str) -> None:
    a, b = SPECIAL[0], SPECIAL[2]
    x, y = gx.placeholder("f32", (None,)), gx.placeholder("f32", (None,))
    largest, slopes = run(
        [gx.fmax(x, y), gx.gradients(gx.fmax(x, y), [x, y])], device, {x: a, y: b}
    )
    np.testing.assert_array_equal(largest, np.fmax(a, b))
    np.testing.assert_array_equal(slopes, [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(run(gx.fmin(x, y), device, {x: a, y: b}), np.fmin(a, b))


# ---- counting and searching --------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_searchsorted(side: str, device: str) -> None:
    edges, values = np.array([1.0, 2.0, 2.0, 5.0], "f4"), np.array([[0, 1, 2], [3, 5, 9]], "f4")
    a, v = gx.placeholder("f32", (None,)), gx.placeholder("f32", (None, None))
    got = run(gx.searchsorted(a, v, side), device, {a: edges, v: values})
    np.testing.assert_array_equal(got, np.searchsorted(edges, values, side))
    bins = run(gx.digitize(v, a, side == "left"), device, {a: edges, v: values})
    np.testing.assert_array_equal(bins, np.digitize(values, edges, side == "left"))


@pytest.mark.parametrize("device", DEVICES)
def test_small_numeric_functions(device: str) -> None:
    values, weights = np.array([[-1.0, 0.0, 2.0], [0.0, 0.0, 7.0]], "f4"), np.array([1, 2, 5], "f4")
    x = gx.placeholder("f32", (None, 3))
    fetches = {
        "count": gx.count_nonzero(x, axis=0),
        "average": gx.average(x, axis=1, weights=weights),
        "heaviside": gx.heaviside(x, 0.5),
        "logit": gx.logit(nn.sigmoid(x)),
        "mask": gx.sequence_mask(gx.constant([0, 2, 3]), 3, "i32"),
        "sum": gx.add_n([x, x, x, 1.0, x]),
    }
    got = run(fetches, device, {x: values})
    np.testing.assert_array_equal(got["count"], np.count_nonzero(values, axis=0))
    np.testing.assert_allclose(got["average"], np.average(values, axis=1, weights=weights), 1e-6)
    np.testing.assert_array_equal(got["heaviside"], np.heaviside(values, 0.5))
    np.testing.assert_allclose(got["logit"], values, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(got["mask"], np.tril(np.ones((4, 3)), -1)[[0, 2, 3]])
    np.testing.assert_array_equal(got["sum"], 4 * values + 1)


@pytest.mark.parametrize("device", DEVICES)
def test_weighted_covariance(device: str) -> None:
    rng = np.random.default_rng(0)
    values, often, weight = rng.normal(size=(3, 4)), np.array([1, 2, 3, 1]), rng.random(4)
    x = gx.placeholder("f64", (3, None))
    got = run(gx.cov(x, fweights=often, aweights=weight, ddof=1), device, {x: values})
    np.testing.assert_allclose(got, np.cov(values, fweights=often, aweights=weight), rtol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_differences_with_parts_joined_on(device: str) -> None:
    values, before = np.array([[1.0, 4.0], [2.0, 8.0]]), np.zeros((2, 1))
    x = gx.placeholder("f64", (None, None))
    got = run(gx.diff(x, prepend=gx.constant(before)), device, {x: values})
    np.testing.assert_array_equal(got, np.diff(values, prepend=before))
    times = np.array([0.0, 3.0])
    area = run(gx.trapezoid(x, gx.constant(times)), device, {x: values})
    np.testing.assert_array_equal(area, np.trapezoid(values, times))


# ---- gradients of gradients --------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sizes", [(5, 5, 5), (1, 5, 5), (5, 1, 5), (1, 1, 5), (1, 1, 1)])
def test_a_shape_that_only_a_gradient_still_needs(sizes: tuple[int, ...], device: str) -> None:
    """The product's shape bc(a, bc(b, c)) stays in the program where the sum itself does not."""
    a, b, c = (gx.placeholder("f64", (None,), name=n) for n in "abc")
    weights = np.ones(max(sizes))
    first = gx.gradients(a + b * c, [a, b, c], grad_ys=[gx.constant(weights)])
    total = gx.add_n([gx.sum(gx.sin(g)) for g in first[1:] if g is not None])
    second = gx.gradients(total, [b, c])
    arrays = [np.full(n, v) for n, v in zip(sizes, (1.0, 2.0, 3.0), strict=True)]
    got = run(second, device, dict(zip((a, b, c), arrays, strict=True)))

    def slopes(b_: Any, c_: Any) -> Any:
        wide = (weights * c_, weights * b_)
        summed = [np.sum(w) if v.size == 1 else w for w, v in zip(wide, (b_, c_), strict=True)]
        return np.array(sum(np.sum(np.sin(v)) for v in summed))

    for i, slope in enumerate(got):
        expected = differences(slopes, arrays[1:], i, np.ones(()))
        np.testing.assert_allclose(slope, expected, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_scaled_by_a_bounded_norm_twice_differentiated(device: str) -> None:
    """Fusing this undoes a half-made move of one kernel into another."""
    x = gx.placeholder("f64", (None, None, None))
    size = gx.norm(x, 1, (0, 1), keepdims=True)
    y = x * gx.where(size > 3, 3 / size, 1.0)
    values = np.random.default_rng(0).standard_normal((3, 4, 2))
    weights = np.cos(np.arange(24.0)).reshape(3, 4, 2)
    (slope,) = gx.gradients(y, x, grad_ys=[gx.constant(weights)])
    assert slope is not None
    second = gx.gradients(gx.sum(gx.sin(slope)), x)[0]
    got = run(second, device, {x: values})

    def first(v: Any) -> Any:
        n = np.abs(v).sum((0, 1), keepdims=True)
        inner = (weights * v).sum((0, 1), keepdims=True)
        return np.where(n > 3, 3 / n * weights - 3 / n**2 * inner * np.sign(v), weights)

    expected = differences(lambda v: np.sin(first(v)), [values], 0, np.ones(24).reshape(3, 4, 2))
    np.testing.assert_allclose(got, expected, atol=1e-6)


# ---- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda x: gx.moveaxis(x, (0, 1), 0), ShapeError, "2 axes to 1"),
        (lambda x: gx.moveaxis(x, 2, 0), ShapeError, "axis 2"),
        (lambda x: gx.cross(x, x), ShapeError, "3 elements"),
        (lambda x: gx.diff(x, -1), GraphTypeError, "-1"),
        (lambda x: gx.searchsorted(x, x), ShapeError, "vector"),
        (lambda x: gx.searchsorted(x[0], x, "middle"), GraphTypeError, "middle"),
        (lambda x: gx.diagonal(x[0]), ShapeError, "not a matrix"),
        (lambda x: gx.diagonal(x, axis1=0, axis2=-2), ShapeError, "both 0"),
        (lambda x: gx.slice(x, [0], [1, 1]), ShapeError, "1 starts"),
        (lambda x: gx.put_along_axis(x, [0], x, 0), ShapeError, "put_along_axis"),
        (lambda x: gx.put_along_axis(x, [[0, 0]], x, 0, "mul"), GraphTypeError, "mul"),
        (lambda x: gx.gather_nd(x, [[0, 0, 0]]), ShapeError, "3 axes"),
        (lambda x: gx.add_n([]), ShapeError, "no tensors"),
        (lambda x: nn.adaptive_avg_pool(x, 1), ShapeError, "adaptive pool"),
        (lambda x: nn.depth_to_space(x[None, None], 2), ShapeError, "does not divide"),
        (lambda x: nn.space_to_depth(x[None, None], 2), ShapeError, "does not divide"),
        (lambda x: gx.cov(gx.expand_dims(x, 0)), ShapeError, "more than 2"),
    ],
)
def test_wrong_arguments_are_refused(
    build: Callable[[Any], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        build(gx.placeholder("f32", (2, 2)))
