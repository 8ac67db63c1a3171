"""The random bit generator, Philox 4x32-10 (Salmon et al., SC 2011), and floats from its bits.

`random_bits` is what the user's graph holds; `resolve_state` turns it into `philox` applied to
element positions and the run counter.
Imports: ops.define, ops.shape, ops.create, ops.state, ops.arithmetic, kernel, graph, dims, types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.errors import GraphTypeError
from graphc.graph import Graph, get_default_graph, make
from graphc.kernel import Expr
from graphc.node import Attrs, Tensor
from graphc.ops.arithmetic import remainder
from graphc.ops.create import iota
from graphc.ops.define import (
    NOT_DIFFERENTIABLE,
    Sample,
    Samples,
    ScalarBuilder,
    bind_function,
    broadcast_shapes,
    constant,
    op,
)
from graphc.ops.shape import reshape
from graphc.ops.state import variable_op
from graphc.types import DType, Shape, TensorType, float32, float64, int64, uint32, uint64

Types = Sequence[TensorType]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF

# ---- keys --------------------------------------------------------------------------------------

key_op = op(
    "random_key",
    "leaf",
    infer=lambda types, attrs: (TensorType(uint64, ()),),
    reference=lambda attrs: np.array(attrs["key"], np.uint64),
    vjp=NOT_DIFFERENTIABLE,
    samples=Samples((Sample((), {"key": 2**64 - 2}),), dtypes=(uint64,), gradient=()),
    note="a number kernels read from memory, so that random operators share their code",
)


def key_tensor(key: int) -> Tensor:
    """A Philox key.  A constant would be written into the code of every kernel that draws."""
    return make(key_op, (), {"key": int(key)}).outputs[0]


bind_function(key_op, key_tensor)

# ---- philox ------------------------------------------------------------------------------------


def _infer_philox(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    index, counter, key = types
    if index.dtype is not int64 or counter.dtype is not uint64 or key.dtype is not uint64:
        found = f"positions of {index.dtype}, a counter of {counter.dtype}, a key of {key.dtype}"
        raise GraphTypeError(f"random bits from {found}")
    shape = broadcast_shapes([index.shape, counter.shape, key.shape])
    return (TensorType(attrs["dtype"], shape),)


def _philox_words(
    s: ScalarBuilder, words: tuple[Expr, Expr, Expr, Expr], key: Expr
) -> tuple[Expr, Expr, Expr, Expr]:
    k0, k1 = _halves(s, key)
    x0, x1, x2, x3 = words
    for _ in range(_ROUNDS):
        m0, m1 = (s.const(m, uint32) for m in _MULTIPLIERS)
        high0, low0 = s.mulhi(x0, m0), s.mul(x0, m0)
        high1, low1 = s.mulhi(x2, m1), s.mul(x2, m1)
        x0 = s.xor(s.xor(high1, x1), k0)
        x2 = s.xor(s.xor(high0, x3), k1)
        x1, x3 = low1, low0
        k0, k1 = s.add(k0, _WEYL[0]), s.add(k1, _WEYL[1])
    return x0, x1, x2, x3


def _halves(s: ScalarBuilder, x: Expr) -> tuple[Expr, Expr]:
    return s.cast(x, uint32), s.cast(s.shr(x, 32), uint32)


def _philox_body(
    s: ScalarBuilder, index: Expr, counter: Expr, key: Expr, part: int, dtype: DType
) -> Expr:
    x0, x1 = _halves(s, s.cast(index, uint64))
    x2, x3 = _halves(s, counter)
    words = _philox_words(s, (x0, x1, x2, x3), key)
    if dtype is uint32:
        return words[part]
    low, high = (s.cast(w, uint64) for w in words[2 * part : 2 * part + 2])
    return s.or_(low, s.shl(high, 32))


def philox_words(index: Any, counter: Any, key: Any) -> list[Any]:
    """The four 32-bit words of Philox 4x32-10, in NumPy, as u64 arrays."""
    mask, shift = np.uint64(_LOW), np.uint64(32)
    wide = [np.asarray(x).astype(np.uint64) for x in (index, counter, key)]
    index, counter, key = np.broadcast_arrays(*wide)
    x = [index & mask, index >> shift, counter & mask, counter >> shift]
    k0, k1 = key & mask, key >> shift
    for _ in range(_ROUNDS):
        p0, p1 = x[0] * np.uint64(_MULTIPLIERS[0]), x[2] * np.uint64(_MULTIPLIERS[1])
        x = [
            (p1 >> shift) ^ x[1] ^ k0,
            p1 & mask,
            (p0 >> shift) ^ x[3] ^ k1,
            p0 & mask,
        ]
        k0, k1 = (k0 + np.uint64(_WEYL[0])) & mask, (k1 + np.uint64(_WEYL[1])) & mask
    return x


def _philox_reference(attrs: Attrs, index: Any, counter: Any, key: Any) -> Any:
    words = philox_words(index, counter, key)
    part = attrs["part"]
    if attrs["dtype"] is uint32:
        return words[part].astype(np.uint32)
    return words[2 * part] | (words[2 * part + 1] << np.uint64(32))


philox_op = op(
    "philox",
    "elementwise",
    infer=_infer_philox,
    reference=_philox_reference,
    vjp=NOT_DIFFERENTIABLE,
    lower=_philox_body,
    samples=Samples(
        tuple(
            Sample(
                ((5,), (), ()),
                {"part": part, "dtype": dtype},
                (
                    np.array([0, 1, 2, 3, 2**40]),
                    np.array(7 + 2**50, np.uint64),
                    np.array(0x1234_5678_9ABC_DEF0, np.uint64),
                ),
            )
            for part, dtype in ((0, uint32), (3, uint32), (0, uint64), (1, uint64))
        ),
        dtypes=(int64,),
        gradient=(),
    ),
)


def philox(index: Any, counter: Any, key: Any, part: int, dtype: DType) -> Tensor:
    """Bits for each position (i64) at a counter (u64), from a key (u64): word `part` of a block."""
    inputs = [t if isinstance(t, Tensor) else constant(t) for t in (index, counter, key)]
    return make(philox_op, inputs, {"part": part, "dtype": dtype}).outputs[0]


bind_function(philox_op, philox)

# ---- random_bits -------------------------------------------------------------------------------


def _positions(shape: Shape) -> Tensor:
    """The row-major position of every element: a view, so that nothing is computed or shared."""
    return reshape(iota(dims.product(shape)), shape)


def _bits_of_counter(
    counter: Tensor, shape: Shape, dtype: DType, key: int, seeded: bool, part: int
) -> Tensor:
    if seeded:
        # sessions of an unseeded graph differ in the upper half only: see `Session`
        counter = _run_number(counter)
    return philox(_positions(shape), counter, key_tensor(key), part, dtype)


def _run_number(counter: Tensor) -> Tensor:
    return remainder(counter, constant(np.uint64(2**32)))


_bits_op = op(
    "random_bits",
    "random",
    infer=lambda types, attrs: (TensorType(attrs["dtype"], attrs["shape"]),),
    reference=None,  # resolved before any back end sees it
    vjp=NOT_DIFFERENTIABLE,
    lower=_bits_of_counter,
    stateful=True,
    samples=Samples(
        (
            Sample((), {"shape": (5,), "dtype": uint32, "seed": 3}),
            Sample((), {"shape": (2, 3), "dtype": uint64, "seed": None, "part": 1}),
            Sample((), {"shape": (), "dtype": uint32, "seed": None}),
        ),
        dtypes=(uint32,),
        gradient=(),
    ),
    note="a function of the run counter; attribute part: which words of the block",
)


def _counter_of(graph: Graph) -> Tensor:
    """The run counter: session state like a variable, but in no collection."""
    if graph.random_counter is None:
        with graph.control_dependencies(None):
            attrs = {"dtype": uint64, "shape": ()}
            node = graph.make(variable_op, (), attrs, "random_counter")
        graph.random_counter = node.outputs[0]
    return graph.random_counter


def _mixed(x: int) -> int:
    """splitmix64: spreads small seeds over all 64 bits."""
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def random_key(graph: Graph, seed: int | None) -> int:
    """The Philox key of a new random operator."""
    graph.random_ops += 1
    salt = 0 if graph.seed is None else _mixed(int(graph.seed) & (2**64 - 1))
    own = graph.random_ops if seed is None else int(seed) & (2**64 - 1)
    # operators numbered by the graph and those seeded by the user draw from different streams
    return _mixed(salt ^ _mixed(own) ^ (0 if seed is None else 0x5EED))


def random_bits(
    shape: Shape, dtype: DType, seed: int | None, part: int = 0, name: str | None = None
) -> Tensor:
    """Random u32 or u64 bits of `shape`, drawn anew in every run."""
    graph = get_default_graph()
    _counter_of(graph)
    attrs = {
        "shape": tuple(shape),
        "dtype": dtype,
        "key": random_key(graph, seed),
        "seeded": seed is not None or graph.seed is not None,
        "part": part,
    }
    return make(_bits_op, (), attrs, name or "random").outputs[0]


bind_function(_bits_op, random_bits)

# ---- floats from bits --------------------------------------------------------------------------

Scalar = Callable[..., Expr]

_BITS = [_mixed(i) for i in range(5)] + [0, 2**64 - 1]
"""Sample bits, the extremes among them."""


def _unit_body(s: ScalarBuilder, bits: Expr) -> Expr:
    """[0, 1) with as many bits as the float's mantissa holds."""
    if bits.dtype is uint32:
        return s.mul(s.cast(s.shr(bits, 8), float32), 2.0**-24)
    return s.mul(s.cast(s.shr(bits, 11), float64), 2.0**-53)


def _unit_reference(bits: Any) -> Any:
    if bits.dtype == np.uint32:
        return ((bits >> np.uint32(8)) * np.float32(2.0**-24)).astype(np.float32)
    return (bits >> np.uint64(11)) * 2.0**-53


def _open_unit(s: ScalarBuilder, bits: Expr) -> Expr:
    """(0, 1): the middle of each of the steps, so that its logarithm is finite."""
    half = 2.0**-25 if bits.dtype is uint32 else 2.0**-54
    return s.add(_unit_body(s, bits), half)


def _open_reference(bits: Any) -> Any:
    half = 2.0**-25 if bits.dtype == np.uint32 else 2.0**-54
    unit = _unit_reference(bits)
    return unit + unit.dtype.type(half)


def _normal_body(s: ScalarBuilder, first: Expr, second: Expr) -> Expr:
    """Box and Muller: a radius and an angle."""
    unit = _unit_body(s, first)
    radius = s.sqrt(s.mul(s.log(s.sub(s.const(1, unit), unit)), -2.0))
    return s.mul(radius, s.cos(s.mul(_unit_body(s, second), 2 * np.pi)))


def _normal_reference(first: Any, second: Any) -> Any:
    unit, turn = _unit_reference(first), _unit_reference(second)
    kind = unit.dtype.type
    return np.sqrt(np.log(1 - unit) * kind(-2)) * np.cos(turn * kind(2 * np.pi))


def _gumbel_body(s: ScalarBuilder, bits: Expr) -> Expr:
    return s.neg(s.log(s.neg(s.log(_clamped_open(s, bits)))))


def _clamped_open(s: ScalarBuilder, bits: Expr) -> Expr:
    """(0, 1), kept off 1 where adding half a step rounds up to it."""
    unit = _open_unit(s, bits)
    top = 1 - (2.0**-24 if bits.dtype is uint32 else 2.0**-53)
    return s.min(unit, top)


def _gumbel_reference(bits: Any) -> Any:
    unit = _open_reference(bits)
    top = 1 - (2.0**-24 if bits.dtype == np.uint32 else 2.0**-53)
    return -np.log(-np.log(np.minimum(unit, unit.dtype.type(top))))


_TWO_SIGMA = 0.95449973610364158
"""The probability that a normal number lies within two standard deviations: erf(sqrt(2))."""

_ERFINV = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
"""Giles' approximation of erfinv(y) / y in w - 2.5, w = -log(1 - y*y) < 5 (GPU Gems, 2010)."""

_NEWTON_SCALE = 0.5 * np.sqrt(np.pi)


def _truncated_body(s: ScalarBuilder, bits: Expr) -> Expr:
    """sqrt(2) * erfinv(y) for y uniform within two standard deviations' probability."""
    unit = _unit_body(s, bits)
    y = s.mul(s.sub(s.mul(unit, 2.0), 1.0), _TWO_SIGMA)
    w = s.sub(s.neg(s.log1p(s.neg(s.mul(y, y)))), 2.5)
    p = s.const(_ERFINV[0], y)
    for c in _ERFINV[1:]:
        p = s.add(s.mul(p, w), c)
    x = s.mul(p, y)
    if y.dtype is float64:
        for _ in range(2):  # the polynomial is good to 24 bits; each step doubles them
            slope = s.mul(s.exp(s.mul(x, x)), _NEWTON_SCALE)
            x = s.sub(x, s.mul(s.sub(s.erf(x), y), slope))
    return s.mul(x, float(np.sqrt(2.0)))


def _truncated_reference(bits: Any) -> Any:
    from math import erf

    unit = _unit_reference(bits)
    y = (unit.astype(np.float64) * 2 - 1) * _TWO_SIGMA
    w = -np.log1p(-y * y) - 2.5
    x = np.polyval(_ERFINV, w) * y
    for _ in range(2):
        x = x - (np.vectorize(erf, otypes=[float])(x) - y) * _NEWTON_SCALE * np.exp(x * x)
    return (x * np.sqrt(2.0)).astype(unit.dtype)


def _from_bits(
    name: str, arity: int, scalar: Scalar, reference: Callable[..., Any], doc: str
) -> Callable[..., Tensor]:
    """An elementwise operator from u32 bits to f32, or u64 bits to f64."""

    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        if types[0].dtype not in (uint32, uint64) or len({t.dtype for t in types}) > 1:
            raise GraphTypeError(f"bits have dtype u32 or u64, not {types[0].dtype}")
        result = float32 if types[0].dtype is uint32 else float64
        return (TensorType(result, broadcast_shapes([t.shape for t in types])),)

    wide = tuple(np.array(_BITS[i:] + _BITS[:i], np.uint64) for i in range(arity))
    values = tuple((v >> np.uint64(32)).astype(np.uint32) for v in wide)
    record = op(
        name,
        "elementwise",
        infer=infer,
        reference=lambda attrs, *bits: reference(*bits),
        vjp=NOT_DIFFERENTIABLE,
        lower=scalar,
        samples=Samples(
            (Sample(((7,),) * arity, {}, values), Sample(((7,),) * arity, {}, wide)),
            dtypes=(uint32,),
            gradient=(),
            tolerance=8.0,
        ),
        note=doc,
    )

    def function(*bits: Any, name: str | None = None) -> Tensor:
        tensors = [b if isinstance(b, Tensor) else constant(b) for b in bits]
        return make(record, tensors, {}, name).outputs[0]

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    bind_function(record, function)
    return function


unit_of_bits = _from_bits(
    "unit_of_bits", 1, _unit_body, _unit_reference, "Bits as a number in [0, 1)."
)
normal_of_bits = _from_bits(
    "normal_of_bits", 2, _normal_body, _normal_reference, "Two words as a normal number."
)
gumbel_of_bits = _from_bits(
    "gumbel_of_bits", 1, _gumbel_body, _gumbel_reference, "Bits as a Gumbel number."
)
truncated_of_bits = _from_bits(
    "truncated_of_bits",
    1,
    _truncated_body,
    _truncated_reference,
    "Bits as a normal number conditioned to [-2, 2].",
)
