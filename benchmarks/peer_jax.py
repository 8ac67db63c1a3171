"""A workload in JAX, each step one jitted function: `python benchmarks/peer_jax.py WORKLOAD`.

The fully connected networks, ResNet-50, AlexNet and the numerical workloads; training state is
donated, batches are NumPy arrays, losses come back as Python numbers.  Prints a line of JSON for
each, as run.py does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable
from functools import partial

from timing import measure, peak_rss_mb, pin_if_single

Call = Callable[[], object]

_PRECISIONS = {"f32": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}
"""What JAX calls them; products of bf16 then have operands in f32, rounded on their way."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("workload", nargs="+")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=_PRECISIONS, default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--secs", type=float, default=4.0)
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = _arguments()
    pin_if_single(ARGUMENTS.threads)
    os.environ.setdefault("JAX_PLATFORMS", ARGUMENTS.device)
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", _PRECISIONS[ARGUMENTS.precision])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402
from peer_jax_networks import NETWORKS  # noqa: E402

RNG = np.random.RandomState(0)


def _array(*shape: int) -> np.ndarray:
    return RNG.randn(*shape).astype(np.float32)


def _resident(f: Callable, *inputs: np.ndarray) -> Call:
    compiled = jax.jit(f)
    arrays = [jnp.asarray(a) for a in inputs]
    return lambda: jax.block_until_ready(compiled(*arrays))


def _call100() -> Call:
    f, x = jax.jit(lambda x: x + 1), _array(8)
    return lambda: np.asarray(f(x))


def _chain(n: int) -> Call:
    f = lambda a, b, c, d, e: jnp.tanh(a * b + c) * d - jnp.exp(-e * e)  # noqa: E731
    return _resident(f, *(_array(n) for _ in range(5)))


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    logs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logs, labels[:, None], 1).mean()


def _xent() -> Call:
    labels = RNG.randint(0, 1000, 4096)
    return _resident(jax.value_and_grad(_cross_entropy), _array(4096, 1000), labels)


def _layernorm() -> Call:
    def f(x: jax.Array, scale: jax.Array, offset: jax.Array) -> jax.Array:
        centred = x - x.mean(1, keepdims=True)
        spread = lax.rsqrt((centred * centred).mean(1, keepdims=True) + 1e-5)
        return centred * spread * scale + offset

    return _resident(f, _array(4096, 1024), _array(1024), _array(1024))


def _steps(state: object, step: Callable, *feeds: np.ndarray) -> Call:
    """Training: the state stays on the device, the loss comes back."""
    compiled = jax.jit(step, donate_argnums=0)
    held = [jax.tree.map(jnp.asarray, state)]

    def run() -> float:
        held[0], loss = compiled(held[0], *feeds)
        return float(loss)

    return run


def _cs231n() -> Call:
    def loss(weights: list, x: jax.Array, y: jax.Array) -> jax.Array:
        return ((jax.nn.relu(x @ weights[0]) @ weights[1] - y) ** 2).sum(1).mean()

    def step(weights: list, x: jax.Array, y: jax.Array) -> tuple:
        value, grads = jax.value_and_grad(loss)(weights, x, y)
        return [w - 1e-5 * g for w, g in zip(weights, grads, strict=True)], value

    weights = [_array(1000, 100) * 0.03, _array(100, 1000) * 0.1]
    return _steps(weights, step, _array(64, 1000), _array(64, 1000))


def _mlp() -> Call:
    def loss(layers: list, x: jax.Array, labels: jax.Array) -> jax.Array:
        for w, b in layers[:-1]:
            x = jax.nn.relu(x @ w + b)
        return _cross_entropy(x @ layers[-1][0] + layers[-1][1], labels)

    def step(state: tuple, x: jax.Array, labels: jax.Array) -> tuple:
        layers, first, second, t = state
        value, grads = jax.value_and_grad(loss)(layers, x, labels)
        t = t + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
        rate = 1e-3 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        move = lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8)  # noqa: E731
        return (jax.tree.map(move, layers, first, second), first, second, t), value

    sizes = (784, 512, 512, 10)
    layers = [
        (_array(a, b) / np.float32(np.sqrt(a)), np.zeros(b, np.float32))
        for a, b in itertools.pairwise(sizes)
    ]
    zeros = jax.tree.map(np.zeros_like, layers)
    state = (layers, zeros, jax.tree.map(np.copy, zeros), np.float32(0))
    return _steps(state, step, _array(128, 784), RNG.randint(0, 10, 128))


def _inferred(name: str, n: int) -> Call:
    make, side = NETWORKS[name]
    parameters, statistics, apply = make()
    state = jax.tree.map(jnp.asarray, (parameters, statistics))
    return _resident(lambda x: apply(*state, x, False)[0], _array(n, side, side, 3))


def _trained(name: str, n: int) -> Call:
    make, side = NETWORKS[name]
    parameters, statistics, apply = make()

    def loss(parameters: list, statistics: list, x: jax.Array, labels: jax.Array) -> tuple:
        logits, found = apply(parameters, statistics, x, True)
        return _cross_entropy(logits, labels), found

    def step(state: tuple, x: jax.Array, labels: jax.Array) -> tuple:
        parameters, speeds, statistics = state
        gradients = jax.value_and_grad(loss, has_aux=True)
        (value, statistics), grads = gradients(parameters, statistics, x, labels)
        speeds = jax.tree.map(lambda v, g: 0.9 * v + g, speeds, grads)
        parameters = jax.tree.map(lambda p, v: p - 1e-4 * v, parameters, speeds)
        return (parameters, speeds, statistics), value

    state = (parameters, jax.tree.map(np.zeros_like, parameters), statistics)
    return _steps(state, step, _array(n, side, side, 3), RNG.randint(0, 1000, n))


def _product(n: int) -> Call:
    return _resident(jnp.matmul, _array(n, n), _array(n, n))


def _twenty(x: jax.Array, w: jax.Array) -> jax.Array:
    for _ in range(20):
        x = x @ w * 0.25
    return x


def _kernels20() -> Call:
    f, x, w = jax.jit(_twenty), np.eye(8, dtype=np.float32), jnp.asarray(_array(8, 8))
    return lambda: np.asarray(f(x, w))


_SIZED: dict[str, Callable[[int], Call]] = {
    "gemm": _product,
    "product": _product,
    "chain": _chain,
    "column_sums": lambda n: _resident(lambda x: x.sum(0), _array(n, 4096)),
    "row_sums": lambda n: _resident(lambda x: x.sum(1), _array(n, 4096)),
    **{f"{name}_inf": partial(_inferred, name) for name in NETWORKS},
    **{f"{name}_train": partial(_trained, name) for name in NETWORKS},
}

_WORKLOADS: dict[str, Callable[[], Call]] = {
    "call": lambda: _resident(lambda x: x + 1, _array(8)),
    "call100": _call100,
    "chain_big": lambda: _chain(10_000_000),
    "chain_small": lambda: _chain(65_536),
    "xent": _xent,
    "layernorm": _layernorm,
    "cs231n": _cs231n,
    "mlp": _mlp,
    "kernels20": _kernels20,
}


def _found(name: str) -> Call:
    """What to time."""
    if name in _WORKLOADS:
        return _WORKLOADS[name]()
    kind = name.rstrip("0123456789")
    if kind not in _SIZED or kind == name:
        raise SystemExit(f"no workload {name!r} in JAX")
    return _SIZED[kind](int(name[len(kind) :]))


def main() -> None:
    a = ARGUMENTS
    for workload in a.workload:
        found = measure(_found(workload), a.secs)
        result = {"peer": "jax", "workload": workload, "threads": a.threads, "mode": "jit"}
        rest = {"version": jax.__version__, "peak_rss_mb": round(peak_rss_mb(), 1)}
        print(json.dumps({**result, **found, "precision": a.precision, **rest}), flush=True)


if __name__ == "__main__":
    main()
