"""Small plans over hand-written LLVM kernels: the run time without lowering or code generation."""

from __future__ import annotations

import textwrap

from graphc.backends.llvm.executable import LLVMExecutable
from graphc.backends.llvm.jit import default_jit
from graphc.dims import Atom, DimLike, ceildiv, symbol
from graphc.kernel import (
    MAP_BLOCK,
    Access,
    Accumulator,
    Expr,
    LoopKernel,
    Stage,
    Store,
    Term,
    blocks,
    sizes_of,
)
from graphc.location import UNKNOWN
from graphc.plan import Plan, Ref, Step, Value
from graphc.types import DType, TensorType, float32, int64

N = symbol("n")
M = symbol("m")


def sizes(**values: int) -> dict[Atom, int]:
    return {Atom.of("symbol", name=name): value for name, value in values.items()}


def elementwise_text(name: str, buffers: int, body: str, before: str = "", after: str = "") -> str:
    """A kernel over blocks of a one-dimensional map; `body` sees %i and %p0, %p1, ..."""
    loads = "\n".join(
        f"  %a{i} = getelementptr ptr, ptr %args, i64 {i}\n  %p{i} = load ptr, ptr %a{i}"
        for i in range(buffers)
    )
    return f"""
define void @{name}(ptr %args, ptr %sizes, i64 %b0, i64 %b1) {{
entry:
{loads}
  %n = load i64, ptr %sizes
  %start = mul i64 %b0, {MAP_BLOCK}
  %stop0 = mul i64 %b1, {MAP_BLOCK}
  %stop = call i64 @llvm.smin.i64(i64 %stop0, i64 %n)
  br label %test
test:
  %i = phi i64 [ %start, %entry ], [ %i1, %next ]
  %more = icmp slt i64 %i, %stop
  br i1 %more, label %body, label %out
body:
{textwrap.indent(textwrap.dedent(body).strip(), "  ")}
  br label %next
next:
  %i1 = add i64 %i, 1
  br label %test
out:
  ret void
}}
"""


AFFINE = """
%xp = getelementptr float, ptr %p0, i64 %i
%x = load float, ptr %xp
%x2 = fmul float %x, 2.0
%y = fadd float %x2, 1.0
%yp = getelementptr float, ptr %p1, i64 %i
store float %y, ptr %yp
"""
ADD = """
%xp = getelementptr float, ptr %p0, i64 %i
%x = load float, ptr %xp
%yp = getelementptr float, ptr %p1, i64 %i
%y = load float, ptr %yp
%z = fadd float %x, %y
%zp = getelementptr float, ptr %p2, i64 %i
store float %z, ptr %zp
"""
CHECKED = """
%xp = getelementptr i64, ptr %p0, i64 %i
%x = load i64, ptr %xp
%yp = getelementptr i64, ptr %p1, i64 %i
store i64 %x, ptr %yp
%bad = icmp slt i64 %x, 0
br i1 %bad, label %fault, label %next
fault:
%f1 = getelementptr i64, ptr %p2, i64 1
%f2 = getelementptr i64, ptr %p2, i64 2
%f3 = getelementptr i64, ptr %p2, i64 3
store i64 0, ptr %f1
store i64 %i, ptr %f2
store i64 %x, ptr %f3
store i64 1, ptr %p2
"""
ACCUMULATE = """
%xp = getelementptr i64, ptr %p0, i64 %i
%x = load i64, ptr %xp
%vp = getelementptr i64, ptr %p1, i64 %i
%v = load i64, ptr %vp
%s = add i64 %v, %x
store i64 %s, ptr %vp
"""
ROW_SUM = """
define void @row_sum(ptr %args, ptr %sizes, i64 %b0, i64 %b1) {
entry:
  %x = load ptr, ptr %args
  %a1 = getelementptr ptr, ptr %args, i64 1
  %y = load ptr, ptr %a1
  %s1 = getelementptr i64, ptr %sizes, i64 1
  %n = load i64, ptr %s1
  br label %rows
rows:
  %r = phi i64 [ %b0, %entry ], [ %r1, %store ]
  %more = icmp slt i64 %r, %b1
  br i1 %more, label %row, label %out
row:
  %at = mul i64 %r, %n
  br label %columns
columns:
  %c = phi i64 [ 0, %row ], [ %c1, %add ]
  %sum = phi float [ 0.0, %row ], [ %sum1, %add ]
  %inside = icmp slt i64 %c, %n
  br i1 %inside, label %add, label %store
add:
  %k = add i64 %at, %c
  %xp = getelementptr float, ptr %x, i64 %k
  %v = load float, ptr %xp
  %sum1 = fadd float %sum, %v
  %c1 = add i64 %c, 1
  br label %columns
store:
  %yp = getelementptr float, ptr %y, i64 %r
  store float %sum, ptr %yp
  %r1 = add i64 %r, 1
  br label %rows
out:
  ret void
}
"""
TEXT = "\n".join(
    [
        "declare i64 @llvm.smin.i64(i64, i64)",
        elementwise_text("affine", 2, AFFINE),
        elementwise_text("add", 3, ADD),
        elementwise_text("checked", 3, CHECKED),
        elementwise_text("accumulate", 2, ACCUMULATE),
        ROW_SUM,
    ]
)
KERNELS = {
    "affine": LoopKernel((N,), (0,), 0, (float32, float32), ()),
    "add": LoopKernel((N,), (0,), 0, (float32,) * 3, ()),
    "checked": LoopKernel((N,), (0,), 0, (int64, int64), (), checks=1),
    "accumulate": LoopKernel((N,), (0,), 0, (int64, int64), ()),
    "row_sum": LoopKernel((M, N), (0,), 1, (float32, float32), ()),
}
_functions: dict[str, int] = {}


def functions() -> dict[str, int]:
    if not _functions:
        _functions.update(default_jit().compile_text(TEXT, KERNELS))
    return _functions


def launch(name: str, *args: Ref, wait_from: int = -1, size: DimLike = N) -> Step:
    """A step of one of the kernels above; its last argument but a fault record is written."""
    index = list(KERNELS).index(name)
    if name == "row_sum":
        return Step(index, args, (1,), (M, N), M, wait_from)
    return Step(index, args, (1,), (size,), ceildiv(size, MAP_BLOCK), wait_from)


def value(dtype: DType, *shape: DimLike) -> Value:
    return Value("v", TensorType(dtype, shape), UNKNOWN)


def executable(plan: Plan) -> LLVMExecutable:
    return LLVMExecutable(plan, list(functions().values()))


def make_plan(**parts: object) -> Plan:
    empty: dict[str, object] = {"kernels": tuple(KERNELS.values()), "commit": 0}
    for name in ("steps", "slots", "inputs", "outputs", "variables", "constants"):
        empty[name] = ()
    return Plan(**{**empty, **parts})  # type: ignore[arg-type]


def row_access(buffer: int) -> Access:
    return Access(buffer, (Term(((0, 1),), N), Term(((1, 1),), 1)))


def softmax_plan() -> Plan:
    """Softmax over rows, as real kernel IR: three stages over the last axis."""
    x = Expr("load", (), (row_access(0), 0), float32)
    largest = Expr("acc", (), 0, float32)
    e = Expr("exp", (Expr("sub", (x, largest), None, float32),), None, float32)
    y = Expr("div", (e, Expr("acc", (), 1, float32)), None, float32)
    stages = (
        Stage((1,), (Accumulator("max", x, float32),)),
        Stage((1,), (Accumulator("sum", e, float32),)),
        Stage((1,), (), (Store(row_access(1), y),)),
    )
    kernel = LoopKernel((M, N), (0,), 1, (float32, float32), stages)
    step = Step(0, (Ref("input", 0), Ref("output", 0)), (1,), sizes_of(kernel), blocks(kernel))
    return make_plan(
        kernels=(kernel,),
        steps=(step,),
        commit=1,
        inputs=(value(float32, M, N),),
        outputs=(value(float32, M, N),),
    )
