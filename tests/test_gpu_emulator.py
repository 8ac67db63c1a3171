"""The GPU emulator: kernels compute what they say, and faults are named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from graphc.backends.gpu import emulator
from graphc.backends.gpu.emulator import EmulatedKernel, EmulatorError
from graphc.backends.gpu.kernel_text import GpuKernel
from graphc.errors import CompileError


def buffer(array: np.ndarray) -> tuple[int, int]:
    return array.ctypes.data, array.nbytes


def kernel_of(body: str, buffers: int, sizes: int, threads: int, before: str = "") -> GpuKernel:
    """A kernel `k` with the thread's number in %t, the CTA's in %c and both together in %i."""
    parameters = [f"ptr %a{i}" for i in range(buffers)] + [f"i64 %s{i}" for i in range(sizes)]
    text = f"""
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
{before}
define ptx_kernel void @k({", ".join(parameters)}) {{
entry:
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %c = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %first = mul i32 %c, {threads}
  %i32 = add i32 %first, %t
  %i = zext i32 %i32 to i64
{body}
}}
"""
    return GpuKernel("k", text, buffers, sizes, threads)


AXPY = kernel_of(
    """
  %in = icmp slt i64 %i, %s0
  br i1 %in, label %do, label %out
do:
  %p = getelementptr float, ptr %a0, i64 %i
  %x = load float, ptr %p, align 4
  br label %h
h:
  %k = phi i64 [ 0, %do ], [ %k1, %h ]
  %sum = phi float [ %x, %do ], [ %sum1, %h ]
  %sum1 = fadd float %sum, %x
  %k1 = add i64 %k, 1
  %m = icmp slt i64 %k1, 3
  br i1 %m, label %h, label %w
w:
  %q = getelementptr float, ptr %a1, i64 %i
  store float %sum1, ptr %q, align 4
  br label %out
out:
  ret void""",
    buffers=2,
    sizes=1,
    threads=128,
)


@pytest.mark.parametrize("reverse", [False, True])
def test_threads_of_a_loop_kernel(reverse: bool) -> None:
    x, y = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    EmulatedKernel(AXPY).launch(8, [buffer(x), buffer(y)], [1000], reverse=reverse)
    np.testing.assert_array_equal(y, 4 * x)


def test_an_access_outside_an_argument_is_found() -> None:
    x, y = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    kernel = EmulatedKernel(AXPY)
    with pytest.raises(EmulatorError, match=r"k: load of 4 bytes outside argument 0: byte 4000 of"):
        kernel.launch(8, [buffer(x), buffer(y)], [1001])
    with pytest.raises(EmulatorError, match=r"outside argument 1: byte 3996.*CTA 7, thread 103"):
        kernel.launch(8, [buffer(x), buffer(y[:-1])], [1000], reverse=True)


def test_a_misaligned_access_is_found() -> None:
    x = np.zeros(1000, np.float32)
    with pytest.raises(EmulatorError, match="misaligned load"):
        EmulatedKernel(AXPY).launch(8, [(x.ctypes.data + 2, 80), buffer(x)], [10])


def test_a_loop_that_does_not_end_is_found() -> None:
    x = np.zeros(10, np.float32)
    with pytest.raises(EmulatorError, match="a loop that does not end"):
        EmulatedKernel(AXPY).launch(1, [buffer(x), buffer(x)], [10], budget=2)


BARRIER = "call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)"

DECLARED = """
declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)
declare void @llvm.nvvm.bar.warp.sync(i32)
declare float @llvm.nvvm.shfl.sync.down.f32(i32, float, i32, i32)
declare i32 @llvm.nvvm.vote.ballot.sync(i32, i1)
"""

EVERY_ORDER = pytest.mark.parametrize(
    ("reverse", "races"), [(False, "global"), (True, "global"), (False, "none"), (True, "shared")]
)


def shared(name: str, count: int) -> str:
    return f"@{name} = internal addrspace(3) global [{count} x float] undef, align 16"


def shuffles() -> str:
    """Lines that add the lanes of a warp from %r32 down to %r1."""
    lines = []
    for by in (16, 8, 4, 2, 1):
        before = f"%r{2 * by}"
        lines.append(
            f"%o{by} = call float @llvm.nvvm.shfl.sync.down.f32(i32 -1, float {before}, "
            f"i32 {by}, i32 31)"
        )
        lines.append(f"%r{by} = fadd float {before}, %o{by}")
    return "\n".join(lines)


ROW_SUMS_END = f"""
x:
  {shuffles()}
  %is0 = icmp eq i32 %lane, 0
  br i1 %is0, label %put, label %after
put:
  %w64 = zext i32 %warp to i64
  %sp = getelementptr float, ptr addrspace(3) @sums, i64 %w64
  store float %r1, ptr addrspace(3) %sp, align 4
  br label %after
after:
  BARRIER
  %leads = icmp eq i32 %t, 0
  br i1 %leads, label %last, label %out
last:
  %j = phi i64 [ 0, %after ], [ %j1, %last ]
  %tot = phi float [ 0.0, %after ], [ %tot1, %last ]
  %lp = getelementptr float, ptr addrspace(3) @sums, i64 %j
  %lv = load float, ptr addrspace(3) %lp, align 4
  %tot1 = fadd float %tot, %lv
  %j1 = add i64 %j, 1
  %jm = icmp slt i64 %j1, 4
  br i1 %jm, label %last, label %write
write:
  %q = getelementptr float, ptr %a1, i64 %c64
  store float %tot1, ptr %q, align 4
  br label %out
out:
  ret void"""


def row_sums(barrier: str = BARRIER) -> GpuKernel:
    """A CTA of four warps adds a row: lanes by shuffles, warps through shared memory."""
    return kernel_of(
        f"""
  %lane = and i32 %t, 31
  %warp = lshr i32 %t, 5
  %c64 = zext i32 %c to i64
  %row = mul i64 %c64, %s0
  %t64 = zext i32 %t to i64
  br label %h
h:
  %k = phi i64 [ %t64, %entry ], [ %k1, %b ]
  %r32 = phi float [ 0.0, %entry ], [ %next, %b ]
  %more = icmp slt i64 %k, %s0
  br i1 %more, label %b, label %x
b:
  %at = add i64 %row, %k
  %p = getelementptr float, ptr %a0, i64 %at
  %v = load float, ptr %p, align 4
  %next = fadd float %r32, %v
  %k1 = add i64 %k, 128
  br label %h
{ROW_SUMS_END.replace("BARRIER", barrier)}""",
        buffers=2,
        sizes=1,
        threads=128,
        before=DECLARED + shared("sums", 4),
    )


@EVERY_ORDER
def test_shuffles_and_a_barrier(reverse: bool, races: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 1000)).astype(np.float32)
    y = np.full(5, np.nan, np.float32)
    EmulatedKernel(row_sums()).launch(
        5, [buffer(x), buffer(y)], [1000], reverse=reverse, races=races
    )
    np.testing.assert_allclose(y, x.sum(1, dtype=float), rtol=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_missing_barrier_is_found(reverse: bool) -> None:
    x, y = np.ones((2, 256), np.float32), np.zeros(2, np.float32)
    kernel = EmulatedKernel(row_sums(barrier=""))
    with pytest.raises(EmulatorError, match=r"race in shared @sums|no thread has written.*@sums"):
        kernel.launch(2, [buffer(x), buffer(y)], [256], reverse=reverse)


def tree(inner: str = BARRIER) -> GpuKernel:
    """A CTA adds 64 numbers in shared memory, with a barrier in the loop."""
    return kernel_of(
        f"""
  %p = getelementptr float, ptr %a0, i64 %i
  %x = load float, ptr %p, align 4
  %t64 = zext i32 %t to i64
  %mine = getelementptr float, ptr addrspace(3) @tile, i64 %t64
  store float %x, ptr addrspace(3) %mine, align 4
  br label %h
h:
  %step = phi i64 [ 32, %entry ], [ %half, %z ]
  {BARRIER}
  %in = icmp slt i64 %t64, %step
  br i1 %in, label %y, label %z
y:
  %far = add i64 %t64, %step
  %fp = getelementptr float, ptr addrspace(3) @tile, i64 %far
  %a = load float, ptr addrspace(3) %mine, align 4
  %b = load float, ptr addrspace(3) %fp, align 4
  %sum = fadd float %a, %b
  store float %sum, ptr addrspace(3) %mine, align 4
  br label %z
z:
  %half = lshr i64 %step, 1
  {inner}
  %more = icmp sgt i64 %half, 0
  br i1 %more, label %h, label %x1
x1:
  %is0 = icmp eq i64 %t64, 0
  br i1 %is0, label %w, label %out
w:
  %total = load float, ptr addrspace(3) @tile, align 4
  %c64 = zext i32 %c to i64
  %q = getelementptr float, ptr %a1, i64 %c64
  store float %total, ptr %q, align 4
  br label %out
out:
  ret void""",
        buffers=2,
        sizes=0,
        threads=64,
        before=DECLARED + shared("tile", 64),
    )


@EVERY_ORDER
def test_barriers_in_a_loop(reverse: bool, races: str) -> None:
    x, y = np.arange(320, dtype=np.float32), np.zeros(5, np.float32)
    EmulatedKernel(tree("")).launch(5, [buffer(x), buffer(y)], [], reverse=reverse, races=races)
    np.testing.assert_array_equal(y, x.reshape(5, 64).sum(1))


def test_a_read_too_far_in_shared_memory_is_found() -> None:
    x, y = np.arange(64, dtype=np.float32), np.zeros(1, np.float32)
    text = tree("").text.replace("phi i64 [ 32,", "phi i64 [ 33,")
    kernel = GpuKernel("k", text, 2, 0, 64)
    with pytest.raises(
        EmulatorError, match=r"load of 4 bytes outside the 256 bytes of shared @tile"
    ):
        EmulatedKernel(kernel).launch(1, [buffer(x), buffer(y)], [])


def in_part(lines: str, condition: str = "icmp slt i32 %t, 40", before: str = "") -> GpuKernel:
    """A kernel that runs some lines on a part of its 64 threads."""
    return kernel_of(
        f"""
  %is = {condition}
  br i1 %is, label %y, label %z
y:
  {lines}
  br label %z
z:
  ret void""",
        buffers=1,
        sizes=1,
        threads=64,
        before=DECLARED + before,
    )


SHUFFLE = "%o = call float @llvm.nvvm.shfl.sync.down.f32(i32 {}, float 1.0, i32 1, i32 31)"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (in_part(BARRIER), "divergent barrier"),
        (in_part("call void @llvm.nvvm.bar.warp.sync(i32 -1)"), "lanes of a warp diverge"),
        (in_part(SHUFFLE.format(-1)), "lanes of a warp diverge"),
        (in_part(SHUFFLE.format(255), "icmp slt i32 %t, 8"), "mask 0xff"),
        (
            in_part(
                """%w = and i32 %t, 31
  %p = getelementptr float, ptr addrspace(3) @tile, i32 %w
  store float 1.0, ptr addrspace(3) %p, align 4""",
                "icmp slt i32 %t, 64",
                shared("tile", 32),
            ),
            "race in shared @tile with thread",
        ),
        (
            in_part(
                """%p = getelementptr float, ptr addrspace(3) @tile, i32 %t
  %x = load float, ptr addrspace(3) %p, align 4""",
                before=shared("tile", 64),
            ),
            "no thread has written in shared @tile",
        ),
        (
            in_part(
                """%p = getelementptr float, ptr %a0, i64 1
  %x = load <4 x float>, ptr %p, align 16"""
            ),
            "misaligned load",
        ),
        (
            in_part(
                """br label %h
h:
  %k = phi i32 [ 0, %y ], [ %k1, %h ]
  %k1 = add i32 %k, 1
  call void @llvm.nvvm.bar.warp.sync(i32 -1)
  br label %h
never:""",
                "icmp slt i32 %t, 64",
            ),
            "a loop that does not end",
        ),
    ],
)
def test_planted_faults(kernel: GpuKernel, message: str, reverse: bool) -> None:
    x = np.zeros(64, np.float32)
    aligned = x.ctypes.data // 16 * 16
    with pytest.raises(EmulatorError, match=message):
        EmulatedKernel(kernel).launch(1, [(aligned, 192)], [1], reverse=reverse, budget=1000)


def global_store(index: str) -> GpuKernel:
    return kernel_of(
        f"""
  %n = {index}
  %p = getelementptr float, ptr %a0, i64 %n
  store float 1.0, ptr %p, align 4
  ret void""",
        buffers=1,
        sizes=0,
        threads=64,
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_a_race_in_global_memory_is_found(reverse: bool) -> None:
    x = np.zeros(200, np.float32)
    EmulatedKernel(global_store("add i64 %i, 1")).launch(3, [buffer(x)], [], races="global")
    same = EmulatedKernel(global_store("and i64 %i, 127"))
    same.launch(3, [buffer(x)], [], reverse=reverse)  # nobody asked
    with pytest.raises(EmulatorError, match=r"race in argument 0 with CTA [02], thread"):
        same.launch(3, [buffer(x)], [], reverse=reverse, races="global")


def test_arguments_that_overlap_share_their_races() -> None:
    x = np.zeros(256, np.float32)
    kernel = kernel_of(
        """
  %p = getelementptr float, ptr %a0, i64 %i
  %x = load float, ptr %p, align 4
  %q = getelementptr float, ptr %a1, i64 %i
  store float %x, ptr %q, align 4
  ret void""",
        buffers=2,
        sizes=0,
        threads=64,
    )
    whole, moved = buffer(x), (x.ctypes.data + 4, x.nbytes - 4)
    EmulatedKernel(kernel).launch(3, [whole, whole], [], races="global")
    with pytest.raises(EmulatorError, match=r"race in argument 0 with CTA 0, thread 0"):
        EmulatedKernel(kernel).launch(3, [whole, moved], [], races="global")


def test_votes() -> None:
    kernel = kernel_of(
        """
  %odd = trunc i32 %t to i1
  %bits = call i32 @llvm.nvvm.vote.ballot.sync(i32 -1, i1 %odd)
  %p = getelementptr i32, ptr %a0, i64 %i
  store i32 %bits, ptr %p, align 4
  ret void""",
        buffers=1,
        sizes=0,
        threads=64,
        before=DECLARED,
    )
    x = np.zeros(64, np.uint32)
    EmulatedKernel(kernel).launch(1, [buffer(x)], [])
    assert (x == 0xAAAAAAAA).all()


def test_kernels_run_from_several_threads_at_once() -> None:
    kernel = EmulatedKernel(row_sums())

    def run(seed: int) -> bool:
        x = np.random.default_rng(seed).standard_normal((9, 300)).astype(np.float32)
        y = np.zeros(9, np.float32)
        for _ in range(20):
            kernel.launch(9, [buffer(x), buffer(y)], [300])
        return np.allclose(y, x.sum(1), rtol=1e-4, atol=1e-4)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(8)))


def test_what_is_not_known_is_refused() -> None:
    body = """
  %x = call float @llvm.nvvm.no.such.f32(float 1.0)
  ret void"""
    with pytest.raises(CompileError, match=r"does not know llvm.nvvm.no.such.f32"):
        EmulatedKernel(kernel_of(body, 1, 0, 32)).launch(1, [(0, 0)], [])
    body = """
  %p = inttoptr i64 %s0 to ptr
  store float 1.0, ptr %p, align 4
  ret void"""
    with pytest.raises(CompileError, match="cannot tell what %p points to"):
        EmulatedKernel(kernel_of(body, 1, 1, 32)).launch(1, [(0, 0)], [0])


@pytest.mark.parametrize("races", ["none", "shared", "global"])
def test_kernels_that_run_long_are_compiled_again(
    races: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator, "_LONG", 0.0)
    x = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32)
    sums = []
    kernel = EmulatedKernel(row_sums())
    for _ in range(3):
        y = np.zeros(5, np.float32)
        kernel.launch(5, [buffer(x), buffer(y)], [300], races=races)
        sums.append(y.tobytes())
    assert len(set(sums)) == 1
    with pytest.raises(EmulatorError, match="load of 4 bytes outside argument 0"):
        kernel.launch(6, [buffer(x), buffer(np.zeros(6, np.float32))], [300], races=races)


def test_pointers_into_one_of_two_arrays() -> None:
    body = """
  %odd = trunc i32 %t to i1
  %t64 = zext i32 %t to i64
  %one = getelementptr float, ptr addrspace(3) @one, i64 %t64
  %two = getelementptr float, ptr addrspace(3) @two, i64 %t64
  %p = select i1 %odd, ptr addrspace(3) %one, ptr addrspace(3) %two
  store float 3.0, ptr addrspace(3) %p, align 4
  %from = select i1 %odd, ptr %a0, ptr %a1
  %q = getelementptr float, ptr %from, i64 %t64
  %x = load float, ptr addrspace(3) %p, align 4
  store float %x, ptr %q, align 4
  ret void"""
    kernel = kernel_of(body, 2, 0, 32, before=f"{shared('one', 32)}\n{shared('two', 32)}")
    x, y = np.zeros(32, np.float32), np.zeros(31, np.float32)
    for races in ("none", "shared", "global"):
        EmulatedKernel(kernel).launch(1, [buffer(x), buffer(y)], [], races=races)
        np.testing.assert_array_equal(x, np.tile([0, 3], 16))
        np.testing.assert_array_equal(y, np.tile([3, 0], 16)[:31])
        with pytest.raises(EmulatorError, match=r"outside argument 0: byte .* and argument 1: "):
            EmulatedKernel(kernel).launch(1, [buffer(x), buffer(y[:-1])], [], races=races)


def test_races_are_looked_for_where_a_launch_is_new() -> None:
    alone = """%w = and i32 %t, 31
  %p = getelementptr float, ptr addrspace(3) @tile, i32 %w
  store float 1.0, ptr addrspace(3) %p, align 4"""
    kernel = EmulatedKernel(in_part(alone, "icmp slt i64 %i, %s0", shared("tile", 32)))
    x = np.zeros(1, np.float32)
    kernel.launch(1, [buffer(x)], [32])
    kernel.launch(1, [buffer(x)], [32])
    with pytest.raises(EmulatorError, match="race in shared @tile"):
        kernel.launch(1, [buffer(x)], [64])


@pytest.mark.parametrize("races", ["none", "shared", "global"])
@pytest.mark.parametrize("wait", ["", BARRIER])
def test_private_memory_is_a_threads_own(wait: str, races: str) -> None:
    kernel = kernel_of(
        f"""
  %own = alloca [4 x i64], align 8
  %t64 = zext i32 %t to i64
  %at = and i64 %t64, 3
  %p = getelementptr i64, ptr %own, i64 %at
  store i64 %t64, ptr %p, align 8
  {wait}
  %back = add i64 %at, %s0
  %q = getelementptr i64, ptr %own, i64 %back
  %x = load i64, ptr %q, align 8
  %r = getelementptr i64, ptr %a0, i64 %i
  store i64 %x, ptr %r, align 8
  ret void""",
        buffers=1,
        sizes=1,
        threads=64,
        before=DECLARED,
    )
    x = np.zeros(128, np.int64)
    emulated = EmulatedKernel(kernel)
    emulated.launch(2, [buffer(x)], [0], races=races)
    np.testing.assert_array_equal(x, np.tile(np.arange(64), 2))
    with pytest.raises(EmulatorError, match="load of 8 bytes outside the 32 bytes of private %own"):
        emulated.launch(2, [buffer(x)], [1], races=races)


@pytest.mark.parametrize("wait", ["", BARRIER])
def test_tables_of_constants(wait: str) -> None:
    kernel = kernel_of(
        f"""
  {wait}
  %at = zext i32 %t to i64
  %p = getelementptr i32, ptr addrspace(4) @table, i64 %at
  %x = load i32, ptr addrspace(4) %p, align 4
  %r = getelementptr i32, ptr %a0, i64 %at
  store i32 %x, ptr %r, align 4
  ret void""",
        buffers=1,
        sizes=0,
        threads=32,
        before=DECLARED
        + "@table = internal addrspace(4) constant [32 x i32] ["
        + ", ".join(f"i32 {i * i}" for i in range(32))
        + "], align 4",
    )
    x = np.zeros(32, np.int32)
    EmulatedKernel(kernel).launch(1, [buffer(x)], [])
    np.testing.assert_array_equal(x, np.arange(32) ** 2)
    text = kernel.text.replace("@table, i64 %at", "@table, i64 40")
    with pytest.raises(EmulatorError, match="outside the 128 bytes of constant @table"):
        EmulatedKernel(GpuKernel("k", text, 1, 0, 32)).launch(1, [buffer(x)], [])


@pytest.mark.parametrize("races", ["none", "global"])
def test_atomic_operations(races: str) -> None:
    kernel = kernel_of(
        f"""
  %leads = icmp eq i32 %t, 0
  br i1 %leads, label %y, label %z
y:
  store i64 0, ptr addrspace(3) @count, align 8
  br label %z
z:
  {BARRIER}
  %old = atomicrmw add ptr addrspace(3) @count, i64 %i monotonic
  {BARRIER}
  %all = load i64, ptr addrspace(3) @count, align 8
  %was = atomicrmw add ptr %a0, i64 %all monotonic
  %pair = cmpxchg ptr %a1, i64 0, i64 1 monotonic monotonic
  %won = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %won, label %w, label %out
w:
  %p = getelementptr i64, ptr %a1, i64 1
  store i64 %i, ptr %p, align 8
  br label %out
out:
  ret void""",
        buffers=2,
        sizes=0,
        threads=64,
        before=DECLARED + "@count = internal addrspace(3) global [1 x i64] undef, align 16",
    )
    for reverse in (False, True):
        total, record = np.zeros(1, np.int64), np.zeros(4, np.int64)
        places = [buffer(total), buffer(record)]
        EmulatedKernel(kernel).launch(3, places, [], reverse=reverse, races=races)
        assert total[0] == 64 * np.arange(192).sum()
        assert record.tolist() == [1, 191 if reverse else 0, 0, 0]
    with pytest.raises(EmulatorError, match="atomic of 8 bytes outside argument 0"):
        EmulatedKernel(kernel).launch(3, [(0, 0), buffer(record)], [], races=races)
