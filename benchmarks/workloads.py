"""The workloads: each builds its graph and returns what to time.

`call`, `chain`, `xent` and `layernorm` read variables and assign the result to a variable, so that
nothing is copied in or out; `gemm` feeds both matrices and assigns; `call100` feeds an array and
fetches one; the training steps feed a NumPy batch and fetch the loss, and include the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import networks
import numpy as np
from networks import Network

import graphc as gx
from graphc import nn, train


@dataclass
class Workload:
    """A call to time, how many floating-point operations it does (0: not counted), and what the
    call fetches and feeds."""

    call: Callable[[], object]
    fetches: Any
    feeds: dict[gx.Tensor, np.ndarray]
    flop: float = 0.0


def _rng() -> np.random.RandomState:
    return np.random.RandomState(0)


def _variable(*shape: int, rng: np.random.RandomState) -> gx.Variable:
    return gx.Variable(rng.randn(*shape).astype(np.float32))


def _run(
    session: gx.Session, fetches: Any, feeds: dict[gx.Tensor, np.ndarray], flop: float = 0.0
) -> Workload:
    """`Session.run`, after initialising variables."""
    session.run(gx.global_variables_initializer())
    return Workload(lambda: session.run(fetches, feeds), fetches, feeds, flop)


def _resident(session: gx.Session, *results: gx.Tensor) -> Workload:
    """Compute the results into variables of their shapes."""
    outputs = [gx.Variable(gx.zeros(tuple(r.dims), r.dtype)) for r in results]
    target = gx.group(*[v.assign(r) for v, r in zip(outputs, results, strict=True)])
    session.run(gx.global_variables_initializer())
    return Workload(session.make_callable(target), target, {})


def call(session: gx.Session) -> Workload:
    """x + 1 for 8 numbers: what one run costs."""
    x = _variable(8, rng=_rng())
    return _resident(session, x + 1)


def call100(session: gx.Session) -> Workload:
    """x + 1 for 8 numbers, fed and fetched through `Session.run`."""
    x = gx.placeholder("f32", (8,))
    y = x + 1
    value = _rng().randn(8).astype(np.float32)
    return _run(session, y, {x: value})


def _chain(session: gx.Session, n: int) -> Workload:
    rng = _rng()
    a, b, c, d, e = (_variable(n, rng=rng) for _ in range(5))
    y = gx.tanh(a * b + c) * d - gx.exp(-e * e)
    return _resident(session, y)


def chain_big(session: gx.Session) -> Workload:
    """tanh(a b + c) d - exp(-e e) for 10 million numbers."""
    return _chain(session, 10_000_000)


def chain_small(session: gx.Session) -> Workload:
    """The same for 65,536 numbers."""
    return _chain(session, 65_536)


def xent(session: gx.Session) -> Workload:
    """Mean softmax cross-entropy of 4096 x 1000 logits, and its gradient."""
    rng = _rng()
    x = _variable(4096, 1000, rng=rng)
    labels = gx.Variable(rng.randint(0, 1000, 4096).astype(np.int64), trainable=False)
    loss = gx.mean(nn.sparse_softmax_cross_entropy_with_logits(labels, x))
    (gradient,) = gx.gradients(loss, [x])
    return _resident(session, loss, gradient)


def layernorm(session: gx.Session) -> Workload:
    """Layer normalization of 4096 x 1024 with scale and offset."""
    rng = _rng()
    x, scale, offset = (_variable(*s, rng=rng) for s in ((4096, 1024), (1024,), (1024,)))
    return _resident(session, nn.layer_norm(x, scale, offset))


def gemm(session: gx.Session, n: int) -> Workload:
    """A product of two n x n matrices, both fed: nothing is prepared before the call."""
    rng = _rng()
    x, y = (gx.placeholder("f32", (n, n)) for _ in range(2))
    result = gx.Variable(gx.zeros((n, n)))
    feeds = {t: rng.randn(n, n).astype(np.float32) for t in (x, y)}
    return _run(session, result.assign(x @ y).op, feeds, 2.0 * n**3)


def product(session: gx.Session, n: int) -> Workload:
    """A product of two n x n matrices that are there already, as its result stays there."""
    rng = _rng()
    x, y = (_variable(n, n, rng=rng) for _ in range(2))
    workload = _resident(session, x @ y)
    workload.flop = 2.0 * n**3
    return workload


def column_sums(session: gx.Session, n: int) -> Workload:
    """The sums of the columns of n x 4096 numbers."""
    return _resident(session, gx.sum(_variable(n, 4096, rng=_rng()), axis=0))


def row_sums(session: gx.Session, n: int) -> Workload:
    """The sums of the rows of n x 4096 numbers."""
    return _resident(session, gx.sum(_variable(n, 4096, rng=_rng()), axis=1))


def kernels20(session: gx.Session) -> Workload:
    """Twenty products of 8 x 8 matrices, one after the other: what 20 kernels cost."""
    x, w = gx.placeholder("f32", (8, 8)), _variable(8, 8, rng=_rng())
    y = x
    for _ in range(20):
        y = y @ w * 0.25
    return _run(session, y, {x: np.eye(8, dtype=np.float32)})


# ---- training steps ----------------------------------------------------------------------------


def _training(
    session: gx.Session,
    loss: gx.Tensor,
    optimizer: train.Optimizer,
    feeds: dict[gx.Tensor, np.ndarray],
    flop: float,
) -> Workload:
    return _run(session, [loss, optimizer.minimize(loss)], feeds, flop)


def cs231n(session: gx.Session) -> Workload:
    """The two-layer net of the lectures: N=64, D=1000, H=100, plain gradient descent."""
    rng = _rng()
    x, y = (gx.placeholder("f32", (64, 1000)) for _ in range(2))
    w1 = gx.Variable(rng.randn(1000, 100).astype(np.float32) * 0.03)
    w2 = gx.Variable(rng.randn(100, 1000).astype(np.float32) * 0.1)
    difference = nn.relu(x @ w1) @ w2 - y
    loss = gx.mean(gx.sum(gx.square(difference), axis=1))
    feeds = {t: rng.randn(64, 1000).astype(np.float32) for t in (x, y)}
    # forward and dW for both layers, dX for the second only
    flop = 2.0 * 64 * 1000 * 100 * 5
    return _training(session, loss, train.SGD(1e-5), feeds, flop)


def mlp(session: gx.Session) -> Workload:
    """784-512-512-10 with ReLU, a batch of 128, Adam."""
    rng = _rng()
    x, y = gx.placeholder("f32", (None, 784)), gx.placeholder("i64", (None,))
    h = nn.layers.dense(x, 512, nn.relu)
    h = nn.layers.dense(h, 512, nn.relu)
    logits = nn.layers.dense(h, 10)
    loss = gx.mean(nn.sparse_softmax_cross_entropy_with_logits(y, logits))
    feeds = {x: rng.randn(128, 784).astype(np.float32), y: rng.randint(0, 10, 128)}
    weights = (784 * 512, 512 * 512, 512 * 10)
    flop = 2.0 * 128 * (3 * sum(weights) - weights[0])
    return _training(session, loss, train.Adam(1e-3), feeds, flop)


def lenet(session: gx.Session) -> Workload:
    """Caffe's LeNet on 28 x 28 images, a batch of 64, momentum 0.9."""
    rng = _rng()
    x, y = gx.placeholder("f32", (None, 28, 28, 1)), gx.placeholder("i64", (None,))
    layers = nn.layers
    h = layers.max_pool2d(layers.conv2d(x, 20, 5), 2)
    h = layers.max_pool2d(layers.conv2d(h, 50, 5), 2)
    h = layers.dense(layers.flatten(h), 500, nn.relu)
    logits = layers.dense(h, 10)
    loss = gx.mean(nn.sparse_softmax_cross_entropy_with_logits(y, logits))
    feeds = {x: rng.randn(64, 28, 28, 1).astype(np.float32), y: rng.randint(0, 10, 64)}
    products = (24 * 24 * 25 * 20, 8 * 8 * 500 * 50, 800 * 500, 500 * 10)
    flop = 2.0 * 64 * (3 * sum(products) - products[0])
    return _training(session, loss, train.Momentum(1e-4, 0.9), feeds, flop)


def lstm(session: gx.Session) -> Workload:
    """One LSTM layer, 50 steps of 32 x 256, all its outputs squared, plain gradient descent."""
    steps, batch, units = 50, 32, 256
    x = gx.placeholder("f32", (steps, batch, units))
    rng = _rng()
    w, u = (gx.Variable(rng.randn(units, 4 * units).astype(np.float32) / 16) for _ in range(2))
    b = gx.Variable(np.zeros(4 * units, np.float32))
    h = c = gx.zeros((batch, units))
    outputs = []
    for t in range(steps):
        i, f, o, g = gx.split(x[t] @ w + h @ u + b, 4, axis=1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * gx.tanh(g)
        h = nn.sigmoid(o) * gx.tanh(c)
        outputs.append(h)
    loss = gx.mean(gx.square(gx.stack(outputs)))
    feeds = {x: rng.randn(steps, batch, units).astype(np.float32)}
    flop = 2.0 * steps * batch * units * 4 * units * 5  # x @ w has no gradient of x
    return _training(session, loss, train.SGD(0.1), feeds, flop)


def transformer(session: gx.Session) -> Workload:
    """An attention block, 8 sequences of 128 x 256, 4 heads: the gradients of x and parameters."""
    x = gx.placeholder("f32", (8, 128, 256))
    y = networks.attention_block(x, 128, 256, heads=4)
    gradients = gx.gradients(gx.mean(gx.square(y)), [x, *gx.trainable_variables()])
    outputs = [gx.Variable(gx.zeros(tuple(g.dims))) for g in gradients if g is not None]
    target = gx.group(*[v.assign(g) for v, g in zip(outputs, gradients, strict=True)])
    return _run(session, target, {x: _rng().randn(8, 128, 256).astype(np.float32)})


_NETWORKS: dict[str, Callable[[bool], Network]] = {
    "alexnet": lambda training: networks.alexnet(227),
    "alexnetcaffe": lambda training: networks.alexnet_caffe(),
    "vgg16": lambda training: networks.vgg16(),
    "googlenet": lambda training: networks.googlenet(),
    "resnet50": lambda training: networks.resnet50(training=training),
    "resnet20": lambda training: networks.resnet_cifar(20),
    "resnet110": lambda training: networks.resnet_cifar(110),
}


def _inferred(name: str, session: gx.Session, n: int) -> Workload:
    """The logits of a batch, in a new array each time; on a GPU both stay on it."""
    network = _NETWORKS[name](False)
    x = network.x
    feeds = {x: network.feeds(n)[x]}
    workload = _run(session, network.output, feeds)
    if session.device in ("cpu", "reference"):
        return workload
    there = gx.RunOptions(on_device=True)
    placed = {x: session.run(x + 0, feeds, options=there)}
    return replace(workload, call=lambda: session.run(network.output, placed, options=there))


def _trained(name: str, session: gx.Session, n: int) -> Workload:
    """A whole step: loss, gradients, momentum 0.9 and moving statistics."""
    network = _NETWORKS[name](True)
    step = network.step(train.Momentum(1e-4, 0.9))
    return _run(session, [network.loss, step], network.feeds(n))


_SIZED: dict[str, Callable[[gx.Session, int], Workload]] = {
    "gemm": gemm,
    "product": product,
    "chain": _chain,
    "column_sums": column_sums,
    "row_sums": row_sums,
    **{f"{name}_inf": partial(_inferred, name) for name in _NETWORKS},
    **{f"{name}_train": partial(_trained, name) for name in _NETWORKS},
}
"""Those whose names go on with a number."""

_USUAL = (
    *(f"gemm{n}" for n in (128, 256, 512, 1024, 2048)),
    *("alexnet_inf1", "alexnet_inf16", "alexnet_train16"),
    *("alexnetcaffe_inf1", "alexnetcaffe_inf16", "alexnetcaffe_train16"),
    *("vgg16_inf1", "googlenet_inf1", "resnet50_inf1", "resnet50_inf16", "resnet50_train8"),
    *("resnet20_train128", "resnet110_train32"),
)


def _sized(name: str) -> Callable[[gx.Session], Workload] | None:
    """The workload of a name that ends with a number."""
    kind = name.rstrip("0123456789")
    if kind not in _SIZED or kind == name:
        return None
    return partial(_SIZED[kind], n=int(name[len(kind) :]))


WORKLOADS: dict[str, Callable[[gx.Session], Workload]] = {
    "call": call,
    "call100": call100,
    "kernels20": kernels20,
    "chain_big": chain_big,
    "chain_small": chain_small,
    "xent": xent,
    "layernorm": layernorm,
    "cs231n": cs231n,
    "mlp": mlp,
    "lenet": lenet,
    "lstm_train": lstm,
    "transformer_fb": transformer,
    **{name: found for name in _USUAL if (found := _sized(name)) is not None},
}


def find_workload(name: str) -> Callable[[gx.Session], Workload]:
    """The workload of a name, such as `lenet`, or `resnet50_train8` with any number.

    Raises ValueError if there is none.
    """
    found = WORKLOADS.get(name) or _sized(name)
    if found is None:
        sized = ", ".join(f"{kind}N" for kind in _SIZED)
        raise ValueError(f"no workload {name!r}: there are {', '.join(WORKLOADS)}, {sized}")
    return found
