"""Contractions that are a vector's product for each of many channels: loops along the channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.compiler import plan_cpu
from graphc.kernel import Contraction
from graphc.node import OPS
from graphc.ops.conv import conv_primitive
from graphc.ops.windows import window_count
from graphc.passes.resolve_state import resolve_state
from graphc.passes.specialise import bind_ranks, specialise, substitution

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    ("channels", "multiplier", "window", "stride", "pad", "dilation"),
    [(19, 1, 3, 1, 1, 1), (64, 1, 3, 2, 1, 1), (5, 1, 5, 2, 2, 1), (16, 1, 1, 1, 0, 1)]
    + [(33, 1, 2, 3, 0, 2), (6, 2, 3, 1, 1, 1), (8, 3, 3, 2, 0, 1), (70, 1, 3, 1, 4, 3)],
)
def test_depthwise_convolutions_and_their_gradients(
    channels: int,
    multiplier: int,
    window: int,
    stride: int,
    pad: int,
    dilation: int,
    symbolic: bool,
) -> None:
    rng = np.random.default_rng(channels)
    x_value = rng.standard_normal((2, 9, 8, channels)).astype(np.float32)
    w_value = rng.standard_normal((window, window, 1, channels * multiplier)).astype(np.float32)
    attrs = {
        "strides": (stride,) * 2,
        "pads": ((pad, pad),) * 2,
        "dilations": (dilation,) * 2,
        "groups": channels,
    }
    with gx.Graph().as_default() as graph:
        shape = [None, None, None, channels] if symbolic else x_value.shape
        x, w = gx.placeholder("f32", shape), gx.placeholder("f32", w_value.shape)
        rule = (window, stride, dilation, (pad, pad))
        counts = tuple(window_count(n, *rule) for n in x.dims[1:3])
        y = conv_primitive(x, w, sizes=counts, **attrs)
        results = [gx.maximum(y, 0), *gx.gradients(gx.sum(y * y), [x, w])]
        with gx.Session(graph) as session:
            got = session.run(results, {x: x_value, w: w_value})
    counts = tuple(window_count(n, *rule) for n in x_value.shape[1:3])
    out = OPS["conv"].reference({**attrs, "sizes": counts}, x_value, w_value)
    dx = OPS["conv_input_grad"].reference({**attrs, "sizes": (9, 8)}, 2 * out, w_value)
    dw = OPS["conv_filter_grad"].reference({**attrs, "sizes": (window,) * 2}, x_value, 2 * out)
    for a, b in zip(got, (np.maximum(out, 0), dx, dw), strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-3)


def test_one_channel_of_each_group_needs_no_matrix_kernel() -> None:
    x, w = gx.placeholder("f32", (2, 9, 8, 32)), gx.placeholder("f32", (3, 3, 1, 32))
    attrs = {"strides": (2, 2), "pads": ((1, 1),) * 2, "dilations": (1, 1), "groups": 32}
    y = conv_primitive(x, w, sizes=(5, 4), **attrs)
    results = (y, *gx.gradients(gx.sum(y * y), [x, w]))
    program = bind_ranks(resolve_state(results, [], (x, w)), [4] * 2)
    plan, _ = plan_cpu(specialise(program, substitution((), ())))
    assert not any(isinstance(k, Contraction) for k in plan.kernels)
