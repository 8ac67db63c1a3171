"""The GPU emulator: matrix products, shuffles of all kinds, rounding, copies that arrive late."""

from __future__ import annotations

import numpy as np
import pytest

from graphc.backends.gpu.emulator import EmulatedKernel, EmulatorError
from graphc.backends.gpu.emulator_warp import PRODUCTS, Product
from graphc.backends.gpu.kernel_text import GpuKernel

BARRIER = "call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)"


def buffer(array: np.ndarray) -> tuple[int, int]:
    return array.ctypes.data, array.nbytes


def warp_kernel(
    body: str, buffers: int, before: str = "", threads: int = 32, sizes: int = 0
) -> GpuKernel:
    """A kernel `k` with the thread's number in %t and %t64."""
    parameters = [f"ptr %a{i}" for i in range(buffers)] + [f"i64 %s{i}" for i in range(sizes)]
    text = f"""
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)
{before}
define ptx_kernel void @k({", ".join(parameters)}) {{
entry:
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %t64 = zext i32 %t to i64
{body}
  ret void
}}
"""
    return GpuKernel("k", text, buffers, sizes, threads)


# ---- matrix products


def product_kernel(intrinsic: str, product: Product) -> GpuKernel:
    """One warp: 16 x k, row-major, by k x 8, column-major, added to 16 x 8."""
    size = 4 if product.element == "tf32" else 2
    register = "<2 x half>" if product.element == "f16" else "i32"
    per = product.packed
    lines = [
        "%g = lshr i64 %t64, 2",
        "%q = and i64 %t64, 3",
        f"%row = mul i64 %g, {product.k * size}",
        "%inside = mul i64 %q, 4",
        "%first = add i64 %row, %inside",
    ]
    operands = []
    first, second = product.registers
    for r in range(first):
        place = (r % 2) * 8 * product.k * size + (r // 2) * 16
        lines += [
            f"%pa{r} = add i64 %first, {place}",
            f"%qa{r} = getelementptr i8, ptr %a0, i64 %pa{r}",
            f"%ra{r} = load {register}, ptr %qa{r}, align 4",
        ]
        operands.append(f"{register} %ra{r}")
    for r in range(second):
        lines += [
            f"%pb{r} = add i64 %first, {16 * r}",
            f"%qb{r} = getelementptr i8, ptr %a1, i64 %pb{r}",
            f"%rb{r} = load {register}, ptr %qb{r}, align 4",
        ]
        operands.append(f"{register} %rb{r}")
    lines += ["%out = shl i64 %g, 3", "%pair = shl i64 %q, 1", "%c0 = add i64 %out, %pair"]
    for r in range(4):
        place = (r // 2) * 64 + r % 2
        lines += [
            f"%pc{r} = add i64 %c0, {place}",
            f"%qc{r} = getelementptr float, ptr %a2, i64 %pc{r}",
            f"%rc{r} = load float, ptr %qc{r}, align 4",
        ]
        operands.append(f"float %rc{r}")
    result = "{ float, float, float, float }"
    lines.append(f"%d = call {result} @llvm.nvvm.{intrinsic}({', '.join(operands)})")
    for r in range(4):
        lines += [
            f"%d{r} = extractvalue {result} %d, {r}",
            f"store float %d{r}, ptr %qc{r}, align 4",
        ]
    assert per * size == 4
    types = ", ".join(o.rsplit(" ", 1)[0] for o in operands)
    return warp_kernel("\n".join(lines), 3, f"declare {result} @llvm.nvvm.{intrinsic}({types})")


def as_seen(values: np.ndarray, element: str) -> tuple[np.ndarray, np.ndarray]:
    """Values as they lie in memory, and what a tensor core takes them for."""
    if element == "f16":
        return values.astype(np.float16), values.astype(np.float16).astype(np.float64)
    bits = values.astype(np.float32).view(np.uint32)
    if element == "tf32":  # the low bits are there, and do not count
        return values, (bits & 0xFFFFE000).view(np.float32).astype(np.float64)
    return (bits >> 16).astype(np.uint16), (bits & 0xFFFF0000).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("intrinsic", PRODUCTS)
def test_a_matrix_product(intrinsic: str, reverse: bool) -> None:
    product = PRODUCTS[intrinsic]
    rng = np.random.default_rng(product.k)
    a, a_seen = as_seen(rng.standard_normal((16, product.k)).astype(np.float32), product.element)
    b, b_seen = as_seen(rng.standard_normal((8, product.k)).astype(np.float32), product.element)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    sums = c.astype(np.float64)
    for k in range(product.k):
        sums = sums + a_seen[:, k, None] * b_seen[None, :, k]
    kernel = EmulatedKernel(product_kernel(intrinsic, product))
    kernel.launch(1, [buffer(a), buffer(b), buffer(c)], [], reverse=reverse, races="global")
    np.testing.assert_array_equal(c, sums.astype(np.float32))


def test_a_matrix_product_by_a_part_of_a_warp_is_found() -> None:
    product = PRODUCTS["mma.m16n8k8.row.col.tf32"]
    whole = product_kernel("mma.m16n8k8.row.col.tf32", product)
    text = whole.text.replace(
        "  %t64 = zext",
        "  %is = icmp slt i32 %t, 16\n  br i1 %is, label %y, label %z\nz:\n  ret void\ny:\n"
        "  %t64 = zext",
    )
    x = np.zeros(256, np.float32)
    with pytest.raises(EmulatorError, match="lanes of a warp diverge"):
        EmulatedKernel(GpuKernel("k", text, 3, 0, 32)).launch(1, [buffer(x)] * 3, [])


def test_rounding_to_tf32() -> None:
    kernel = warp_kernel(
        """
  %p = getelementptr float, ptr %a0, i64 %t64
  %x = load float, ptr %p, align 4
  %r = call i32 @llvm.nvvm.f2tf32.rna(float %x)
  store i32 %r, ptr %p, align 4""",
        1,
        "declare i32 @llvm.nvvm.f2tf32.rna(float)",
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal(32).astype(np.float32)
    x[:5] = [np.nan, np.inf, -np.inf, np.float32(1) + np.float32(2**-11), -1 - 2**-11]
    expected = ((x.view(np.uint32).astype(np.uint64) + 0x1000) & 0xFFFFE000).astype(np.uint32)
    expected[0] = 0x7FFFFFFF
    EmulatedKernel(kernel).launch(1, [buffer(x)], [])
    np.testing.assert_array_equal(x.view(np.uint32), expected)
    assert x[3] == 1 + 2**-10 and x[4] == -1 - 2**-10  # ties away from zero


@pytest.mark.parametrize("lanes", [1, 2])
def test_rounding_to_bfloat(lanes: int) -> None:
    wide, narrow = ("float", "bfloat") if lanes == 1 else ("<2 x float>", "<2 x bfloat>")
    kernel = warp_kernel(
        f"""
  %p = getelementptr {wide}, ptr %a0, i64 %t64
  %x = load {wide}, ptr %p, align {4 * lanes}
  %r = fptrunc {wide} %x to {narrow}
  %q = getelementptr {narrow}, ptr %a1, i64 %t64
  store {narrow} %r, ptr %q, align {2 * lanes}
  %s = load {narrow}, ptr %q, align {2 * lanes}
  %f = fpext {narrow} %s to {wide}
  store {wide} %f, ptr %p, align {4 * lanes}""",
        2,
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal(32 * lanes).astype(np.float32)
    x[:6] = [np.nan, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38]
    bits = x.view(np.uint32).astype(np.uint64)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    expected[0] = 0x7FFF
    y = np.zeros(32 * lanes, np.uint16)
    EmulatedKernel(kernel).launch(1, [buffer(x), buffer(y)], [])
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(x.view(np.uint32), y.astype(np.uint32) << 16)


# ---- shuffles


def shuffled(kind: str, values: np.ndarray, by: np.ndarray, clamp: int) -> np.ndarray:
    """What PTX defines a shuffle to be."""
    segment = clamp >> 8 & 31
    result = values.copy()
    for lane in range(32):
        last = lane & segment | clamp & 31 & ~segment
        there, ok = {
            "up": (lane - by[lane], lane - by[lane] >= last),
            "down": (lane + by[lane], lane + by[lane] <= last),
            "bfly": (lane ^ by[lane], (lane ^ by[lane]) <= last),
            "idx": ((lane & segment) | (by[lane] & ~segment & 31), True),
        }[kind]
        if kind == "idx":
            ok = there <= last
        if ok:
            result[lane] = values[there]
    return result


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("element", ["i32", "f32"])
@pytest.mark.parametrize("kind", ["up", "down", "bfly", "idx"])
def test_shuffles(kind: str, element: str, width: int) -> None:
    clamp = (32 - width) << 8 | (0 if kind == "up" else 31)
    scalar = "float" if element == "f32" else "i32"
    function = f"{scalar} @llvm.nvvm.shfl.sync.{kind}.{element}"
    kernel = warp_kernel(
        f"""
  %p = getelementptr {scalar}, ptr %a0, i64 %t64
  %q = getelementptr i32, ptr %a1, i64 %t64
  %x = load {scalar}, ptr %p, align 4
  %by = load i32, ptr %q, align 4
  %s = call {function}(i32 -1, {scalar} %x, i32 %by, i32 {clamp})
  %r = call {function}(i32 -1, {scalar} %s, i32 0, i32 {clamp})
  store {scalar} %{"s" if kind == "idx" else "r"}, ptr %p, align 4""",
        2,
        f"declare {function}(i32, {scalar}, i32, i32)",
    )
    x = np.random.default_rng(0).integers(0, 99, 32).astype(np.float32)
    x = x if element == "f32" else x.astype(np.int32)
    by = np.random.default_rng(1).integers(0, 32, 32).astype(np.int32)
    expected = shuffled(kind, x, by, clamp)
    EmulatedKernel(kernel).launch(1, [buffer(x), buffer(by)], [])
    np.testing.assert_array_equal(x, expected)


# ---- copies


COPIES = """
declare void @llvm.nvvm.cp.async.ca.shared.global.16(ptr addrspace(3), ptr addrspace(1))
declare void @llvm.nvvm.cp.async.ca.shared.global.16.s(ptr addrspace(3), ptr addrspace(1), i32)
declare void @llvm.nvvm.cp.async.commit.group()
declare void @llvm.nvvm.cp.async.wait.group(i32)
@tile = internal addrspace(3) global [512 x float] undef, align 16
"""
COMMIT = "call void @llvm.nvvm.cp.async.commit.group()"
WAIT = "call void @llvm.nvvm.cp.async.wait.group(i32 {})"


def copied(first: str, second: str, copy: str = "", index: str = "%other") -> GpuKernel:
    """64 threads copy 16 bytes twice, in two groups, and read what another thread has copied.

    `first` and `second` are what waits for the groups.
    """
    copy = copy or (
        "call void @llvm.nvvm.cp.async.ca.shared.global.16("
        "ptr addrspace(3) %to{n}, ptr addrspace(1) %from{n})"
    )
    lines = ["%other = sub i64 63, %t64", "%near = sub i64 255, %t64"]
    for n in (0, 1):
        lines += [
            f"%at{n} = add i64 %t64, {64 * n}",
            f"%p{n} = getelementptr <4 x float>, ptr %a0, i64 %at{n}",
            f"%from{n} = addrspacecast ptr %p{n} to ptr addrspace(1)",
            f"%to{n} = getelementptr <4 x float>, ptr addrspace(3) @tile, i64 %at{n}",
            copy.format(n=n),
            COMMIT,
        ]
    for n, wait in ((0, first), (1, second)):
        lines += [
            wait,
            f"%read{n} = add i64 {index}, {64 * n}",
            f"%r{n} = getelementptr <4 x float>, ptr addrspace(3) @tile, i64 %read{n}",
            f"%x{n} = load <4 x float>, ptr addrspace(3) %r{n}, align 16",
            f"%q{n} = getelementptr <4 x float>, ptr %a1, i64 %at{n}",
            f"store <4 x float> %x{n}, ptr %q{n}, align 16",
        ]
    return warp_kernel("\n".join(lines), 2, COPIES, threads=64)


def aligned(count: int) -> np.ndarray:
    raw = np.zeros(count + 4, np.float32)
    skip = -raw.ctypes.data // 4 % 4
    return raw[skip : skip + count]


def waited(left: int) -> str:
    return WAIT.format(left) + "\n" + BARRIER


@pytest.mark.parametrize("races", ["none", "shared", "global"])
@pytest.mark.parametrize("reverse", [False, True])
def test_copies_arrive_when_they_are_waited_for(reverse: bool, races: str) -> None:
    x, y = aligned(512), aligned(512)
    x[:] = np.arange(512)
    kernel = EmulatedKernel(copied(waited(1), waited(0)))
    kernel.launch(1, [buffer(x), buffer(y)], [], reverse=reverse, races=races)
    np.testing.assert_array_equal(y.reshape(2, 64, 4), x.reshape(2, 64, 4)[:, ::-1])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("", waited(0), "has not been waited for|race in shared|no thread has written"),
        (BARRIER, waited(0), r"copy to shared @tile by thread (63|0) that has not been waited for"),
        (waited(1), waited(1), "that has not been waited for"),
        (waited(2), waited(0), "that has not been waited for"),
        (WAIT.format(1), waited(0), "has not been waited for|race in shared|no thread has written"),
    ],
)
def test_a_copy_that_is_not_waited_for_is_found(
    first: str, second: str, message: str, reverse: bool
) -> None:
    x, y = aligned(512), aligned(512)
    with pytest.raises(EmulatorError, match=message):
        EmulatedKernel(copied(first, second)).launch(1, [buffer(x), buffer(y)], [], reverse=reverse)


def test_a_copy_that_is_not_waited_for_reads_as_nan() -> None:
    x, y = aligned(512), aligned(512)
    kernel = EmulatedKernel(copied(BARRIER, waited(0)))
    kernel.launch(1, [buffer(x), buffer(y)], [], races="none")
    assert np.isnan(y[:128]).all() and not y[256:].any()


def test_a_copy_of_a_part_is_filled_with_zeros() -> None:
    partly = (
        "%less{n} = sub i32 48, %t\n%some{n} = call i32 @llvm.smax.i32(i32 %less{n}, i32 0)\n"
        "%bytes{n} = call i32 @llvm.smin.i32(i32 %some{n}, i32 16)\n"
        "%whole{n} = and i32 %bytes{n}, 28\n"
        "call void @llvm.nvvm.cp.async.ca.shared.global.16.s("
        "ptr addrspace(3) %to{n}, ptr addrspace(1) %from{n}, i32 %whole{n})"
    )
    kernel = copied(waited(1), waited(0), partly)
    text = kernel.text.replace(
        "@tile =",
        "declare i32 @llvm.smax.i32(i32, i32)\ndeclare i32 @llvm.smin.i32(i32, i32)\n@tile =",
        1,
    )
    x, y = aligned(512), aligned(512)
    x[:] = 1 + np.arange(512)
    floats = np.clip(48 - np.arange(64), 0, 16) // 4
    expected = np.where(np.arange(4) < floats[:, None], x.reshape(2, 64, 4), 0)
    for races in ("none", "global"):
        # threads from 45 on read nothing, of the last group outside what there is
        EmulatedKernel(GpuKernel("k", text, 2, 0, 64)).launch(
            1, [(x.ctypes.data, 4 * 256 + 44 * 16 + 4), buffer(y)], [], races=races
        )
        np.testing.assert_array_equal(y.reshape(2, 64, 4), expected[:, ::-1])
    with pytest.raises(EmulatorError, match=r"load of 16 bytes outside argument 0: byte 1728 of"):
        EmulatedKernel(GpuKernel("k", text, 2, 0, 64)).launch(
            1, [(x.ctypes.data, 4 * 256 + 44 * 16), buffer(y)], [], reverse=True
        )


# ---- matrices from shared memory


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_from_shared_memory(count: int, transposed: bool) -> None:
    result = "i32" if count == 1 else "{ " + ", ".join(["i32"] * count) + " }"
    name = f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.b16.p3"
    rows = 8 * count
    lines = [
        f"%row = and i64 %t64, {rows - 1}",
        "%p = getelementptr <4 x i32>, ptr %a0, i64 %row",
        "%x = load <4 x i32>, ptr %p, align 16",
        "%s = getelementptr <4 x i32>, ptr addrspace(3) @tile, i64 %row",
        f"%in = icmp slt i64 %t64, {rows}",
        "br i1 %in, label %y, label %z",
        "y:",
        "store <4 x i32> %x, ptr addrspace(3) %s, align 16",
        "br label %z",
        "z:",
        BARRIER,
        f"%m = call {result} @llvm.nvvm.{name}(ptr addrspace(3) %s)",
    ]
    for i in range(count):
        value = "%m"
        if count > 1:
            lines.append(f"%m{i} = extractvalue {result} %m, {i}")
            value = f"%m{i}"
        lines += [
            f"%o{i} = add i64 %t64, {32 * i}",
            f"%q{i} = getelementptr i32, ptr %a1, i64 %o{i}",
            f"store i32 {value}, ptr %q{i}, align 4",
        ]
    before = (
        f"declare {result} @llvm.nvvm.{name}(ptr addrspace(3))\n"
        f"@tile = internal addrspace(3) global [{rows * 4} x i32] undef, align 16"
    )
    x = aligned(rows * 4).view(np.uint16)
    x[:] = np.arange(rows * 8)
    y = np.zeros((count, 8, 4, 2), np.uint16)
    EmulatedKernel(warp_kernel("\n".join(lines), 2, before)).launch(1, [buffer(x), buffer(y)], [])
    matrices = x.reshape(count, 8, 8)
    expected = matrices.swapaxes(1, 2) if transposed else matrices
    np.testing.assert_array_equal(y.reshape(count, 8, 8), expected)
