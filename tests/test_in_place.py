"""When an output may live in an input's memory: only if nothing is read after it is overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from graphc import dims
from graphc.dims import DimLike
from graphc.kernel import Access, Accumulator, Contraction, Expr, LoopKernel, Stage, Store, Term
from graphc.passes.in_place import may_share
from graphc.types import DType, float32, float64, int64

ROWS, COLUMNS = dims.symbol("rows"), dims.symbol("columns")
IN, OUT = 0, 1


def element(
    buf: int, *strides: tuple[int, DimLike], offset: DimLike = 0, limit: DimLike | None = None
) -> Access:
    """An element of a buffer, by (axis, stride)."""
    return Access(buf, tuple(Term(((a, 1),), s, limit=limit) for a, s in strides), offset)


def load(access: Access) -> Expr:
    return Expr("load", (), (access, 0), float32)


def loop(
    *stages: Stage,
    axes: Sequence[DimLike] = (ROWS, COLUMNS),
    par: tuple[int, ...] = (0, 1),
    bufs: Sequence[DType] = (float32, float32),
) -> LoopKernel:
    return LoopKernel(tuple(axes), par, len(axes) - 1, tuple(bufs), stages)


def straight(*stores: Store) -> Stage:
    return Stage((), (), stores)


MATRIX = ((0, COLUMNS), (1, 1))
READ = element(IN, *MATRIX)
WRITE = element(OUT, *MATRIX)
STORE = Store(WRITE, load(READ) * 2)
ROW_MAX = Stage((1,), (Accumulator("max", load(READ), float32),))
ROW_OF_MAX = Expr("acc", (), 0, float32)


def test_an_elementwise_map_may_overwrite_its_operand() -> None:
    assert may_share(loop(straight(STORE)), IN, OUT)


@pytest.mark.parametrize(
    "read",
    [
        element(IN, (0, 1), (1, ROWS)),
        element(IN, *MATRIX, offset=1),
        element(IN, (1, 1)),
        element(IN, *MATRIX, limit=COLUMNS),
    ],
    ids=["transposed", "shifted", "repeated", "guarded"],
)
def test_a_read_of_another_element_forbids_it(read: Access) -> None:
    store = replace(STORE, expr=load(read) + load(READ))
    assert not may_share(loop(straight(store)), IN, OUT)


def test_an_element_found_by_an_index_forbids_it() -> None:
    position = Expr("cast", (load(READ),), None, int64)
    gathered = Expr("gather", (position,), (Access(IN, ()), ROWS), float32)
    assert not may_share(loop(straight(replace(STORE, expr=gathered))), IN, OUT)
    assert not may_share(loop(straight(replace(STORE, index=position, extent=ROWS))), IN, OUT)


def test_elements_of_another_size_forbid_it() -> None:
    assert not may_share(loop(straight(STORE), bufs=(float64, float32)), IN, OUT)


def test_a_row_read_twice_before_it_is_written() -> None:
    """Softmax: the row's maximum, then the row in place."""
    write = Stage((1,), (), (replace(STORE, expr=load(READ) - ROW_OF_MAX),))
    assert may_share(loop(ROW_MAX, write, par=(0,)), IN, OUT)


def test_a_read_after_the_write_forbids_it() -> None:
    """The same stages the other way round: the maximum would be that of the new row."""
    write = Stage((1,), (), (STORE,))
    maximum = straight(Store(element(2, (0, 1)), ROW_OF_MAX))
    kernel = loop(write, ROW_MAX, maximum, par=(0,), bufs=(float32,) * 3)
    assert not may_share(kernel, IN, OUT)
    early = loop(ROW_MAX, write, maximum, par=(0,), bufs=(float32,) * 3)
    assert may_share(early, IN, OUT)


def test_a_second_store_of_the_same_iteration_may_read_the_old_element() -> None:
    """Expressions of an iteration are computed before its stores."""
    other = Store(element(2, *MATRIX), load(READ) + 1)
    for stores in ((STORE, other), (other, STORE)):
        kernel = loop(straight(*stores), bufs=(float32,) * 3)
        assert may_share(kernel, IN, OUT)
        assert may_share(kernel, IN, 2)


def test_a_reduction_does_not_overwrite_what_it_reduces() -> None:
    kernel = loop(ROW_MAX, straight(Store(element(OUT, (0, COLUMNS)), ROW_OF_MAX)), par=(0,))
    assert not may_share(kernel, IN, OUT)


def test_an_element_written_by_several_iterations_forbids_it() -> None:
    repeated = Store(element(OUT, (0, 1)), load(element(IN, (0, 1))))
    assert not may_share(loop(straight(repeated)), IN, OUT)
    assert may_share(loop(straight(repeated), axes=(ROWS, 1)), IN, OUT)


@pytest.mark.parametrize(
    "stores",
    [
        (replace(STORE, access=element(OUT, *MATRIX, limit=COLUMNS)),),
        (replace(STORE, add=True),),
        (STORE, replace(STORE, access=element(OUT, *MATRIX, offset=COLUMNS))),
        (STORE, Store(READ, load(WRITE))),
    ],
    ids=["guarded", "accumulated", "written twice", "operand written too"],
)
def test_other_stores_forbid_it(stores: tuple[Store, ...]) -> None:
    assert not may_share(loop(straight(*stores)), IN, OUT)


def test_a_product_overwrites_an_operand_of_its_epilogue_only() -> None:
    a, b, bias, out = range(4)
    total = Expr("acc", (), 0, float32)
    stores = (Store(element(out, *MATRIX), total + load(element(bias, *MATRIX))),)
    kernel = Contraction(
        (),
        (ROWS,),
        (COLUMNS,),
        (COLUMNS,),
        element(a, (0, COLUMNS), (2, 1)),
        element(b, (2, COLUMNS), (1, 1)),
        (float32,) * 4,
        stores,
        float32,
    )
    assert may_share(kernel, bias, out)
    assert not may_share(kernel, a, out)
    assert not may_share(kernel, b, out)
    repeated = Store(element(out, *MATRIX), total + load(element(bias, (1, 1))))
    assert not may_share(replace(kernel, stores=(repeated,)), bias, out)
