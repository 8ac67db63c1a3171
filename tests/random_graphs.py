"""Random typed graphs over all kinds of operators, from a seed.

Values stay within a few units, so that float tolerances mean something; sizes are static, named or
unknown.  Imports: graphc, NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import graphc as gx
from graphc.errors import ShapeError
from graphc.graph import Graph
from graphc.node import Tensor
from graphc.ops import activation
from graphc.ops.index import getitem
from graphc.ops.join import concat, pad
from graphc.ops.statistics import cumsum, softmax

Array = np.ndarray[Any, Any]


@dataclass
class RandomGraph:
    """A graph with what to feed, fetch and run, and its variables."""

    graph: Graph
    feeds: dict[Tensor, Array] = field(default_factory=dict)
    fetches: list[Tensor] = field(default_factory=list)
    updates: list[Tensor] = field(default_factory=list)
    variables: list[Any] = field(default_factory=list)


Shape = tuple[int, ...]


class _Maker:
    """Grows a graph; `pool` holds (tensor, its shape in this run)."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.made = RandomGraph(Graph(seed=seed))
        self.pool: list[tuple[Tensor, Shape]] = []
        self.sizes = [int(n) for n in self.rng.choice([1, 2, 3, 5, 8, 17, 33], 3)]

    # ---- leaves

    def leaf(self) -> None:
        rank = int(self.rng.integers(0, 4))
        shape = tuple(int(self.rng.choice(self.sizes)) for _ in range(rank))
        values = self.rng.uniform(-2, 2, shape).astype(np.float32)
        which = self.rng.integers(0, 6)
        if which == 0:
            t: Tensor = gx.constant(values)
        elif which == 1:
            t = gx.Variable(values)
            self.made.variables.append(t)
        elif which == 2:
            t = gx.placeholder("f32")
            self.made.feeds[t] = values
        else:
            t = gx.placeholder("f32", [self.declared(d) for d in shape])
            self.made.feeds[t] = values
        self.pool.append((t, shape))

    def declared(self, d: int) -> Any:
        """A size as the user may have declared it: known, named or unknown."""
        which = self.rng.integers(0, 3)
        return (d, f"n{d}", None)[which]

    def pick(self, wanted: Callable[[Shape], bool] = lambda shape: True) -> tuple[Tensor, Shape]:
        fitting = [p for p in self.pool if wanted(p[1])]
        if not fitting:
            raise Unfit
        # later values more often, so that graphs are deep
        weights = np.arange(1, len(fitting) + 1, dtype=float)
        found = fitting[int(self.rng.choice(len(fitting), p=weights / weights.sum()))]
        return found

    # ---- operators

    def unary(self) -> None:
        x, shape = self.pick()
        names = ("tanh", "sigmoid", "abs", "negative", "relu", "softplus", "sin", "square", "erf")
        name = str(self.rng.choice(names))
        t = getattr(activation if name in activation.__all__ else gx, name)(x)
        self.pool.append((gx.tanh(t), shape))

    def binary(self) -> None:
        a, shape = self.pick()
        b, other = self.pick(lambda s: _fits(s, shape))
        name = str(self.rng.choice(["add", "subtract", "multiply", "maximum", "minimum"]))
        t = getattr(gx, name)(a, b)
        self.pool.append((t * 0.5, np.broadcast_shapes(shape, other)))

    def algebra(self) -> None:
        """Forms that the rules look for."""
        x, shape = self.pick()
        forms: list[Callable[[Tensor], Tensor]] = [
            lambda x: x * 1 + 0,
            lambda x: gx.negative(gx.negative(x)) / 2,
            lambda x: gx.log(1 + gx.exp(x)),
            lambda x: 1 - activation.sigmoid(x),
            lambda x: gx.exp(x * 0.1) - 1,
            lambda x: gx.where(x > 0, x, x * 0.1),
            lambda x: gx.astype(gx.astype(x, "f64"), "f32"),
            lambda x: gx.exp(gx.tanh(x)) / (1 + gx.exp(gx.tanh(x))),
            lambda x: gx.sqrt(gx.square(x)),
            lambda x: gx.where(gx.logical_not(x > 0), gx.zeros_like(x), x),
        ]
        t = forms[int(self.rng.integers(len(forms)))](x)
        self.pool.append((gx.tanh(t), shape))

    def reduction(self) -> None:
        x, shape = self.pick(lambda s: len(s) > 0)
        axes = tuple(int(a) for a in range(len(shape)) if self.rng.random() < 0.5) or (-1,)
        keep = bool(self.rng.random() < 0.5)
        name = str(self.rng.choice(["sum", "mean", "max", "min"]))
        t = getattr(gx, name)(x, axis=axes, keepdims=keep)
        zeros = np.zeros(shape).sum(axis=axes, keepdims=keep)
        self.pool.append((gx.tanh(t), zeros.shape))

    def normalized(self) -> None:
        x, shape = self.pick(lambda s: len(s) > 0)
        if self.rng.random() < 0.5:
            self.pool.append((softmax(x, axis=-1), shape))
        else:
            centred = x - gx.mean(x, axis=0, keepdims=True)
            self.pool.append((centred / (1 + gx.mean(gx.square(centred))), shape))

    def matmul(self) -> None:
        a, shape = self.pick(lambda s: len(s) == 2)
        b, other = self.pick(lambda s: len(s) == 2 and shape[1] in s)
        flipped = other[0] != shape[1]
        if flipped and self.rng.random() < 0.5:
            t = gx.matmul(a, gx.transpose(b))
        else:
            t = gx.matmul(a, b, transpose_b=flipped)
        self.pool.append((gx.tanh(t * 0.3), (shape[0], other[0] if flipped else other[1])))

    def transpose(self) -> None:
        x, shape = self.pick(lambda s: len(s) > 1)
        perm = [int(p) for p in self.rng.permutation(len(shape))]
        self.pool.append((gx.transpose(x, perm), tuple(shape[p] for p in perm)))

    def reshape(self) -> None:
        x, shape = self.pick(lambda s: len(s) > 0)
        which = self.rng.integers(0, 3)
        if which == 0:
            self.pool.append((gx.reshape(x, (-1,)), (int(np.prod(shape)),)))
        elif which == 1:
            axis = int(self.rng.integers(0, len(shape) + 1))
            self.pool.append((gx.expand_dims(x, axis), (*shape[:axis], 1, *shape[axis:])))
        else:
            n = int(np.prod(shape))
            self.pool.append((gx.reshape(x, (1, -1)), (1, n)))

    def slice(self) -> None:
        x, shape = self.pick(lambda s: len(s) > 0 and s[0] > 1)
        which = self.rng.integers(0, 3)
        key = (slice(1, None), slice(None, None, -1), 0)[which]
        self.pool.append((getitem(x, key), np.zeros(shape)[key].shape))

    def join(self) -> None:
        x, shape = self.pick(lambda s: len(s) > 0)
        y, other = self.pick(lambda s: len(s) == len(shape) and s[1:] == shape[1:])
        if self.rng.random() < 0.5:
            self.pool.append((concat([x, y], axis=0), (shape[0] + other[0], *shape[1:])))
        else:
            pads = [(1, 2)] + [(0, 0)] * (len(shape) - 1)
            self.pool.append((pad(x, pads), (shape[0] + 3, *shape[1:])))

    def gather(self) -> None:
        x, shape = self.pick(lambda s: len(s) > 0 and s[0] > 0)
        index = self.rng.integers(0, shape[0], 4)
        self.pool.append((gx.gather(x, index.astype(np.int32)), (4, *shape[1:])))

    def running(self) -> None:
        x, shape = self.pick(lambda s: len(s) > 0)
        self.pool.append((gx.tanh(cumsum(x, axis=-1) * 0.2), shape))

    def gradient(self) -> None:
        y, _ = self.pick()
        leaves = [*self.made.feeds, *self.made.variables]
        x = leaves[int(self.rng.integers(len(leaves)))]
        shape = {id(t): s for t, s in self.pool}[id(x)]
        (g,) = gx.gradients(gx.sum(y), [x])
        if g is not None:
            self.pool.append((gx.tanh(g), shape))

    def assign(self) -> None:
        if not self.made.variables:
            raise Unfit
        v = self.made.variables[int(self.rng.integers(len(self.made.variables)))]
        shape = {id(t): s for t, s in self.pool}[id(v)]
        value, _ = self.pick(lambda s: s == shape)
        update = v.assign_sub if self.rng.random() < 0.5 else v.assign
        self.made.updates.append(update(value * 0.1))


class Unfit(Exception):
    """No value in the pool has the shape an operator wants."""


def _fits(a: Shape, b: Shape) -> bool:
    try:
        result = np.broadcast_shapes(a, b)
    except ValueError:
        return False
    return int(np.prod(result)) <= 20_000


KINDS: tuple[Callable[[_Maker], None], ...] = (
    _Maker.unary,
    _Maker.binary,
    _Maker.binary,
    _Maker.algebra,
    _Maker.reduction,
    _Maker.normalized,
    _Maker.matmul,
    _Maker.matmul,
    _Maker.transpose,
    _Maker.reshape,
    _Maker.slice,
    _Maker.join,
    _Maker.gather,
    _Maker.running,
    _Maker.gradient,
    _Maker.assign,
)


def random_graph(seed: int, operations: int = 14) -> RandomGraph:
    """The graph of this seed; the same in every process."""
    maker = _Maker(seed)
    with maker.made.graph.as_default():
        maker.pool.append((gx.constant(0.5), ()))
        x = gx.placeholder("f32", (None, 4))
        maker.made.feeds[x] = maker.rng.uniform(-2, 2, (5, 4)).astype(np.float32)
        maker.pool.append((x, (5, 4)))
        for _ in range(int(maker.rng.integers(2, 5))):
            maker.leaf()
        for _ in range(operations):
            kind = KINDS[int(maker.rng.integers(len(KINDS)))]
            try:
                kind(maker)
            except Unfit:
                continue
            except ShapeError as error:
                if "rank" not in str(error) and "not known" not in str(error):
                    raise
    wanted = min(4, len(maker.pool))
    maker.made.fetches = [t for t, _ in maker.pool[-wanted:]]
    return maker.made
