"""Values in more digits than the program asks for, and how far roundings may move them.

Every float32 is computed in float64, by the NumPy meaning of each operator.  What a rounding does
is tried out: the program runs again with every result moved up or down by the error of its dtype,
at random.  Where such runs differ little, little difference is allowed; where they differ much (a
cancellation, a comparison of nearly equal numbers) nothing can be concluded.
Imports: program, node, types, dims, backends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc.backends.interpret_arrays import ROUNDING
from graphc.backends.reference import evaluate as evaluate_natively
from graphc.dims import Sizes
from graphc.errors import RunError
from graphc.node import Node, Tensor, topological
from graphc.ops.host import host_op
from graphc.program import evaluate_attrs, has_dims
from graphc.types import DType, TensorType, float32, float64

Array = np.ndarray[Any, Any]

FEW, MANY = 3, 24
"""Runs with roundings tried at first, and before a difference is called wrong."""


def widened(array: Any) -> Array:
    """float32 as float64; anything else as it is."""
    made: Array = np.asarray(array)
    return made.astype(np.float64) if made.dtype == np.float32 else made


def narrowed(array: Array, dtype: DType) -> Array:
    """An array in the dtype a program declares."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(array.astype(dtype.numpy, copy=False))


class Values:
    """The values of tensors for one set of feeds, state and sizes, each computed once.

    rng   moves every result by a rounding error drawn from it; None: nothing is moved
    base  the values without roundings, for operators that refuse the moved ones
    """

    def __init__(
        self,
        given: Mapping[Tensor, Array],
        state: Mapping[int, Array],
        sizes: Sizes,
        rng: np.random.Generator | None = None,
        base: Values | None = None,
    ) -> None:
        self.state = state
        self.sizes = sizes
        self.given = dict(given)
        self._rng = rng
        self._base = base
        self._known: dict[Tensor, Array] = {t: widened(a) for t, a in given.items()}

    def give(self, given: Mapping[Tensor, Array]) -> None:
        """Further tensors whose values are given."""
        self.given.update(given)
        self._known.update((t, widened(a)) for t, a in given.items())

    def of(self, t: Tensor) -> Array:
        """The value of a tensor; raises the RunError of an operator that fails."""
        found = self._known.get(t)
        if found is None:
            self.compute([t])
            found = self._known[t]
        return found

    def compute(self, tensors: Iterable[Tensor]) -> None:
        """Work out what the tensors need, in one walk."""
        done = {t.node.id for t in self._known}
        for node in topological([t.node for t in tensors], stop=done, control=False):
            if node.outputs and not all(t in self._known for t in node.outputs):
                self._run(node)

    def _run(self, node: Node) -> None:
        operands = [self._known[t] for t in node.inputs]
        level = _level(node)
        if self._rng is not None and node.kind in _SUMS:
            terms = _terms(node, operands)
            operands = [moved(x, level * max(1.0, terms), self._rng) for x in operands]
        try:
            results = evaluate(node, operands, self.state, self.sizes)
        except RunError:
            if self._base is None:
                raise
            results = tuple(self._base.of(t) for t in node.outputs)
        for t, value in zip(node.outputs, results, strict=True):
            if self._rng is not None and node.kind not in _EXACT:
                value = moved(value, ROUNDING.get(t.dtype.name, 0.0), self._rng)
            self._known[t] = value


_EXACT = ("leaf", "state", "view")
_SUMS = ("reduce", "contraction", "nest", "deferred")


def _level(node: Node) -> float:
    return max((ROUNDING.get(t.dtype.name, 0.0) for t in node.outputs), default=0.0)


def _terms(node: Node, operands: Sequence[Array]) -> float:
    """How the error of a sum grows with its terms: a term's share of it."""
    largest = max((x.size for x in operands), default=1)
    return 0.5 * float(np.sqrt(min(largest, 4096)))


def moved(array: Array, level: float, rng: np.random.Generator) -> Array:
    """Each element up or down by about `level` of itself."""
    if array.dtype.kind != "f" or not level:
        return array
    sign = rng.integers(0, 2, array.shape) * 2.0 - 1.0
    with np.errstate(all="ignore"):
        result = array * (1 + level * sign * rng.uniform(0.5, 1.0, array.shape))
    return np.where(np.isfinite(array), result, array)


def evaluate(
    node: Node, inputs: Sequence[Array], state: Mapping[int, Array], sizes: Sizes
) -> tuple[Array, ...]:
    """One node's outputs, float32 as float64."""
    if node.op is host_op:  # a Python function: it gets what it declared
        given = [narrowed(x, t.dtype) for x, t in zip(inputs, node.inputs, strict=True)]
        return tuple(widened(a) for a in evaluate_natively(node, given, state, sizes))
    if node.op.name in ("variable", "sizes") or node.op.reference is None:
        return tuple(widened(a) for a in evaluate_natively(node, inputs, state, sizes))
    attrs: Mapping[str, Any] = node.attrs
    if any(has_dims(v) for v in attrs.values()):
        attrs = evaluate_attrs(attrs, sizes)
    if node.op.normalize is not None and any(t.type.shape is None for t in node.inputs):
        # now that the ranks are known
        types = [TensorType(t.dtype, x.shape) for t, x in zip(node.inputs, inputs, strict=True)]
        attrs = node.op.normalize(types, attrs)
    if any(v is float32 for v in attrs.values()):
        attrs = {k: float64 if v is float32 else v for k, v in attrs.items()}
    with np.errstate(all="ignore"):
        try:
            result = node.op.reference(attrs, *inputs)
        except RunError as error:
            where = f"\n  at {node.loc}   {node.loc.source}"
            raise type(error)(f"{node.title}: {error}{where}") from None
    results = result if len(node.types) > 1 else (result,)
    return tuple(_typed(node.types[i].dtype, x) for i, x in enumerate(results))


def _typed(dtype: DType, value: Any) -> Array:
    array = np.asarray(value)
    wanted = np.dtype(np.float64) if dtype.is_float else dtype.numpy
    return array if array.dtype == wanted else array.astype(wanted)


class Samples:
    """Values, and the same with roundings tried out, as many times as it takes."""

    def __init__(
        self, given: Mapping[Tensor, Array], state: Mapping[int, Array], sizes: Sizes
    ) -> None:
        self.sizes = dict(sizes)
        self.base = Values(given, state, self.sizes)
        self._moved: list[Values] = []

    def give(self, given: Mapping[Tensor, Array]) -> None:
        """Further tensors whose values are given."""
        for values in (self.base, *self._moved):
            values.give(given)

    def of(self, t: Tensor) -> Array:
        return self.base.of(t)

    def moved(self, t: Tensor, count: int) -> list[Moved]:
        """The tensor's value, and its values in `count` runs with roundings."""
        base = self.base
        while len(self._moved) < count:
            rng = np.random.default_rng(len(self._moved))
            made = Values(base.given, base.state, base.sizes, rng, base)
            self._moved.append(made)
        return [(base.of(t), values.of(t)) for values in self._moved[:count]]


# ---- comparing ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The first element that is wrong: its index, what it should be and what it is."""

    index: tuple[int, ...]
    expected: Any
    got: Any
    count: int
    size: int

    def __str__(self) -> str:
        where = f"at index {self.index} " if self.index else ""
        return (
            f"{where}expected {self.expected}, got {self.got}"
            f" ({self.count} of {self.size} elements are wrong)"
        )


def same_bits(expected: Array, got: Array) -> Difference | None:
    """The first element whose bits differ, NaN being equal to NaN."""
    wrong = ~(expected == got)
    if expected.dtype.kind == "f":
        zeros = (expected == 0) & (got == 0) & (np.signbit(expected) != np.signbit(got))
        wrong = (wrong & ~(np.isnan(expected) & np.isnan(got))) | zeros
    return first_wrong(expected, got, wrong)


def other_zeros(expected: Array, got: Array) -> Difference | None:
    """The first zero whose sign differs."""
    if expected.dtype.kind != "f":
        return None
    zeros = (expected == 0) & (got == 0)
    return first_wrong(expected, got, zeros & (np.signbit(expected) != np.signbit(got)))


def first_wrong(expected: Array, got: Array, wrong: Array) -> Difference | None:
    """The first element marked wrong, row-major."""
    count = int(np.count_nonzero(wrong))
    if not count:
        return None
    flat = int(np.argmax(np.asarray(wrong).reshape(-1)))
    index = tuple(int(i) for i in np.unravel_index(flat, np.shape(wrong)))
    return Difference(index, expected[index], got[index], count, int(np.size(wrong)))


Moved = tuple[Array, Array]
"""A value as it is, and in a run with roundings."""


def disagreement(
    expected: Array,
    got: Array,
    dtype: DType,
    moved_runs: Callable[[int], list[Moved]],
    infinities: bool = True,
    slack: float = 0.0,
) -> Difference | None:
    """The first element of `got` that roundings in `dtype` do not explain.

    moved_runs  (how many) -> values before and after roundings are tried out
    infinities  whether a value that is not finite must stay what it is
    slack       roundings of the largest element that are let pass besides
    """
    if expected.shape != got.shape:
        shapes = f"shape {expected.shape}", f"shape {got.shape}"
        return Difference((), *shapes, got.size, got.size)
    with np.errstate(all="ignore"):
        wrong = ~(expected == got)
        if expected.dtype.kind == "f":
            wrong &= ~(np.isnan(expected) & np.isnan(got))
            if not infinities:
                wrong &= np.isfinite(expected)
        for count in (FEW, MANY):
            if not wrong.any():
                return None
            wrong = wrong & ~_explained(expected, got, dtype, moved_runs(count), slack)
    return first_wrong(expected, got, wrong)


def _explained(
    expected: Array, got: Array, dtype: DType, runs: Sequence[Moved], slack: float
) -> Array:
    """Where `got` is as near to `expected` as the runs with roundings are, within a factor."""
    if expected.dtype.kind != "f":
        low = high = np.zeros(expected.shape)
        for before, after in runs:
            change = np.asarray(after).astype(np.float64) - np.asarray(before).astype(np.float64)
            low, high = np.minimum(low, change), np.maximum(high, change)
        error = np.asarray(got).astype(np.float64) - np.asarray(expected).astype(np.float64)
        return np.asarray((low <= error) & (error <= high))
    level = ROUNDING[dtype.name]
    tiny = 4.0 * float(np.finfo(dtype.numpy).smallest_subnormal)
    spread = np.zeros(expected.shape)
    uncertain = np.zeros(expected.shape, bool)
    for before, after in runs:
        uncertain |= np.isfinite(after) != np.isfinite(before)
        change = np.abs(after - before)
        spread = np.maximum(spread, np.where(np.isfinite(change), change, 0.0))
    if slack:
        largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        tiny += slack * level * float(largest)
    near = np.abs(got - expected) <= 4 * spread + 4 * level * np.abs(expected) + tiny
    limit = float(np.finfo(dtype.numpy).max)
    overflows = (np.abs(expected) + 4 * spread > limit * (1 - level)) & ~np.isfinite(got)
    return np.asarray(near | uncertain | overflows)
