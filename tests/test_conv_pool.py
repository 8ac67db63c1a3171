"""Convolutions, poolings and the affine maps of contractions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import dims
from graphc.contraction_maps import ContractionMaps, matmul_maps
from graphc.errors import ShapeError
from graphc.nest import Index
from graphc.node import OPS
from graphc.ops import convolution, pooling

DEVICES = ("reference", "cpu")
Array = np.ndarray[Any, Any]

# ---- the maps of contractions ------------------------------------------------------------------


def _position(index: Index, axes: tuple[int, ...], size: int) -> int | None:
    """The index at the axes' values, None where a guard says outside."""
    total = sum(int(str(c)) * axes[a] for a, c in index.axes) + int(str(index.shift))
    if not index.guarded:
        assert 0 <= total < size, f"an unguarded index of {total} on a dimension of {size}"
        return total
    if total % index.div or not 0 <= total // index.div < size:
        return None
    return total // index.div


def _element(operand: Array, indices: tuple[Index, ...], axes: tuple[int, ...]) -> float:
    where = [_position(i, axes, d) for i, d in zip(indices, operand.shape, strict=True)]
    return 0.0 if None in where else float(operand[tuple(where)])


def _contracted(maps: ContractionMaps, inputs: list[Array], shape: tuple[int, ...]) -> Array:
    """What the maps say, element by element; every output element must be reached."""
    a, b = reversed(inputs) if maps.swap else inputs
    result, reached = np.zeros(shape), np.zeros(shape, bool)
    for axes in itertools.product(*(range(int(str(d))) for d in maps.extents)):
        where = tuple(sum(int(str(c)) * axes[i] for i, c in pairs) for pairs in maps.out)
        result[where] += _element(a, maps.a, axes) * _element(b, maps.b, axes)
        reached[where] = True
    assert reached.all()
    return result


CONTRACTIONS = [
    (name, number)
    for name in ("conv", "conv_input_grad", "conv_filter_grad", "matmul")
    for number in range(len(OPS[name].samples.calls))
]


@pytest.mark.parametrize(("name", "number"), CONTRACTIONS)
def test_the_maps_of_a_contraction_mean_its_reference(name: str, number: int) -> None:
    record, sample = OPS[name], OPS[name].samples.calls[number]
    if max(itertools.chain(*sample.shapes)) > 10:
        pytest.skip("too large for a loop in Python")
    rng = np.random.default_rng(0)
    with gx.Graph().as_default() as graph:
        inputs = [gx.placeholder("f64", s) for s in sample.shapes]
        y = record.function(*inputs, **sample.kwargs)
        (node,) = [n for n in graph.nodes if n.op is record]
        with gx.Session(graph, device="reference") as session:
            fed = {t: rng.standard_normal(t.shape) for t in inputs}
            operands = session.run(list(node.inputs), fed)
    types, out = [t.type for t in node.inputs], node.types[0]
    if name == "matmul":
        if types[0].shape[:-2] != types[1].shape[:-2]:
            pytest.skip("lowering makes the batch dimensions equal first")
        maps = matmul_maps(*types, out, **node.attrs)
    else:
        maps = record.lower(types, out, node.attrs)
    wanted = record.reference(node.attrs, *operands)
    np.testing.assert_allclose(_contracted(maps, operands, wanted.shape), wanted, 1e-12, 1e-12)
    assert y.dtype.name == "f64"


# ---- convolutions ------------------------------------------------------------------------------


def _naive_conv(x: Array, w: Array, stride: int, pads: Any, dilation: int, groups: int) -> Array:
    """Two spatial axes, element by element."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    kh, kw, cin, cout = w.shape
    h = (x.shape[1] - dilation * (kh - 1) - 1) // stride + 1
    v = (x.shape[2] - dilation * (kw - 1) - 1) // stride + 1
    y = np.zeros((x.shape[0], h, v, cout))
    per_group = cout // groups
    for i, j, o in itertools.product(range(h), range(v), range(cout)):
        first = o // per_group * cin
        top, left = i * stride, j * stride
        rows = slice(top, top + dilation * (kh - 1) + 1, dilation)
        columns = slice(left, left + dilation * (kw - 1) + 1, dilation)
        patch = x[:, rows, columns, first : first + cin]
        y[:, i, j, o] = (patch * w[..., o]).sum((1, 2, 3))
    return y


def _same(size: int, window: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


CONVS = [
    {"strides": 1, "padding": "SAME"},
    {"strides": 1, "padding": "VALID"},
    {"strides": 2, "padding": "SAME"},
    {"strides": 3, "padding": "VALID"},
    {"strides": 2, "padding": ((1, 2), (0, 1))},
    {"strides": 1, "padding": "VALID", "dilations": 2},
    {"strides": 1, "padding": "SAME", "groups": 2},
    {"strides": 2, "padding": 1, "groups": 4},
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
@pytest.mark.parametrize("kwargs", CONVS, ids=str)
def test_conv2d(kwargs: dict, data_format: str, symbolic: bool, device: str) -> None:
    rng = np.random.default_rng(0)
    groups, dilation, stride = (
        kwargs.get("groups", 1),
        kwargs.get("dilations", 1),
        kwargs["strides"],
    )
    x = rng.standard_normal((2, 7, 8, 4))
    w = rng.standard_normal((3, 2, 4 // groups, 8))
    padding = kwargs["padding"]
    if padding == "SAME":
        pads = tuple(_same(d, k, stride) for d, k in zip((7, 8), (3, 2), strict=True))
    else:
        pads = {"VALID": ((0, 0),) * 2, 1: ((1, 1),) * 2}.get(padding, padding)
    wanted = _naive_conv(x, w, stride, pads, dilation, groups)
    if data_format == "NCHW":
        x, wanted = np.moveaxis(x, -1, 1), np.moveaxis(wanted, -1, 1)
    with gx.Graph().as_default() as graph:
        shape = [None] * 4 if symbolic else list(x.shape)
        if groups > 1:
            shape["NCHW".index("C") if data_format == "NCHW" else 3] = 4
        t, f = gx.placeholder("f64", shape), gx.placeholder("f64", w.shape)
        y = convolution.conv2d(t, f, data_format=data_format, **kwargs)
        with gx.Session(graph, device=device) as session:
            np.testing.assert_allclose(session.run(y, {t: x, f: w}), wanted, 1e-12, 1e-12)


def _check_transpose(y: gx.Tensor, x: gx.Tensor, session: gx.Session, feeds: dict) -> None:
    """<y(x), u> == <x, y^T(u)> for a linear y."""
    value = session.run(y, feeds)
    u = np.random.default_rng(1).standard_normal(value.shape)
    with session.graph.as_default():
        (g,) = gx.gradients(y, [x], grad_ys=[gx.constant(u)])
    back = session.run(g, feeds)
    np.testing.assert_allclose((value * u).sum(), (feeds[x] * back).sum(), 1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding", ["SAME", "VALID", 1])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("symbolic", [False, True])
def test_conv_transpose_is_the_gradient_of_conv(
    symbolic: bool, stride: int, padding: Any, device: str
) -> None:
    rng = np.random.default_rng(0)
    g, w = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((3, 3, 2, 3))
    with gx.Graph().as_default() as graph:
        t = gx.placeholder("f64", [None] * 4 if symbolic else g.shape)
        y = convolution.conv2d_transpose(t, w, stride, padding)
        with gx.Session(graph, device=device) as session:
            value = session.run(y, {t: g})
            _check_transpose(y, t, session, {t: g})
        x = gx.placeholder("f64", value.shape)
        (wanted,) = gx.gradients(convolution.conv2d(x, w, stride, padding), [x], grad_ys=[g])
        with gx.Session(graph, device="reference") as session:
            np.testing.assert_allclose(value, session.run(wanted, {x: value}), 1e-12, 1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_other_convolutions(device: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 7, 3))
    w = rng.standard_normal((3, 3, 3, 2))
    p = rng.standard_normal((1, 1, 6, 4))
    with gx.Graph().as_default() as graph:
        depthwise = convolution.depthwise_conv2d(gx.constant(x), w)
        separable = convolution.separable_conv2d(gx.constant(x), w, p, strides=2)
        line = convolution.conv1d(gx.constant(x[:, 0]), w[0, :, :, :], 2)
        solid = convolution.conv3d(gx.constant(x[..., None]), w[..., :1, None])
        with gx.Session(graph, device=device) as session:
            d, s, one, three = session.run([depthwise, separable, line, solid])
    pads = ((1, 1), (1, 1))
    wanted = np.concatenate(
        [_naive_conv(x[..., c : c + 1], w[:, :, c : c + 1], 1, pads, 1, 1) for c in range(3)], -1
    )
    np.testing.assert_allclose(d, wanted, 1e-12, 1e-12)
    assert s.shape == (2, 3, 4, 4)
    flat = _naive_conv(x[:, :1], w[:1], 2, ((0, 0), _same(7, 3, 2)), 1, 1)
    np.testing.assert_allclose(one, flat[:, 0], 1e-12, 1e-12)
    assert three.shape == (2, 6, 7, 3, 1)


def test_wrong_shapes_are_refused_in_words() -> None:
    with gx.Graph().as_default():
        x = gx.placeholder("f32", (2, 5, 5, 3))
        w = gx.constant(np.zeros((3, 3, 4, 8), "f4"))
        with pytest.raises(ShapeError, match="3 input channels, but the filter takes 4"):
            convolution.conv2d(x, w)
        with pytest.raises(ShapeError, match="a window of 7 elements on an axis of 5"):
            convolution.conv2d(x, np.zeros((7, 7, 3, 8), "f4"), padding="VALID")
        with pytest.raises(ShapeError, match="a filter has 4 axes"):
            convolution.conv2d(x, np.zeros((3, 3, 8), "f4"))
        with pytest.raises(ShapeError, match="strides must be positive, not 0"):
            convolution.conv2d(x, np.zeros((3, 3, 3, 8), "f4"), 0)


def test_same_padding_on_unknown_sizes_gives_equal_sizes() -> None:
    with gx.Graph().as_default():
        x = gx.placeholder("f32", (None, None, None, 3))
        y = convolution.conv2d(x, np.zeros((3, 3, 3, 8), "f4"))
        assert y.dims == (*x.dims[:3], 8)
        half = convolution.conv2d(x, np.zeros((3, 3, 3, 8), "f4"), 2)
        other = convolution.conv2d(x, np.zeros((1, 1, 3, 8), "f4"), 2)
        assert half.dims == other.dims == (x.dims[0], *map(_half, x.dims[1:3]), 8)


def _half(d: dims.DimLike) -> dims.DimLike:
    return dims.ceildiv(d, 2)


# ---- poolings ----------------------------------------------------------------------------------


def _windows(x: Array, window: int, stride: int, padding: str, fill: float) -> Array:
    """[N, H', W', C, window * window]"""
    if padding == "SAME":
        pads = [_same(d, window, stride) for d in x.shape[1:3]]
        x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, (window, window), (1, 2))
    view = view[:, ::stride, ::stride]
    return view.reshape(*view.shape[:4], -1)


POOLS: list[tuple[Callable[..., gx.Tensor], Callable[[Array], Array], float]] = [
    (pooling.max_pool, lambda p: p.max(-1), -np.inf),
    (pooling.avg_pool, lambda p: np.nanmean(p, -1), np.nan),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (3, 1), (1, 1)])
@pytest.mark.parametrize(("ours", "numpys", "fill"), POOLS, ids=["max", "avg"])
def test_pool2d(
    ours: Any,
    numpys: Any,
    fill: float,
    window: int,
    stride: int,
    padding: str,
    symbolic: bool,
    device: str,
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 3))
    wanted = numpys(_windows(x, window, stride, padding, fill))
    with gx.Graph().as_default() as graph:
        t = gx.placeholder("f64", [None] * 4 if symbolic else x.shape)
        first = gx.placeholder("f64", [None] * 4 if symbolic else np.moveaxis(x, -1, 1).shape)
        y = ours(t, window, stride, padding)
        z = ours(first, window, stride, padding, data_format="NCHW")
        (g,) = gx.gradients(y, [t])
        with gx.Session(graph, device=device) as session:
            fed = {t: x, first: np.moveaxis(x, -1, 1)}
            value, other, gradient = session.run([y, z, g], fed)
    np.testing.assert_allclose(value, wanted, 1e-12)
    np.testing.assert_allclose(np.moveaxis(other, 1, -1), wanted, 1e-12)
    # both poolings are homogeneous of degree one and spread one unit per window
    np.testing.assert_allclose((gradient * x).sum(), wanted.sum(), 1e-10)
    np.testing.assert_allclose(gradient.sum(), wanted.size, 1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_padding_may_count_in_the_mean(device: str) -> None:
    x = np.random.default_rng(0).standard_normal((1, 5, 5, 2))
    wanted = _windows(x, 3, 2, "SAME", 0).mean(-1)
    with gx.Graph().as_default() as graph:
        y = pooling.avg_pool(gx.constant(x), 3, 2, "SAME", count_include_pad=True)
        means = pooling.global_avg_pool(gx.constant(x))
        tops = pooling.global_max_pool(gx.constant(x), keepdims=True)
        with gx.Session(graph, device=device) as session:
            value, mean, top = session.run([y, means, tops])
    np.testing.assert_allclose(value, wanted, 1e-12)
    np.testing.assert_allclose(mean, x.mean((1, 2)), 1e-12)
    np.testing.assert_allclose(top, x.max((1, 2), keepdims=True))
