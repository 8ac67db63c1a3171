"""Random numbers: a counter-based generator, and the distributions made from its bits.

A random node is a pure function of (element position, run counter, key): Philox 4x32-10.  The run
counter is one u64 of session state per graph, advanced by every run that draws; the key comes from
the graph's seed and the operator's.  So a run's numbers do not depend on threads, sizes of blocks
or what else runs.

Seeds, as in TensorFlow: with neither seed every session draws other numbers; with a graph seed
every session repeats, and operators differ by the order they were made in; with an operator seed
that operator repeats in every session.  Imports: ops.define, ops.shape, ops.create, ops.state,
ops.arithmetic, ops.reduce, ops.random_bits, graph, dims, types.
"""

from __future__ import annotations

from typing import Any

from graphc.errors import GraphTypeError
from graphc.graph import get_default_graph, make
from graphc.node import Tensor
from graphc.ops.arithmetic import add, astype, divide, less, multiply, remainder, subtract, where
from graphc.ops.define import as_tensor, constant, floated
from graphc.ops.random_bits import (
    gumbel_of_bits,
    normal_of_bits,
    random_bits,
    truncated_of_bits,
    unit_of_bits,
)
from graphc.ops.reduce import argmax
from graphc.ops.shape import expand_dims
from graphc.ops.sizes import as_shape
from graphc.ops.state import identity
from graphc.types import DType, Shape, as_dtype, float32, float64, int32, uint32, uint64


def set_random_seed(seed: int | None) -> None:
    """Set the default graph's seed, for random operators made from now on."""
    get_default_graph().seed = seed


def _bits_of(dtype: DType) -> DType:
    if dtype not in (float32, float64):
        raise GraphTypeError(f"random numbers have dtype f32 or f64, not {dtype}")
    return uint64 if dtype is float64 else uint32


def _shape(shape: Any) -> Shape:
    return as_shape(shape, "random: shape")


def _unit(shape: Shape, dtype: DType, seed: int | None, name: str | None = None) -> Tensor:
    return unit_of_bits(random_bits(shape, _bits_of(dtype), seed, name=name))


def uniform(
    shape: Any,
    low: Any = 0.0,
    high: Any = 1.0,
    dtype: Any = float32,
    seed: int | None = None,
    name: str | None = None,
) -> Tensor:
    """Uniform numbers in [low, high), drawn anew in every run; integer dtypes give integers."""
    target = as_dtype(dtype)
    if target.is_integer:
        return _integers(_shape(shape), low, high, target, seed, name)
    unit = _unit(_shape(shape), target, seed, name)
    if _is_number(low, 0) and _is_number(high, 1):
        return unit
    start = as_tensor(low, target)
    return add(multiply(unit, subtract(as_tensor(high, target), start)), start)


def _is_number(value: Any, wanted: int) -> bool:
    return isinstance(value, (int, float)) and value == wanted


def _integers(
    shape: Shape, low: Any, high: Any, dtype: DType, seed: int | None, name: str | None
) -> Tensor:
    if isinstance(low, int) and isinstance(high, int) and low >= high:
        raise GraphTypeError(f"uniform: no integers in [{low}, {high})")
    start = as_tensor(low, dtype)
    span = astype(subtract(as_tensor(high, dtype), start), uint64)
    # 64 bits against a small span: the bias of the remainder is below 2**-32 for 32-bit dtypes
    drawn = remainder(random_bits(shape, uint64, seed, name=name), span)
    return add(astype(drawn, dtype), start)


def randint(
    low: int, high: int | None = None, shape: Any = (), dtype: Any = int32, seed: int | None = None
) -> Tensor:
    """Integers in [low, high), or [0, low) if `high` is None."""
    if high is None:
        low, high = 0, low
    return uniform(shape, low, high, dtype, seed)


def normal(
    shape: Any,
    mean: Any = 0.0,
    stddev: Any = 1.0,
    dtype: Any = float32,
    seed: int | None = None,
    name: str | None = None,
) -> Tensor:
    """Normally distributed numbers, drawn anew in every run."""
    target = as_dtype(dtype)
    kind, size = _bits_of(target), _shape(shape)
    first = random_bits(size, kind, seed, name=name)
    z = normal_of_bits(first, _second(first))
    return _scaled(z, mean, stddev, target)


def _second(first: Tensor) -> Tensor:
    """Further bits of the same draw."""
    node = first.node
    return make(node.op, (), {**node.attrs, "part": 1}).outputs[0]


def _scaled(z: Tensor, mean: Any, stddev: Any, dtype: DType) -> Tensor:
    if not _is_number(stddev, 1):
        z = multiply(z, as_tensor(stddev, dtype))
    return z if _is_number(mean, 0) else add(z, as_tensor(mean, dtype))


def truncated_normal(
    shape: Any,
    mean: Any = 0.0,
    stddev: Any = 1.0,
    dtype: Any = float32,
    seed: int | None = None,
    name: str | None = None,
) -> Tensor:
    """Normal numbers conditioned to lie within two standard deviations of the mean."""
    target = as_dtype(dtype)
    z = truncated_of_bits(random_bits(_shape(shape), _bits_of(target), seed, name=name))
    return _scaled(z, mean, stddev, target)


def bernoulli(shape: Any, p: Any = 0.5, dtype: Any = float32, seed: int | None = None) -> Tensor:
    """1 with probability p, else 0."""
    drawn = less(_unit(_shape(shape), float32, seed), as_tensor(p, float32))
    return astype(drawn, dtype)


def categorical(logits: Any, num_samples: int | None = None, seed: int | None = None) -> Tensor:
    """Class numbers (i64) with probabilities softmax(logits) over the last axis.

    num_samples   None: one per row, of shape logits.shape[:-1]; n: n per row, on a new last axis
    """
    x = floated(as_tensor(logits))
    shape = x.dims
    if num_samples is not None:
        x = expand_dims(x, -2)
        shape = (*shape[:-1], int(num_samples), shape[-1])
    noise = gumbel_of_bits(random_bits(shape, _bits_of(x.dtype), seed))
    # the largest of logit + Gumbel noise is distributed as the softmax
    return argmax(add(x, noise), axis=-1)


def dropout(x: Any, rate: Any = 0.5, noise_shape: Any = None, seed: int | None = None) -> Tensor:
    """x with each element zeroed with probability `rate`, the others divided by 1 - rate.

    rate         a number in [0, 1) or a scalar tensor
    noise_shape  a shape that broadcasts to that of x: elements that share a draw
    """
    x = floated(as_tensor(x))
    limit = as_tensor(rate, float32)
    if isinstance(rate, (int, float)):
        if not 0 <= rate < 1:
            raise GraphTypeError(f"dropout: rate must be in [0, 1), not {rate}")
        if rate == 0:
            return identity(x)
    shape = x.dims if noise_shape is None else _shape(noise_shape)
    kept = less(astype(limit, float32), _open_unit(shape, seed))
    keep = subtract(constant(1, x.dtype), astype(limit, x.dtype))
    return where(kept, divide(x, keep), constant(0, x.dtype))


def _open_unit(shape: Shape, seed: int | None) -> Tensor:
    """Uniform in (0, 1]: `rate < u` then holds with probability exactly 1 - rate."""
    return subtract(constant(1, float32), _unit(shape, float32, seed))


random_uniform, random_normal = uniform, normal

__all__ = [
    "bernoulli",
    "categorical",
    "dropout",
    "normal",
    "randint",
    "random_normal",
    "random_uniform",
    "set_random_seed",
    "truncated_normal",
    "uniform",
]
