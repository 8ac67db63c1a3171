"""The kernels of AArch64 processors (NEON) compute the same bits as this machine's, emulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

pytest.importorskip("unicorn", reason="unicorn, which emulates AArch64, is not installed")

from aarch64_machine import Processor
from contraction_reference import Compiled, matmul, matmul_buffers, module_text, value
from loop_kernel_generator import Random
from loop_kernel_jit import Compiled as CompiledLoops
from loop_kernel_jit import count_blocks, execute, table
from test_contractions import CONVS, KINDS

from graphc.backends.codegen.contraction import contraction_blocks
from graphc.backends.codegen.loops import emit_loop_kernel
from graphc.backends.codegen.targets import NEON
from graphc.dims import Dim
from graphc.kernel import Access, Contraction, Expr, LoopKernel, Stage, Store, Term, sizes_of
from graphc.types import DType, bool_, float32, float64


def _same_contraction(
    c: Contraction, buffers: list[np.ndarray], sizes: dict[str, int] | None = None
) -> None:
    sizes = sizes or {}
    expected = [b.copy() for b in buffers]
    Compiled(c)(expected, sizes)
    count = value(contraction_blocks(c, NEON), sizes)
    numbers = [value(d, sizes) for d in sizes_of(c)]
    # blocks in any order, one by one
    Processor(module_text(c, NEON)).run(buffers, numbers, [(i, i + 1) for i in range(count)][::-1])
    for want, got in zip(expected, buffers, strict=True):
        assert want.tobytes() == got.tobytes()


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_matrix_products(ta: bool, tb: bool) -> None:
    c = matmul(37, 50, 70, ta=ta, tb=tb)
    _same_contraction(c, matmul_buffers(c, 37, 50, 70))


@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_and_doubles(rows: int) -> None:
    c = matmul(rows, 45, 33, dtype=float64)
    _same_contraction(c, matmul_buffers(c, rows, 45, 33))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(CONVS))
def test_convolutions(name: str, kind: str) -> None:
    conv = CONVS[name]
    sizes = {"images": 3, "s": 10}
    _same_contraction(getattr(conv, kind)(), conv.buffers(kind, sizes), sizes)


def _same_loops(
    kernel: LoopKernel, data: Sequence[np.ndarray], symbols: Mapping[Dim, int] | None = None
) -> None:
    symbols = symbols or {}
    expected, record = execute(CompiledLoops(kernel), data, symbols)
    f = emit_loop_kernel(kernel, "kernel")
    text = "\n".join(f.declarations.values()) + "\n" + str(f)
    got = [b.copy() for b in data]
    faults = np.zeros(4, np.int64)
    order = [table(kernel, symbols)[d] for d in sizes_of(kernel)]
    Processor(text).run([*got, faults], order, [(0, count_blocks(kernel, symbols))])
    assert faults.tolist() == record
    for want, have in zip(expected, got, strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("seed", range(8))
def test_loop_kernels(seed: int) -> None:
    made = Random(seed)
    _same_loops(made.kernel(), made.data, made.symbols)


FUNCTIONS = (
    *("exp", "expm1", "exp2", "log", "log1p", "sin", "cos", "tan", "asin", "atan", "sinh", "tanh"),
    *("asinh", "atanh", "erf", "erfc", "cbrt", "sigmoid", "sqrt", "floor", "round", "isnan"),
)


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("part", range(4))
def test_vector_functions(part: int, dtype: DType) -> None:
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 88.9, -104.0, 1e30]
    x = np.array([*edges, *np.random.default_rng(part).normal(0, 3, 90)], dtype.numpy)
    axis = (Term(((0, 1),), 1),)
    load = Expr("load", (), (Access(0, axis), 0), dtype)
    names = FUNCTIONS[part::4]
    kinds = [bool_ if name == "isnan" else dtype for name in names]
    stores = tuple(
        Store(Access(i, axis), Expr(name, (load,), None, kind))
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True), 1)
    )
    kernel = LoopKernel((len(x),), (0,), 0, (dtype, *kinds), (Stage((), (), stores),))
    outputs = [np.zeros(len(x), kind.numpy) for kind in kinds]
    _same_loops(kernel, [x, *outputs])
