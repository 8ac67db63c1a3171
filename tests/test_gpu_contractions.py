"""Contractions as kernels for a GPU: run by the emulator, assembled where ptxas is at hand."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import test_contractions
from contraction_reference import acc, matmul, matmul_buffers, noise, op, plain, reference, value
from test_contractions import CONVS, KINDS, Conv, N

from graphc.backends.gpu.contract_mma import WARPS
from graphc.backends.gpu.contract_tiling import DOUBLE, SINGLE, Tile, slices, tile_of
from graphc.backends.gpu.contraction import emit_gpu_contraction, gpu_contraction_blocks
from graphc.backends.gpu.emulator import EmulatedKernel
from graphc.backends.gpu.ptx import to_ptx
from graphc.backends.interpret import interpret_contraction
from graphc.dims import Dim, symbol
from graphc.kernel import Access, Contraction, Expr, Store, Term, sizes_of
from graphc.types import bool_, float32, float64, int64

Sizes = dict[str, int]


def on_device(x: np.ndarray) -> np.ndarray:
    """A copy that begins where a GPU's buffers do, at a multiple of 256 bytes."""
    room = np.empty(x.nbytes + 256, np.uint8)
    start = -room.ctypes.data % 256
    copied = room[start : start + x.nbytes].view(x.dtype)
    copied[...] = x
    return copied


def launch(
    c: Contraction,
    buffers: Sequence[np.ndarray],
    sizes: Sizes,
    precision: str = "f32",
    reverse: bool = False,
    tile: Tile | None = None,
) -> list[np.ndarray]:
    """The buffers after a launch."""
    got = [on_device(x) for x in buffers]
    kernel = EmulatedKernel(emit_gpu_contraction(c, "kernel", precision, tile))
    blocks = value(gpu_contraction_blocks(c, tile), sizes)
    numbers = [value(d, sizes) for d in sizes_of(c)]
    kernel.launch(blocks, [(x.ctypes.data, x.nbytes) for x in got], numbers, reverse=reverse)
    return got


def check(
    c: Contraction,
    buffers: Sequence[np.ndarray],
    sizes: Sizes | None = None,
    tile: Tile | None = None,
) -> list[np.ndarray]:
    """The kernel agrees with the reference in float64."""
    sizes = sizes or {}
    wanted = [x.astype(np.float64) if x.dtype.kind == "f" else x.copy() for x in buffers]
    reference(c, wanted, sizes)
    got = launch(c, buffers, sizes, tile=tile)
    size = [value(e, sizes) for e in c.axes]
    depth = max(int(np.prod(size[len(size) - len(c.k) :])), 4)
    tolerance = (1e-6 if c.dtype is float32 else 1e-14) * depth**0.5
    for x, y in zip(got, wanted, strict=True):
        largest = max(np.abs(y).max(initial=1), 1)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * largest)
    return got


def check_bits(
    c: Contraction,
    buffers: Sequence[np.ndarray],
    sizes: Sizes | None = None,
    tile: Tile | None = None,
) -> None:
    """The kernel gives the bits of the interpreter, whichever thread goes first."""
    sizes = sizes or {}
    wanted = [x.copy() for x in buffers]
    interpret_contraction(c, wanted, {d: value(d, sizes) for d in sizes_of(c)})
    for reverse in (False, True):
        for x, y in zip(launch(c, buffers, sizes, reverse=reverse, tile=tile), wanted, strict=True):
            assert x.tobytes() == y.tobytes()


# ---- matrix products


def tile_id(tile: Tile) -> str:
    return f"{tile.m}x{tile.n}x{tile.k}"


@pytest.mark.parametrize("tile", [*SINGLE, *DOUBLE], ids=tile_id)
def test_every_tile_of_symbolic_sizes(tile: Tile) -> None:
    """Sizes around a tile's; operands that are contiguous along k in every other one."""
    number = (*SINGLE, *DOUBLE).index(tile)
    dtype = float32 if tile in SINGLE else float64
    m, n, k = symbol("m"), symbol("n"), symbol("k")
    c = matmul(m, n, k, dtype, ta=number % 4 in (1, 2), tb=number % 2 == 0)
    cases = [
        (1, tile.n - 1, tile.k),
        (tile.m + 1, 1, 1),
        (tile.m, tile.n + 1, 2 * tile.k + 1),
        (2, 3, 0),
        (0, 3, 2),
    ]
    for rows, cols, depth in cases:
        sizes = {"m": rows, "n": cols, "k": depth}
        check(c, matmul_buffers(c, rows, cols, depth), sizes, tile)


@pytest.mark.parametrize("tile", [*SINGLE[:4], SINGLE[9], DOUBLE[1]], ids=tile_id)
def test_tiles_of_known_sizes_read_in_whole(tile: Tile) -> None:
    dtype = float32 if tile in SINGLE else float64
    rows, cols, depth = tile.m + 4, 2 * tile.n, 3 * tile.k
    for tb in (False, True):
        c = matmul(rows, cols, depth, dtype, ta=not tb, tb=tb)
        assert all(cut.width > 1 for cut in slices(c, tile))
        check(c, matmul_buffers(c, rows, cols, depth), tile=tile)


def test_many_tiles_are_each_computed_once() -> None:
    """Rows of tiles are taken in groups: the last has fewer."""
    tile = SINGLE[-1]
    rows, cols = 11 * tile.m - 5, 5 * tile.n
    c = matmul(symbol("m"), cols, 9)
    check(c, matmul_buffers(c, rows, cols, 9), {"m": rows}, tile)


def test_batched_matmul_with_shared_operand() -> None:
    g, m = symbol("g"), symbol("m")
    for shared in (False, True):
        c = matmul(m, 18, 21, batch=(g, 2), shared_b=shared)
        check(c, matmul_buffers(c, 37, 18, 21, batch=6), {"g": 3, "m": 37})


@pytest.mark.parametrize("tile", [None, SINGLE[0], SINGLE[8], DOUBLE[0]], ids=str)
def test_bits_are_those_of_one_chain_of_fused_multiply_adds(tile: Tile | None) -> None:
    dtype = float64 if tile in DOUBLE else float32
    c = matmul(7, 9, 21, dtype, tb=True)
    check_bits(c, matmul_buffers(c, 7, 9, 21), tile=tile)
    conv = Conv(1, (3, 4), 3, (3, 3), 5, stride=2, padding=1, dtype=dtype)
    check_bits(conv.forward(), conv.buffers("forward", {}), tile=tile)


@pytest.mark.parametrize("shape", [(3, 50, 40), (50, 2, 40), (1, 1, 300)], ids=str)
def test_a_thread_per_element_of_few_rows_or_columns(shape: tuple[int, int, int]) -> None:
    rows, cols, depth = shape
    for tb in (False, True):
        c = matmul(rows, cols, symbol("k"), tb=tb)
        assert tile_of(c) is None
        check(c, matmul_buffers(c, rows, cols, depth), {"k": depth})


def test_strided_operands_without_any_contiguous_axis() -> None:
    b = plain(1, (2, 1), (3, 200))
    a = Access(0, (Term(((0, 130),), 1), Term(((2, 3),), 1)), 5)
    out = plain(2, (0, 1), (26, 2))
    stores = (Store(out, acc(float32)),)
    c = Contraction((), (30,), (13,), (40,), a, b, (float32,) * 3, stores, float32)
    rng = np.random.default_rng(0)
    check(c, [noise(rng, n, float32) for n in (4200, 2800, 800)])


@pytest.mark.parametrize("seed", range(8))
def test_random_contraction_in_a_random_tile(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the CPU's kernels are tried with: batch axes, guards, sizes known and unknown."""

    def check_in_tile(c: Contraction, buffers: Sequence[np.ndarray], sizes: Sizes) -> None:
        table = SINGLE if c.dtype is float32 else DOUBLE
        check(c, buffers, sizes, table[seed % len(table)])

    monkeypatch.setattr(test_contractions, "check", check_in_tile)
    test_contractions.test_random_contraction(seed)


@pytest.mark.parametrize("tile", [None, SINGLE[3]], ids=["threads", "tile"])
def test_sizes_of_nothing(tile: Tile | None) -> None:
    for rows, cols, depth in [(0, 5, 3), (3, 0, 4), (70, 40, 0), (0, 0, 0)]:
        c = matmul(rows, cols, depth)
        check(c, matmul_buffers(c, rows, cols, depth), tile=tile)


# ---- convolutions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["padded", "strided", "dilated", "symbolic", "volume", "f64"])
def test_convolution(name: str, kind: str) -> None:
    conv = CONVS[name]
    sizes = {"images": 3, "s": 10}
    check(getattr(conv, kind)(), conv.buffers(kind, sizes), sizes)


def test_grouped_convolution() -> None:
    conv = Conv(2, (7, 7), 4, (3, 3), 6, padding=1, groups=3)
    check(conv.forward(), conv.buffers("forward", {}))


# ---- epilogues


def with_epilogue(m: Dim | int, n: int, k: int) -> Contraction:
    """Bias, row scale, residual and relu; stored as it is, transposed, and as bool."""
    base = matmul(m, n, k)
    bias = Expr("load", (), (plain(3, (1,), (1,)), 0.0), float32)
    row = Expr("load", (), (plain(4, (0,), (1,)), 0.0), float32)
    residual = Expr("load", (), (plain(5, (0, 1), (n, 1)), 0.0), float32)
    total = op("add", op("add", op("add", acc(float32), bias), row), residual)
    positive = op("gt", total, Expr("const", (), 0.0, float32), dtype=bool_)
    relu = op("select", positive, total, Expr("const", (), 0.0, float32))
    scaled = op("mul", acc(float32), Expr("size", (), m, float32))
    stores = (
        Store(plain(2, (0, 1), (n, 1)), relu),
        Store(plain(6, (1, 0), (m, 1)), scaled),
        Store(plain(7, (0, 1), (n, 1)), positive),
    )
    bufs = (*(float32,) * 7, bool_)
    return Contraction((), (m,), (n,), (k,), base.a, base.b, bufs, stores, float32)


@pytest.mark.parametrize("columns", [44, 45])
def test_epilogue_with_bias_residual_relu_and_three_stores(columns: int) -> None:
    rows = 39
    c = with_epilogue(symbol("m"), columns, 30)
    rng = np.random.default_rng(3)
    counts = (rows * 30, 30 * columns, rows * columns, columns, rows, *(rows * columns,) * 2)
    buffers = [noise(rng, n, float32) for n in counts]
    buffers.append(np.zeros(rows * columns, np.bool_))
    check(c, buffers, {"m": rows})


@pytest.mark.parametrize("columns", [36, 37])
def test_epilogue_with_guards_axes_and_accumulation(columns: int) -> None:
    base = matmul(20, columns, 16, float64)
    shifted = Access(3, (Term(((0, 1),), columns), Term(((1, 1),), 1, -2, 1, 33)))
    beside = Expr("load", (), (shifted, 0.5), float64)
    column = Expr("load", (), (Access(3, (Term(((0, 1),), 1, 1, 2, 8),)), 2.0), float64)
    index = op("cast", Expr("axis", (), 1, int64), dtype=float64)
    number = op("add", op("add", op("mul", acc(float64), index), beside), column)
    cropped = Access(4, (Term(((0, 1),), 30, -1, 1, 15), Term(((1, 1),), 1, 0, 1, 30)))
    stores = (
        Store(plain(2, (0, 1), (columns, 1)), number, add=True),
        Store(cropped, acc(float64)),
    )
    bufs = (float64,) * 5
    c = Contraction((), (20,), (columns,), (16,), base.a, base.b, bufs, stores, float64)
    rng = np.random.default_rng(3)
    counts = (320, 16 * columns, 20 * columns, 20 * columns, 450)
    check(c, [noise(rng, n, float64) for n in counts])


def test_indexed_store_and_gather() -> None:
    base = matmul(9, 20, 6)
    index = Expr("load", (), (plain(4, (1,), (1,)), 0), int64)
    found = Expr("gather", (index,), (plain(3, (0,), (4,)), 4), float32)
    store = Store(plain(2, (0,), (20,)), op("add", acc(float32), found), index, 20)
    bufs = (*(float32,) * 4, int64)
    c = Contraction((), (9,), (20,), (6,), base.a, base.b, bufs, (store,), float32)
    rng = np.random.default_rng(4)
    buffers = [noise(rng, n, float32) for n in (54, 120, 180, 36)]
    check_bits(c, [*buffers, rng.permutation(24)[:20].astype(np.int64) - 2])


def test_heavy_epilogue_of_several_axes() -> None:
    b = plain(1, (3, 1, 2), (40, 300, 1))
    out = plain(2, (0, 2, 1), (70, 10, 1))
    stores = (Store(out, op("tanh", acc(float32))),)
    a = plain(0, (0, 3), (7, 1))
    c = Contraction((), (9,), (10, 7), (7,), a, b, (float32,) * 3, stores, float32)
    rng = np.random.default_rng(1)
    buffers = [noise(rng, n, float32) for n in (63, 3300, 630)]
    got = launch(c, buffers, {})
    plain_c = Contraction(
        (), (9,), (10, 7), (7,), a, b, (float32,) * 3, (Store(out, acc(float32)),), float32
    )
    sums = [x.astype(np.float64) for x in buffers]
    reference(plain_c, sums, {})
    np.testing.assert_allclose(got[2], np.tanh(sums[2]), atol=1e-6)


# ---- tensor cores

# The norm of random errors of rounding both factors to tf32 is 2.9e-4 of the result's.
TOLERANCE = {"tf32": 3.3e-4, "bf16": 3e-3}


def check_rounded(
    c: Contraction,
    buffers: Sequence[np.ndarray],
    sizes: Sizes,
    precision: str,
    tile: Tile | None = None,
) -> None:
    """The kernel agrees with the reference in norm, whichever thread goes first; and it rounds."""
    wanted = [x.astype(np.float64) for x in buffers]
    reference(c, wanted, sizes)
    first = launch(c, buffers, sizes, precision, tile=tile)
    error = np.linalg.norm(first[2] - wanted[2]) / np.linalg.norm(wanted[2])
    assert 1e-5 < error < TOLERANCE[precision]
    for x, y in zip(first, launch(c, buffers, sizes, precision, True, tile), strict=True):
        assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("tile", [t for t in SINGLE if (t.m, t.n) in WARPS], ids=tile_id)
def test_every_tile_of_tensor_cores(tile: Tile) -> None:
    """Known sizes read in whole for some tiles, others for the rest; each transposed in turn."""
    number = SINGLE.index(tile)
    precision = "tf32" if number // 2 % 2 else "bf16"
    ta, tb = number % 4 in (1, 2), number % 2 == 0
    if number % 3:
        c = matmul(tile.m + 8, tile.n + 12, 76, ta=ta, tb=tb)
        check_rounded(c, matmul_buffers(c, tile.m + 8, tile.n + 12, 76), {}, precision, tile)
        return
    c = matmul(symbol("m"), symbol("n"), symbol("k"), ta=ta, tb=tb)
    for rows, cols, depth in [(tile.m + 3, 2 * tile.n - 1, 67), (tile.m - 1, tile.n, 32)]:
        sizes = {"m": rows, "n": cols, "k": depth}
        check_rounded(c, matmul_buffers(c, rows, cols, depth), sizes, precision, tile)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_convolution_on_tensor_cores(kind: str, precision: str) -> None:
    conv = Conv(N, (7, 6), 12, (3, 3), 20, stride=2, padding=1)
    c = getattr(conv, kind)()
    tile = SINGLE[8]
    check_rounded(c, conv.buffers(kind, {"images": 3}), {"images": 3}, precision, tile)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_nothing_to_sum_on_tensor_cores(precision: str) -> None:
    tile = SINGLE[3]
    c = matmul(symbol("m"), 40, symbol("k"))
    buffers = matmul_buffers(c, 70, 40, 0)
    assert not launch(c, buffers, {"m": 70, "k": 0}, precision, tile=tile)[2].any()


def test_doubles_and_threads_are_not_rounded() -> None:
    for c in (matmul(40, 40, 40, float64), matmul(3, 40, 40), matmul(8, 4096, 40)):
        exact, tf32 = (emit_gpu_contraction(c, "kernel", p) for p in ("f32", "tf32"))
        assert exact == tf32


# ---- code


PTXAS = shutil.which("ptxas")

SAMPLES = {
    "square": matmul(2048, 2048, 2048),
    "transposed": matmul(symbol("m"), 1024, 1024, tb=True),
    "unknown": matmul(symbol("m"), symbol("n"), symbol("k"), ta=True),
    "doubles": matmul(512, symbol("n"), 512, float64),
    "3x3": Conv(N, (28, 28), 128, (3, 3), 128, padding=1).forward(),
    "3x3 dx": Conv(N, (28, 28), 128, (3, 3), 128, padding=1).input_gradient(),
    "3x3 dw": Conv(N, (28, 28), 128, (3, 3), 128, padding=1).filter_gradient(),
    "7x7": Conv(N, (224, 224), 3, (7, 7), 64, stride=2, padding=3).forward(),
    "epilogue": with_epilogue(symbol("m"), 1024, 512),
}


@pytest.mark.skipif(PTXAS is None, reason="ptxas is not installed")
@pytest.mark.parametrize("name", SAMPLES)
def test_kernels_assemble_without_spills(name: str, tmp_path: Path) -> None:
    """For three capabilities; registers and shared memory are those of every GPU."""
    kernels = {"f32": [(7, 5), (8, 0), (9, 0)], "tf32": [(8, 0)], "bf16": [(9, 0)]}
    for precision, capabilities in kernels.items():
        kernel = emit_gpu_contraction(SAMPLES[name], "kernel", precision)
        for capability in capabilities:
            path = tmp_path / "kernel.ptx"
            path.write_text(to_ptx(kernel.text, capability))
            arch = f"-arch=sm_{capability[0]}{capability[1]}"
            command = [str(PTXAS), arch, "-v", str(path), "-o", str(tmp_path / "kernel.cubin")]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
            assert "0 bytes spill stores, 0 bytes spill loads" in said, (precision, arch, said)
            shared = re.search(r"(\d+) bytes smem", said)
            assert shared is None or int(shared[1]) <= 48 * 1024
