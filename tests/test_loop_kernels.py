"""Loop kernels as machine code against the interpreter of the kernel IR."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from loop_kernel_generator import Random
from loop_kernel_jit import Compiled, agree, count_blocks, execute

from graphc.dims import Dim, DimLike, symbol
from graphc.kernel import (
    MAP_BLOCK,
    Access,
    Accumulator,
    Expr,
    LoopKernel,
    Ragged,
    Stage,
    Store,
    Term,
)
from graphc.types import DTYPES, NUMBERS, DType, bool_, float32, float64, int32, int64

Array = np.ndarray[Any, Any]

n, m = symbol("n"), symbol("m")


def along(axis: int, stride: DimLike = 1, coefficient: DimLike = 1, **guard: Any) -> Term:
    return Term(((axis, coefficient),), stride, **guard)


def load(buf: int, *terms: Term, dtype: DType = float32, fill: float = 0) -> Expr:
    return Expr("load", (), (Access(buf, terms), fill), dtype)


def const(value: float, dtype: DType = float32) -> Expr:
    return Expr("const", (), value, dtype)


def op(name: str, *args: Expr, dtype: DType | None = None) -> Expr:
    return Expr(name, args, None, dtype or args[0].dtype)


def acc(number: int, dtype: DType = float32) -> Expr:
    return Expr("acc", (), number, dtype)


def store(buf: int, expr: Expr, *terms: Term, **more: Any) -> Store:
    return Store(Access(buf, terms), expr, **more)


def straight(*stores: Store) -> Stage:
    return Stage((), (), stores)


def numbers(seed: int, size: int, dtype: DType = float32) -> Array:
    rng = np.random.default_rng(seed)
    if dtype.is_float:
        return rng.normal(size=size).astype(dtype.numpy)
    if dtype.is_bool:
        return rng.integers(0, 2, size).astype(bool)
    return rng.integers(-50 if dtype.is_signed else 0, 51, size).astype(dtype.numpy)


def zeros(size: int, dtype: DType = float32) -> Array:
    return np.zeros(size, dtype.numpy)


# ---- maps and addressing


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coefficient", [1, -1, 2])
def test_every_dtype_is_copied(dtype: DType, coefficient: int) -> None:
    shift = n - 1 if coefficient < 0 else 0
    term = along(0, 1, coefficient, shift=shift)
    kernel = LoopKernel(
        (n,), (0,), 0, (dtype, dtype), (straight(store(1, load(0, term, dtype=dtype), along(0))),)
    )
    for size in (0, 1, 16, 37):
        agree(kernel, [numbers(1, 2 * size, dtype), zeros(size, dtype)], {n: size})
        term_out = (along(0, 1, coefficient, shift=shift),)
    scatter = LoopKernel(
        (n,),
        (0,),
        0,
        (dtype, dtype),
        (straight(store(1, load(0, along(0), dtype=dtype), *term_out)),),
    )
    agree(scatter, [numbers(1, 37, dtype), zeros(74, dtype)], {n: 37})


def test_map_spans_blocks() -> None:
    kernel = LoopKernel(
        (n,),
        (0,),
        0,
        (float32, float32),
        (straight(store(1, op("add", load(0, along(0)), const(1)), along(0))),),
    )
    compiled = Compiled(kernel)
    size = 2 * MAP_BLOCK + 77
    assert count_blocks(kernel, {n: size}) == 3
    x = numbers(2, size)
    (_, y), _ = execute(compiled, [x, zeros(size)], {n: size})
    np.testing.assert_array_equal(y, x + np.float32(1))
    (_, part), _ = execute(compiled, [x, zeros(size)], {n: size}, [(1, 2)])
    touched = np.flatnonzero(part)
    assert (touched[0], touched[-1]) == (MAP_BLOCK, 2 * MAP_BLOCK - 1)


@pytest.mark.parametrize("axes", [(), (1,)])
def test_scalar_kernel(axes: tuple[int, ...]) -> None:
    par = tuple(range(len(axes)))
    kernel = LoopKernel(axes, par, 0, (float32, float32), (straight(store(1, op("neg", load(0)))),))
    _, y = agree(kernel, [numbers(3, 1), zeros(1)])
    assert y[0] == -numbers(3, 1)[0]


def test_transposed_copy() -> None:
    x = load(0, along(0), along(1, n))
    kernel = LoopKernel(
        (n, m), (0, 1), 1, (float32, float32), (straight(store(1, x, along(0, m), along(1))),)
    )
    for rows, columns in ((3, 20), (0, 5), (5, 0), (1, 1)):
        data = numbers(4, rows * columns)
        _, y = agree(kernel, [data, zeros(rows * columns)], {n: rows, m: columns})
        np.testing.assert_array_equal(y.reshape(rows, columns), data.reshape(columns, rows).T)


@pytest.mark.parametrize("vec", [0, 1])
@pytest.mark.parametrize("fill", [0, -2.5])
def test_padding_is_a_guarded_load(vec: int, fill: float) -> None:
    par = (1 - vec, vec)
    x = load(
        0,
        along(0, m, shift=-2, limit=n),
        along(1, 1, shift=-1, limit=m),
        fill=fill,
    )
    out = store(1, x, along(0, m + 2), along(1))
    kernel = LoopKernel((n + 4, m + 2), par, vec, (float32, float32), (straight(out),))
    for rows, columns in ((3, 20), (20, 3), (0, 4), (4, 0)):
        data = numbers(5, rows * columns)
        size = (rows + 4) * (columns + 2)
        _, y = agree(kernel, [data, zeros(size)], {n: rows, m: columns})
        expected = np.pad(data.reshape(rows, columns), ((2, 2), (1, 1)), constant_values=fill)
        np.testing.assert_array_equal(y, expected.ravel())


@pytest.mark.parametrize(("coefficient", "shift"), [(1, 3), (2, 4), (-4, 20), (3, -3)])
def test_division_takes_only_exact_multiples(coefficient: int, shift: int) -> None:
    x = load(0, along(0, 1, coefficient, shift=shift, div=2, limit=11), fill=9)
    kernel = LoopKernel((40,), (0,), 0, (float32, float32), (straight(store(1, x, along(0))),))
    _, y = agree(kernel, [numbers(6, 11), zeros(40)])
    assert np.any(y == 9) and np.any(y != 9)


def test_guarded_store_writes_nothing_outside() -> None:
    out = store(
        1,
        load(0, along(0, m), along(1)),
        along(0, 5, shift=-1, limit=n),
        along(1, 1, shift=-2, limit=5),
    )
    kernel = LoopKernel((n, m), (0, 1), 1, (float32, float32), (straight(out),))
    agree(kernel, [numbers(7, 4 * 20), zeros(20)], {n: 4, m: 20})


def test_gather_reads_zero_outside() -> None:
    index = load(0, along(0), dtype=int64)
    row = Expr(
        "gather", (op("mul", index, const(8, int64)),), (Access(1, (along(1),)), 40), float32
    )
    each = Expr("gather", (index,), (Access(1, ()), 40), float32)
    kernel = LoopKernel(
        (n, 8),
        (0, 1),
        1,
        (int64, float32, float32),
        (straight(store(2, row, along(0, 8), along(1))),),
    )
    positions = np.array([0, 4, -1, 2, 7, 5], np.int64)
    agree(kernel, [positions, numbers(8, 48), zeros(48)], {n: 6})
    lanes = LoopKernel(
        (n,), (0,), 0, (int64, float32, float32), (straight(store(2, each, along(0))),)
    )
    positions = np.arange(-5, 60, dtype=np.int64) * 3 % 53 - 4
    agree(lanes, [positions, numbers(8, 40), zeros(65)], {n: 65})


# ---- stores in place and of several lanes


def test_in_place() -> None:
    """An output buffer may be an input buffer with the same access."""
    x = load(0, along(0, m), along(1))
    total = Stage((1,), (Accumulator("sum", x, float32),))
    out = Stage((1,), (), (store(1, op("sub", x, acc(0)), along(0, m), along(1)),))
    kernel = LoopKernel((n, m), (0,), 1, (float32, float32), (total, out))
    data = numbers(9, 3 * 70)
    _, expected = agree(kernel, [data, zeros(210)], {n: 3, m: 70}, 1e-5)
    shared = data.copy()
    Compiled(kernel).run([shared.ctypes.data] * 2, {n: 3, m: 70}, [(0, 3)])
    np.testing.assert_array_equal(shared, expected)


def test_later_stages_read_what_earlier_ones_stored() -> None:
    x, y = load(0, along(0, m), along(1)), load(1, along(0, m), along(1))
    out = store(1, op("add", x, const(1)), along(0, m), along(1))
    stages = (
        Stage((1,), (), (out,)),
        Stage((1,), (Accumulator("max", y, float32),)),
        Stage((1,), (), (store(1, op("mul", y, acc(0)), along(0, m), along(1)),)),
        Stage((1,), (Accumulator("min", y, float32),)),
        straight(store(2, acc(1), along(0))),
    )
    kernel = LoopKernel((n, m), (0,), 1, (float32,) * 3, stages)
    agree(kernel, [numbers(10, 90), zeros(90), zeros(2)], {n: 2, m: 45})


def test_a_loop_reads_again_what_it_stores() -> None:
    y = load(1, along(0))
    doubled = store(1, op("add", op("add", y, y), load(0, along(1))), along(0))
    stages = (straight(store(2, y, along(0))), Stage((1,), (), (doubled,)))
    kernel = LoopKernel((n, 5), (0,), 0, (float32,) * 3, stages)
    start = np.arange(20, dtype=np.float32)
    agree(kernel, [numbers(11, 5), start, zeros(20)], {n: 20}, 1e-6)


@pytest.mark.parametrize("dtype", [float32, float64, int32, bool_], ids=str)
@pytest.mark.parametrize("vec_in_par", [False, True])
def test_add_to_colliding_elements(dtype: DType, vec_in_par: bool) -> None:
    index = load(0, along(0), dtype=int64)
    out = store(2, load(1, along(0), dtype=dtype), index=index, extent=5, add=True)
    if vec_in_par:
        kernel = LoopKernel((n,), (0,), 0, (int64, dtype, dtype), (straight(out),))
    else:
        kernel = LoopKernel((n,), (), 0, (int64, dtype, dtype), (Stage((0,), (), (out,)),))
    positions = np.random.default_rng(12).integers(-1, 7, 75)
    agree(kernel, [positions, numbers(13, 75, dtype), numbers(14, 5, dtype)], {n: 75})


def test_add_rows_of_a_table() -> None:
    index = op("mul", load(0, along(0), dtype=int64), const(20, int64))
    out = store(2, load(1, along(0, 20), along(1)), along(1), index=index, extent=60, add=True)
    kernel = LoopKernel((n, 20), (1,), 1, (int64, float32, float32), (Stage((0,), (), (out,)),))
    positions = np.array([0, 2, 0, 2, 1, 2], np.int64)
    agree(kernel, [positions, numbers(15, 120), zeros(60)], {n: 6})


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("dtype", [float32, int32, bool_], ids=str)
def test_all_lanes_hit_one_element(add: bool, dtype: DType) -> None:
    out = store(1, load(0, along(0), dtype=dtype), add=add)
    kernel = LoopKernel((n,), (), 0, (dtype, dtype), (Stage((0,), (), (out,)),))
    for size in (0, 1, 16, 45):
        agree(kernel, [numbers(16, size, dtype), numbers(17, 1, dtype)], {n: size})


# ---- reductions


def reduction(op_name: str, dtype: DType, rows: bool) -> LoopKernel:
    x = load(0, along(0, m), along(1), dtype=dtype)
    result = int64 if op_name.startswith("arg") else dtype
    par, red = (0, 1) if rows else (1, 0)
    stages = (
        Stage((red,), (Accumulator(op_name, x, result),)),
        straight(store(1, acc(0, result), along(par))),
    )
    return LoopKernel((n, m), (par,), 1, (dtype, result), stages)


_NUMBER_REDUCERS = ("sum", "prod", "max", "min", "argmax", "argmin")


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "columns"])
@pytest.mark.parametrize("name", _NUMBER_REDUCERS)
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_every_reducer(name: str, dtype: DType, rows: bool) -> None:
    kernel = reduction(name, dtype, rows)
    height, width = (2, 75) if rows else (5, 20)
    result = kernel.bufs[1]
    outputs = zeros(height if rows else width, result)
    data = numbers(18, height * width, dtype)
    agree(kernel, [data, outputs], {n: height, m: width}, 1e-4)


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "columns"])
@pytest.mark.parametrize("name", ["any", "all"])
def test_logical_reducers(name: str, rows: bool) -> None:
    kernel = reduction(name, bool_, rows)
    for p in (0.02, 0.98):
        data = np.random.default_rng(19).random(8 * 30) < p
        outputs = zeros(8 if rows else 30, bool_)
        agree(kernel, [data, outputs], {n: 8, m: 30})


@pytest.mark.parametrize("name", ["argmax", "argmin", "max", "min"])
@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
def test_order_reducers_at_their_edges(name: str, dtype: DType) -> None:
    worst = -np.inf if name.endswith("max") else np.inf
    data = np.zeros((6, 90), dtype.numpy)
    data[1, [20, 70]] = np.nan
    data[2] = worst
    data[3] = worst
    data[3, 85] = np.nan
    data[4, [3, 67, 80]] = -worst
    data[5, 64:] = 1 if worst < 0 else -1
    for rows in (True, False):
        kernel = reduction(name, dtype, rows)
        source = data if rows else data.T
        outputs = zeros(6, kernel.bufs[1])
        sizes = dict(zip((n, m), source.shape, strict=True))
        _, y = agree(kernel, [np.ascontiguousarray(source).ravel(), outputs], sizes)
        np.testing.assert_array_equal(y, getattr(np, name)(data, axis=1))


def test_argmax_over_two_axes_counts_row_major() -> None:
    x = load(0, along(0, 3 * m), along(1, m), along(2))
    stages = (
        Stage((1, 2), (Accumulator("argmax", x, int64),)),
        straight(store(1, acc(0, int64), along(0))),
    )
    kernel = LoopKernel((n, 3, m), (0,), 2, (float32, int64), stages)
    data = numbers(20, 4 * 3 * 70)
    _, y = agree(kernel, [data, zeros(4, int64)], {n: 4, m: 70})
    np.testing.assert_array_equal(y, data.reshape(4, -1).argmax(1))


def lanes_sum(x: Array) -> np.float32:
    """The sum of rows of x as 64 virtual lanes add it."""
    lanes = np.zeros(64, np.float32)
    for row in x:
        for i, value in enumerate(row):
            lanes[i % 64] += value
    a, b, c, d = lanes.reshape(4, 16)
    joined = (a + b) + (c + d)
    for half in (8, 4, 2, 1):
        joined = joined[:half] + joined[half : 2 * half]
    return np.float32(joined[0])


@pytest.mark.parametrize("heavy", [False, True])
def test_row_sums_have_the_bits_of_virtual_lanes(heavy: bool) -> None:
    for height, width in ((1, 1), (1, 16), (1, 17), (2, 50), (1, 64), (3, 100), (2, 129)):
        data = numbers(21, height * width)
        expected = lanes_sum(data.reshape(height, width))
        for symbolic in (False, True):
            rows: DimLike = n if symbolic else height
            columns: DimLike = m if symbolic else width
            x = load(0, along(0, columns), along(1))
            if heavy:
                for _ in range(3):
                    x = op("add", x, op("mul", op("sin", x), const(0)))
            stages = (
                Stage((0, 1), (Accumulator("sum", x, float32),)),
                straight(store(1, acc(0))),
            )
            kernel = LoopKernel((rows, columns), (), 1, (float32, float32), stages)
            symbols: dict[Dim, int] = {n: height, m: width} if symbolic else {}
            (_, y), _ = execute(Compiled(kernel), [data, zeros(1)], symbols)
            assert y[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "columns"])
def test_running_values(rows: bool) -> None:
    x = load(0, along(0, m), along(1))
    par, red = (0, 1) if rows else (1, 0)
    stages = (
        Stage(
            (red,),
            (Accumulator("sum", x, float32), Accumulator("max", x, float32)),
            (
                store(1, acc(0), along(0, m), along(1)),
                store(2, op("sub", acc(1), x), along(0, m), along(1)),
            ),
        ),
        straight(store(3, acc(0), along(par))),
    )
    kernel = LoopKernel((n, m), (par,), 1, (float32,) * 4, stages)
    height, width = (3, 37) if rows else (7, 37)
    data = numbers(22, height * width)
    outputs = [zeros(height * width), zeros(height * width), zeros(height if rows else width)]
    _, y, *_ = agree(kernel, [data, *outputs], {n: height, m: width})
    # Running sums are exactly NumPy's: ascending, one addition each.
    expected = np.cumsum(data.reshape(height, width), axis=red, dtype=np.float32)
    np.testing.assert_array_equal(y, expected.ravel())


def test_softmax_rows() -> None:
    x = load(0, along(0, m), along(1))
    shifted = op("exp", op("sub", x, acc(0)))
    stages = (
        Stage((1,), (Accumulator("max", x, float32),)),
        Stage((1,), (Accumulator("sum", shifted, float32),)),
        Stage((1,), (), (store(1, op("div", shifted, acc(1)), along(0, m), along(1)),)),
    )
    kernel = LoopKernel((n, m), (0,), 1, (float32, float32), stages)
    for rows, columns in ((3, 10), (2, 64), (2, 150), (1, 1), (0, 5), (4, 0)):
        size = rows * columns
        agree(kernel, [numbers(23, size), zeros(size)], {n: rows, m: columns}, 1e-5)


def test_ragged_chunks() -> None:
    """Chunks of 4 rows of n; the last chunk is shorter."""
    chunks = (n + 3) // 4
    row = Term(((0, 4), (1, 1)), m)
    x = load(0, row, along(2))
    stages = (
        Stage((1,), (Accumulator("sum", x, float32),)),
        straight(store(1, acc(0), along(0, m), along(2))),
    )
    ragged = (Ragged(1, 0, 4, n),)
    kernel = LoopKernel((chunks, 4, m), (0, 2), 2, (float32, float32), stages, ragged)
    for rows in (1, 4, 10):
        size = -(-rows // 4) * 20
        agree(kernel, [numbers(24, rows * 20), zeros(size)], {n: rows, m: 20}, 1e-6)
    copied = LoopKernel(
        (chunks, 4, m),
        (0, 1, 2),
        2,
        (float32, float32),
        (straight(store(1, x, row, along(2))),),
        ragged,
    )
    agree(copied, [numbers(25, 10 * 20), zeros(10 * 20)], {n: 10, m: 20})


# ---- checks


@pytest.mark.parametrize("dtype", [int64, int32, float32], ids=str)
def test_check_names_the_fault(dtype: DType) -> None:
    x = load(0, along(0, m), along(1), dtype=dtype)
    checked = Expr("check", (x, op("lt", x, const(100, dtype), dtype=bool_)), 3, dtype)
    out = store(1, checked, along(0, m), along(1))
    kernel = LoopKernel((n, m), (0, 1), 1, (dtype, dtype), (straight(out),), checks=4)
    data = numbers(26, 3 * 21, dtype)
    agree(kernel, [data, zeros(63, dtype)], {n: 3, m: 21})
    data[[2 * 21 + 18, 60]] = 120, 130
    compiled = Compiled(kernel)
    (_, y), record = execute(compiled, [data, zeros(63, dtype)], {n: 3, m: 21})
    assert record == [1, 3, 60, 120] or record == [1, 3, 60, 130]
    np.testing.assert_array_equal(y, data)


def test_check_of_an_empty_kernel_is_silent() -> None:
    scalar = load(0)
    checked = Expr("check", (scalar, op("ne", scalar, const(0), dtype=bool_)), 0, float32)
    out = store(2, op("div", load(1, along(0)), checked), along(0))
    kernel = LoopKernel((n,), (), 0, (float32,) * 3, (Stage((0,), (), (out,)),), checks=1)
    compiled = Compiled(kernel)
    _, record = execute(compiled, [zeros(1), zeros(0), zeros(0)], {n: 0})
    assert record == [0, 0, 0, 0]
    _, record = execute(compiled, [zeros(1), zeros(20), zeros(20)], {n: 20})
    assert record == [1, 0, 0, 0]


def test_masked_lanes_are_not_checked() -> None:
    x = load(0, along(0), dtype=int32)
    checked = Expr("check", (x, op("ne", x, const(0, int32), dtype=bool_)), 0, int32)
    kernel = LoopKernel(
        (n,), (0,), 0, (int32, int32), (straight(store(1, checked, along(0))),), checks=1
    )
    _, record = execute(Compiled(kernel), [np.ones(21, np.int32), zeros(21, int32)], {n: 21})
    assert record[0] == 0


# ---- values


def test_constants_of_equal_value_stay_apart() -> None:
    """0.0 and -0.0 compare equal, and so do their expressions."""
    one = const(1)
    stores = (
        store(0, op("div", one, const(0.0))),
        store(1, op("div", one, const(-0.0))),
    )
    kernel = LoopKernel((), (), 0, (float32, float32), (straight(*stores),))
    first, second = agree(kernel, [zeros(1), zeros(1)])
    assert (first[0], second[0]) == (np.inf, -np.inf)


@pytest.mark.parametrize("seed", range(150))
def test_random_kernels(seed: int) -> None:
    made = Random(seed)
    agree(made.kernel(), made.data, made.symbols, gpu=seed % 4 == 0)
